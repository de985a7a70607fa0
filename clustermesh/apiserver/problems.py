"""What is wrong now, said once as it comes and once as it goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Never

Say = Callable[[Sequence[str]], None]
"""Takes all that is wrong with one duty now, a sentence each."""
_AT_MOST: Final = 1.0
"""Seconds between two looks: one change of 100,000 is not the time to list 100,000 problems again."""


class ProblemLog:
    """`found` is what `list_all` told last; `log` is told what came and how many went."""

    def __init__(self, list_all: Callable[[], Iterable[str]], log: logging.Logger) -> None:
        self.found: tuple[str, ...] = ()
        self._list_all, self._log, self._due = list_all, log, asyncio.Event()

    def wake(self) -> None:
        """They may be others now. Costs nothing."""
        self._due.set()

    async def run(self) -> Never:
        while True:
            await self._due.wait()
            self._due.clear()
            self.look()
            await asyncio.sleep(_AT_MOST)

    def look(self) -> None:
        before, self.found = frozenset(self.found), tuple(self._list_all())
        now = dict.fromkeys(self.found)
        for problem in now:
            if problem not in before:
                self._log.warning("%s", problem)
        if gone := len(before - now.keys()):
            self._log.info("%d problems are solved, %d are left", gone, len(self.found))
