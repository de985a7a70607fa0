"""One source for all terms: who is deposed forgets what it has written, and not what the cluster has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from clustermesh.sources.snapshot import Backlog, Change
from clustermesh.sources.source import Source


class HeardSource:
    """`source`, and what it has told that is not acted on yet. `begun` once it told anything."""

    def __init__(self, source: Source) -> None:
        self.source, self.begun = source, asyncio.Event()
        self._backlog, self._news = Backlog(), asyncio.Event()
        self._hearing = asyncio.create_task(self._hear())

    async def end(self) -> None:
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)

    async def run(self) -> None:
        """Raises what ended the hearing, a fault of ours."""
        await asyncio.shield(self._hearing)

    def start_over(self) -> None:
        """Nothing of all that is known was acted on."""
        self._backlog.add_all(self.source.snapshot, time.time_ns())
        if self.begun.is_set():
            self._news.set()

    async def take(self, most: int) -> Change:
        """The next portion of what there is to act on, as soon as there is any."""
        await self._news.wait()
        change = self._backlog.take(most)
        if not self._backlog:
            self._news.clear()
        return change

    async def _hear(self) -> None:
        async with aclosing(self.source.updates()) as changes:
            async for change in changes:
                self._backlog.add(change)
                self.begun.set()
                self._news.set()


@asynccontextmanager
async def heard(source: Source) -> AsyncIterator[HeardSource]:
    """`source` is heard for as long as the block lasts."""
    made = HeardSource(source)
    try:
        yield made
    finally:
        await made.end()
