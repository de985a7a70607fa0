"""Conntrack is gone over in a thread, now and then: the more was over, the sooner again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent.conntrack.collector import Collector

_log = logging.getLogger(__name__)


class Conntrack:
    """`fd` is the map ct, `direct` ct_direct. `met` is what the last pass met, by family, protocol and status;
    `collected` what all of them took out."""

    def __init__(self, fd: int, direct: int) -> None:
        self._fd, self._direct = fd, direct
        self.met: dict[tuple[str, str, str], int] = {}
        self.collected = self.passes = 0
        self.error = ""

    async def run(self) -> None:
        """Never returns."""
        from agent.conntrack.collector import FIRST, Collector, next_interval

        interval = FIRST
        while True:
            await asyncio.sleep(interval)
            interval = next_interval(interval, await self._pass([Collector(self._fd), Collector(self._direct)]))

    async def _pass(self, collectors: list[Collector]) -> float:
        """The most that was taken out of one, as part of its room."""
        try:
            found = [await asyncio.to_thread(each.collect) for each in collectors]
        except OSError as e:
            self.error = f"conntrack cannot be gone over: {e}"
            _log.warning("%s", self.error)
            return 0
        self.error, self.met = "", dict(sum((each.met for each in found), Counter()))
        self.passes += 1
        self.collected += sum(each.collected for each in found)
        return max(each.collected / collector.room for each, collector in zip(found, collectors, strict=True))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every entry there is now."""
        from agent.conntrack.listing import rows

        return rows(self._fd)
