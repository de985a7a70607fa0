"""Conntrack is gone over in a thread, now and then: the more was over, the sooner again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.conntrack.collector import Collector

_log = logging.getLogger(__name__)


class Conntrack:
    """`fd` is the map ct. `met` is what the last pass met, by family, protocol and status; `collected` what all of them
    took out."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.met: dict[tuple[str, str, str], int] = {}
        self.collected = self.passes = 0
        self.error = ""

    async def run(self) -> None:
        """Never returns."""
        from agent.conntrack.collector import FIRST, Collector, next_interval

        interval = FIRST
        while True:
            await asyncio.sleep(interval)
            collector = Collector(self._fd)
            taken = await self._pass(collector)
            interval = next_interval(interval, taken / collector.room)

    async def _pass(self, collector: Collector) -> int:
        try:
            found = await asyncio.to_thread(collector.collect)
        except OSError as e:
            self.error = f"conntrack cannot be gone over: {e}"
            _log.warning("%s", self.error)
            return 0
        self.error, self.met = "", dict(found.met)
        self.passes += 1
        self.collected += found.collected
        return found.collected

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every entry there is now."""
        from agent.conntrack.listing import rows

        return rows(self._fd)
