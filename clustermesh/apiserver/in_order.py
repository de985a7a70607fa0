"""What a watch tells of keys that are being written by us, put in order. Pure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clustermesh.store.operations import KeyValue


class InOrder:
    """What is told while keys are written or dumped waits until that has ended, and what is told of a key from before
    our last write of it is no news. A subclass says how to `_take` the rest in.

    `written` are the revisions of our writes, by key.
    """

    def __init__(self, written: dict[bytes, int]) -> None:
        self._written = written
        self._busy = False
        self._deferred: list[tuple[bytes, KeyValue | None, int]] = []

    def observe(self, key: bytes, kv: KeyValue | None, revision: int) -> None:
        """Take in what etcd held at `key` at `revision`."""
        if self._busy:
            self._deferred.append((key, kv, revision))
        elif revision >= self._written.get(key, 0):
            self._written.pop(key, None)
            self._take(key, kv)

    def start_over(self) -> None:
        """A complete list is about to be told, perhaps of another etcd whose revisions begin anew."""
        self._written.clear()

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
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
        deferred, self._deferred = self._deferred, []
        for entry in deferred:
            self.observe(*entry)
        self._busy = busy

    def _take(self, key: bytes, kv: KeyValue | None) -> None:
        raise NotImplementedError
