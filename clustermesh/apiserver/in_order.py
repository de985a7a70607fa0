"""What is told of keys that are being written by us, put in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from clustermesh.store.follow import Changed, Listed, Put
from clustermesh.store.operations import KeyValue


class InOrder:
    """What is told while keys are written or dumped waits until that has ended, and what is told of a key from before
    our last write of it is no news. A subclass says how to `_take` the rest in.

    `written` are the revisions of our writes, by key.
    """

    def __init__(self, written: dict[bytes, int]) -> None:
        self._written = written
        self._busy = False
        self._deferred: dict[bytes, tuple[KeyValue | None, int]] = {}

    def observe(self, key: bytes, kv: KeyValue | None, revision: int) -> None:
        """Take in what etcd held at `key` at `revision`."""
        written = self._written.get(key, 0)
        if written == revision:  # the echo of what we wrote, which nothing told before can change
            self._written.pop(key, None)
            self._deferred.pop(key, None)
        elif self._busy:
            self._deferred[key] = kv, revision
        elif written < revision:
            self._written.pop(key, None)
            self._take(key, kv)

    def lose_lease(self, key: bytes) -> None:
        """Take in that `key`'s lease is gone, whether or not etcd has deleted the key by now."""
        raise NotImplementedError

    def start_over(self, place: bytes) -> set[bytes]:
        """A complete list of `place` is about to be told, perhaps of another etcd whose revisions begin anew. The keys
        that were known there."""
        for key in [key for key in self._written if key.startswith(place)]:
            del self._written[key]
        return {key for key in self._known() if key.startswith(place)}

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While keys are written or dumped."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._catch_up()

    def _catch_up(self) -> None:
        """What was written by now is settled: what was told meanwhile can be compared with it."""
        busy, self._busy = self._busy, False
        deferred, self._deferred = self._deferred, {}
        for key, (kv, revision) in deferred.items():
            self.observe(key, kv, revision)
        self._busy = busy

    def _known(self) -> Iterable[bytes]:
        """The keys that etcd has, as far as is known."""
        raise NotImplementedError

    def _take(self, key: bytes, kv: KeyValue | None) -> None:
        raise NotImplementedError


S = TypeVar("S", bound=InOrder)


class Sections(Generic[S]):
    """Several of these by name, together all that is told under some places. A subclass says which has a key."""

    def __init__(self, sections: Iterable[tuple[str, S]]) -> None:
        self.sections = dict(sections)
        self._unseen: dict[bytes, set[bytes]] = {}  # what a list under way has not told of yet, by its place

    def __getitem__(self, name: str) -> S:
        return self.sections[name]

    def take(self, place: bytes, item: Listed | Changed) -> None:
        """Take in what is told of `place`, by a follower that keeps the newest keys: a list is told whole, and what is
        not in one is not there. Keys that are in no section are nobody's business here."""
        if isinstance(item, Listed):
            self._take_part(place, item)
            return
        for event in item.events:
            if isinstance(event, Put):
                self._observe(event.kv.key, event.kv, event.kv.mod_revision)
            else:
                self._observe(event.key, None, item.revision)

    def interrupt(self, place: bytes) -> None:
        """A list under way has come to no end."""
        self._unseen.pop(place, None)

    def lose_leases(self, lost: frozenset[bytes]) -> None:
        for key in lost:
            if (section := self._of(key)) is not None:
                section.lose_lease(key)

    def _take_part(self, place: bytes, part: Listed) -> None:
        if place not in self._unseen:
            under = (section.start_over(place) for section in self.sections.values())
            self._unseen[place] = set[bytes]().union(*under)
        unseen = self._unseen[place]
        for event in part.events:
            if isinstance(event, Put):
                unseen.discard(event.kv.key)
                self._observe(event.kv.key, event.kv, event.kv.mod_revision)
        if not part.more:
            del self._unseen[place]
            for key in unseen:
                self._observe(key, None, part.revision)

    def _observe(self, key: bytes, kv: KeyValue | None, revision: int) -> None:
        if (section := self._of(key)) is not None:
            section.observe(key, kv, revision)

    def _of(self, key: bytes) -> S | None:
        raise NotImplementedError
