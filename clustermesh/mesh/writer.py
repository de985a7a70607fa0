"""Whether whoever writes a cluster's etcd is heard to live, and can be believed: by its beats. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from clustermesh.mesh.messages import Terms
from clustermesh.store.operations import KeyValue


class Canary(NamedTuple):
    """A canary that stands. Its lease is None where the heartbeat has vanished since: it may be of the time before."""

    lease: int | None
    revision: int


class Proof(NamedTuple):
    """The writer is believed `since` this revision; it had been beating for long enough at `settled`, 0 for not yet.
    Its heartbeat, on `lease`, was heard to change at `last_beat`, seconds."""

    since: int
    settled: int
    lease: int
    last_beat: float


class Writer:
    """Of one attempt, that began to listen at `began`; times are seconds of one clock. What a mirror `copied` it wrote
    beside whoever beats there."""

    def __init__(self, terms: Terms, began: float, *, copied: bool = False) -> None:
        self._terms, self._began, self._copied = terms, began, copied
        self.last_beat = -math.inf
        self._alive_since = 0.0
        self._alive = self._settled = 0  # revisions of the beats since which it lives without a gap, and long enough
        self.lease = 0  # of its heartbeat, as that was last heard of
        self._beats_with = 0  # the lease with which it has been beating: with another one it is another writer
        self._heartbeat: KeyValue | None = None  # as it was last heard of

    def beat(self, heartbeat: KeyValue, now: float) -> None:
        """The heartbeat was heard to change."""
        if not self._lives(now) or heartbeat.lease != self._beats_with:
            self._alive_since, self._alive, self._settled = now, heartbeat.mod_revision, 0
            self._beats_with = heartbeat.lease
        if not self._settled and now >= self._alive_since + self._terms.settle:
            self._settled = heartbeat.mod_revision
        self.last_beat, self.lease, self._heartbeat = now, heartbeat.lease, heartbeat

    def find(self, heartbeat: KeyValue | None) -> bool:
        """The heartbeat as a list has it; whether it was gone since it was last found, or heard to change."""
        before, self._heartbeat = self._heartbeat, heartbeat
        if heartbeat is None:
            return before is not None
        self.lease = heartbeat.lease
        if before is None:
            return False
        return heartbeat.mod_revision > before.mod_revision and heartbeat.version <= before.version

    def stop(self) -> None:
        """The heartbeat is gone, or was."""
        self.last_beat = -math.inf

    @property
    def silent_from(self) -> float:
        """When it is to be taken for dead if nothing more is heard of it."""
        return max(self._began, self.last_beat) + self._terms.silence

    def proof(self, canary: Canary | None, now: float) -> Proof | None:
        """Whether it is believed about a table that has this `canary`, or none; None where it is not.

        It has written all it has once it wrote the canary, or has been beating for a while. A mirror's canary is a sign
        of life, too: its lease ends before, or with, those of the copies it speaks of.
        """
        lives, proofs = self._lives(now), list[int]()
        if lives and self._settled and self.lease == self._beats_with:
            proofs.append(self._settled)
        if lives and canary is not None and canary.lease == self.lease:
            proofs.append(max(self._alive, canary.revision))
        if self._copied and canary is not None and canary.lease:
            proofs.append(canary.revision)
        if not proofs:
            return None
        return Proof(min(proofs), *((self._settled, self.lease) if lives else (0, 0)), self.last_beat)

    def _lives(self, now: float) -> bool:
        return self.last_beat >= self._began and now < self.silent_from
