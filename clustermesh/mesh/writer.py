"""Whether whoever writes a cluster's etcd is heard to live, and can be believed: by its beats; a mirror, beside which
another beats, by its canaries and their leases. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from clustermesh.mesh.messages import Terms
from clustermesh.store.operations import KeyValue, Renewals


class Canary(NamedTuple):
    """A canary that stands, `heard` of at that time. Its lease is None where the heartbeat has vanished since, if it is
    not a mirror's: it may be of the time before."""

    lease: int | None
    revision: int
    heard: float


class Proof(NamedTuple):
    """The writer is believed `since` this revision; it had been living for long enough at `settled`, 0 for not yet.
    Its heartbeat is on `lease`, 0 where that says nothing. `reached` is to be compared with `Writer.believed_from`."""

    since: int
    settled: int
    lease: int
    reached: float


class Look(NamedTuple):
    """A lease was looked at `at` that time, as of `revision`; `lived` is when it was first seen renewed since then."""

    at: float
    revision: int
    lived: float | None = None


class Holders:
    """Who holds a lease has outlived a revision by `settle` seconds where the lease was renewed after that, and once
    more so much later. One renewal is not enough: who hung renews first, and writes again afterwards what it lost."""

    def __init__(self, settle: float) -> None:
        self._settle, self._term = settle, 0
        self._looks: dict[int, Look] = {}  # of each lease
        self._outlived: dict[int, int] = {}
        self._lived: dict[int, float] = {}
        self.told = True  # whether etcd tells of leases at all

    def hear(self, renewals: Renewals, revision: int, asked: float, now: float) -> None:
        """Of the answer, as of `revision`, to what was `asked` at that time. Where etcd has had another leader since, a
        lease may seem renewed and is not."""
        self.told = bool(renewals.term)
        if renewals.term != self._term:
            self._looks, self._term = {}, renewals.term
        for lease, age in renewals.ages.items():
            look, renewed = self._looks.setdefault(lease, Look(now, revision)), asked - age
            if renewed < look.at:
                continue
            self._lived[lease] = renewed
            if look.lived is None:
                self._looks[lease] = look._replace(lived=renewed)
            elif renewed >= look.lived + self._settle:
                self._outlived[lease] = look.revision
                self._looks[lease] = Look(now, revision)

    def outlived(self, lease: int) -> int:
        """The last such revision that is known of, or 0."""
        return self._outlived.get(lease, 0)

    def lived(self, lease: int) -> float:
        """When the lease was last known to be renewed."""
        return self._lived.get(lease, -math.inf)


class Writer:
    """Of one attempt, that began to listen at `began`; times are seconds of one clock. What a mirror `copied` it wrote
    beside whoever beats there."""

    def __init__(self, terms: Terms, began: float, *, copied: bool = False) -> None:
        self._terms, self._began, self.copied = terms, began, copied
        self.holders = Holders(terms.settle)  # of the leases of a mirror's canaries
        self._beaten, self._lost = False, 0  # whether the heartbeat stands; when it was found lost last, a revision
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
        self.last_beat, self.lease, self._heartbeat, self._beaten = now, heartbeat.lease, heartbeat, True

    def find(self, heartbeat: KeyValue | None) -> bool:
        """The heartbeat as a list has it; whether it was gone since it was last found, or heard to change."""
        before, self._heartbeat = self._heartbeat, heartbeat
        if heartbeat is None:
            return before is not None
        self.lease, self._beaten = heartbeat.lease, True
        if before is None:
            return False
        return heartbeat.mod_revision > before.mod_revision and heartbeat.version <= before.version

    def stop(self, revision: int) -> None:
        """The heartbeat is gone, or was, by `revision`."""
        self.last_beat, self._beaten, self._lost = -math.inf, False, max(self._lost, revision)

    @property
    def silent_from(self) -> float:
        """When it is to be taken for dead if nothing more is heard of it."""
        return max(self._began, self.last_beat) + self._terms.silence

    def proof(self, canary: Canary | None, now: float) -> Proof | None:
        """Whether it is believed about a table that has this `canary`, or none; None where it is not.

        It has written all it has once it wrote the canary, or has been beating for a while.
        """
        if self.copied:
            return self._proof_of_copies(canary, now)
        lives, proofs = self._lives(now), list[int]()
        if lives and self._settled and self.lease == self._beats_with:
            proofs.append(self._settled)
        if lives and canary is not None and canary.lease == self.lease:
            proofs.append(max(self._alive, canary.revision))
        return Proof(min(proofs), self._settled, self.lease, self.last_beat) if proofs else None

    def believed_from(self, now: float, revision: int) -> float:
        """What a proof is to have reached, that what may have died with a lease by `now`, or `revision`, is gone: a
        beat that is late enough, or, of copies, a revision that the mirror has outlived by so much."""
        return float(revision) if self.copied else now + self._terms.settle

    def _proof_of_copies(self, canary: Canary | None, now: float) -> Proof | None:
        """A mirror is believed what it deletes while its canary stands: who deletes lives. What died with a lease may
        have gone because it died itself, for its leases end in any order. What it had lost it has written again some
        time after it was heard of, by a renewal of the canary's lease or the canary, written anew, if that is then
        renewed once more; where etcd tells of no leases, once the canary has stood for so long.
        Whoever beats there is another; where no heartbeat stands somebody may have deleted all but the canaries."""
        if canary is None or not self._beaten:
            return None
        reached = self.holders.outlived(canary.lease or 0)
        tells = canary.lease and self.holders.told
        if (self.holders.lived(canary.lease or 0) if tells else now) >= canary.heard + self._terms.settle:
            reached = max(reached, canary.revision)
        known = [each for each in (canary.revision, reached) if each >= self._lost]
        return Proof(min(known), reached if reached >= self._lost else 0, 0, reached) if known else None

    def _lives(self, now: float) -> bool:
        return self.last_beat >= self._began and now < self.silent_from
