"""Whether whoever writes a cluster's etcd is heard to live, and can be believed: by its beats. Pure."""

from __future__ import annotations

from clustermesh.mesh.messages import Terms
from clustermesh.store.operations import KeyValue


class Writer:
    """Of one attempt, that began to listen at `began`; times are seconds of one clock."""

    def __init__(self, terms: Terms, began: float) -> None:
        self._terms, self._began = terms, began
        self._beat: float | None = None
        self._alive_since = 0.0
        self._revision = self._lease = 0

    def beat(self, heartbeat: KeyValue, now: float) -> None:
        """The heartbeat was heard to change."""
        if not self._lives(now):
            self._alive_since = now
        self._beat, self._revision, self._lease = now, heartbeat.mod_revision, heartbeat.lease

    def stop(self) -> None:
        """The heartbeat is gone."""
        self._beat = None

    @property
    def silent_from(self) -> float:
        """When it is to be taken for dead if nothing more is heard of it."""
        return (self._began if self._beat is None else self._beat) + self._terms.silence

    def proof(self, lease: int | None, now: float) -> int | None:
        """From which revision on it is believed about a table whose canary has `lease` (None: there is no canary), and
        None where it is not: it has written all it has if it wrote the canary, or has been beating for a while."""
        if self._beat is None or not self._lives(now):
            return None
        settled = self._beat >= self._alive_since + self._terms.settle
        return self._revision if settled or lease == self._lease else None

    def _lives(self, now: float) -> bool:
        return self._beat is not None and now < self.silent_from
