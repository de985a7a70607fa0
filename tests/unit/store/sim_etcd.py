"""A stupid etcd: a list of everything ever written. It answers the follower's three questions by going through it."""

from __future__ import annotations

import random

from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follower import Deleted, Event, Put, WatchMessage
from clustermesh.store.operations import KeyValue, Listing


class SimEtcd:
    """`lease` stands for what makes one etcd's keys differ from another's."""

    def __init__(self, cluster_id: int, lease: int) -> None:
        self.cluster_id, self.lease = cluster_id, lease
        self.revision = 1
        self.compacted = 0
        self.history: list[tuple[int, Event]] = []

    def write(self, changes: dict[bytes, bytes | None]) -> None:
        """One transaction; None deletes, and deleting what is absent is no change."""
        present = self.content(self.revision)
        effective = {key: value for key, value in changes.items() if value is not None or key in present}
        if effective:
            self.revision += 1
            for key, value in effective.items():
                event = Deleted(key) if value is None else Put(KeyValue(key, value, self.revision, self.lease))
                self.history.append((self.revision, event))

    def compact(self) -> None:
        self.compacted = self.revision

    def content(self, revision: int) -> dict[bytes, KeyValue]:
        found: dict[bytes, KeyValue] = {}
        for written, event in self.history:
            if written <= revision:
                if isinstance(event, Put):
                    found[event.kv.key] = event.kv
                else:
                    found.pop(event.key, None)
        return found

    def listing(self) -> Listing:
        found = self.content(self.revision)
        return Listing(self.revision, [found[key] for key in sorted(found)], self.cluster_id)

    def get(self, key: bytes, revision: int) -> KeyValue | None:
        if revision > self.revision:
            raise Replaced("future revision")
        if revision < self.compacted:
            raise Compacted("compacted")
        return self.content(revision).get(key)

    def open_watch(self, start: int) -> WatchMessage:
        if start < self.compacted:
            return WatchMessage(self.revision, self.cluster_id, canceled=True, compact_revision=self.compacted)
        return WatchMessage(self.revision, self.cluster_id, created=True)

    def messages(self, start: int, rng: random.Random) -> list[WatchMessage]:
        """Everything from `start` on: several revisions to a response, each response in fragments, as chance will."""
        messages: list[WatchMessage] = []
        revisions = sorted({written for written, _ in self.history if written >= start})
        while revisions:
            batch = revisions[: rng.randrange(1, 4)]
            revisions = revisions[len(batch) :]
            events = [entry for entry in self.history if entry[0] in batch]
            while events:
                piece, events = _split(events, rng)
                messages.append(
                    WatchMessage(self.revision, self.cluster_id, fragment=bool(events), events=tuple(piece))
                )
        return messages


def _split(
    events: list[tuple[int, Event]], rng: random.Random
) -> tuple[list[tuple[int, Event]], list[tuple[int, Event]]]:
    at = rng.randrange(1, len(events) + 1)
    return events[:at], events[at:]
