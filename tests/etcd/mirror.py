"""The simplest user of `follow`: a table of what it told, and a diary of how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Deleted, Interrupted, Item, Listed, Put, follow

PATIENCE = 60.0  # seconds that any one thing may take before a test gives up


class Mirror:
    """Follows `prefix` while its block lasts."""

    def __init__(self, client: EtcdClient, prefix: bytes, **options: Any) -> None:
        self.table: dict[bytes, bytes] = {}
        self.items: list[Item] = []
        self._follow = follow(client, prefix, **options)
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    @property
    def errors(self) -> list[ClusterMeshError]:
        return [item.error for item in self.items if isinstance(item, Interrupted)]

    @property
    def lists(self) -> list[Listed]:
        return [item for item in self.items if isinstance(item, Listed)]

    @property
    def deletions(self) -> list[bytes]:
        """Every deletion ever told."""
        told = (event for item in self.items if isinstance(item, Listed | Changed) for event in item.events)
        return [event.key for event in told if isinstance(event, Deleted)]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds`, looking after each item."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(holds)

    async def until_table(self, table: dict[bytes, bytes]) -> None:
        await self.until(lambda: self.table == table)

    async def until_listed(self) -> None:
        await self.until(lambda: bool(self.lists))

    async def until_up(self) -> None:
        """Wait until the last word is not an interruption."""
        await self.until(lambda: bool(self.items) and not isinstance(self.items[-1], Interrupted))

    async def until_error(self, kind: type[ClusterMeshError]) -> None:
        await self.until(lambda: any(isinstance(error, kind) for error in self.errors))

    async def _run(self) -> None:
        async with aclosing(self._follow) as items:
            async for item in items:
                async with self._news:
                    self._take(item)
                    self._news.notify_all()

    def _take(self, item: Item) -> None:
        self.items.append(item)
        for event in () if isinstance(item, Interrupted) else item.events:
            if isinstance(event, Put):
                self.table[event.kv.key] = event.kv.value
            else:
                del self.table[event.key]


@asynccontextmanager
async def heard(client: EtcdClient, prefix: bytes, *but: bytes) -> AsyncIterator[list[bytes]]:
    """The keys under `prefix` of which a reader is told while the block lasts, but for those that begin as `but`."""
    told: list[bytes] = []
    marker = prefix + b"marker"
    async with Mirror(client, prefix) as mirror:
        await mirror.until_listed()
        before = len(mirror.items)
        yield told
        await client.put(marker, b"")
        await mirror.until(lambda: marker in mirror.table)
        for item in mirror.items[before:]:
            events = () if isinstance(item, Interrupted) else item.events
            told += [each.kv.key if isinstance(each, Put) else each.key for each in events]
    await client.delete(marker)
    told[:] = [key for key in told if not key.startswith((*but, marker))]


async def content(client: EtcdClient, prefix: bytes) -> dict[bytes, bytes]:
    """What etcd holds under `prefix`, in one unpaged look."""
    return {kv.key: kv.value for kv in (await client.range(prefix, page=1_000_000)).kvs}


async def answering(client: EtcdClient) -> None:
    """Wait until `client` gets an answer again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await client.get(b"any")
                return
            except Unavailable:
                await asyncio.sleep(0.05)
