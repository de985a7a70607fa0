"""A thread of a target's own: what hangs there takes nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class OwnThread:
    """One call after the other."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)

    async def do(self, work: Callable[[*Ts], T], *given: *Ts) -> T:
        """In the thread. Who is cancelled waits for its end nevertheless: whatever is begun next comes after it."""
        doing = asyncio.get_running_loop().run_in_executor(self._thread, work, *given)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait({doing})
            raise
