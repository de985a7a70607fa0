"""How much is asked of a server: so many requests at once, and so many a second. Both are settings, and high."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

BURST: Final = 0.1
"""Seconds whose requests may come all together."""


class Load(Struct, frozen=True, kw_only=True):
    """Requests under way at a time, and requests a second."""

    at_once: int
    per_second: float


class Pace:
    """`async with` it around each request: who comes too early waits, in the order of coming."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._slots = asyncio.Semaphore(load.at_once)
        self._due = 0.0

    async def __aenter__(self) -> Self:
        await self._slots.acquire()
        try:
            wait = self._take_turn(asyncio.get_running_loop().time())
            if wait > 0:
                await asyncio.sleep(wait)
        except BaseException:
            self._slots.release()
            raise
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._slots.release()

    def _take_turn(self, now: float) -> float:
        """Seconds until whoever asks now may go on."""
        self._due = max(self._due, now - BURST) + 1 / self.load.per_second
        return self._due - now
