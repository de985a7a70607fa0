"""Waiting for something to become true, never for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from clustermesh.errors import Unavailable

_POLL_SECONDS = 0.02


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    what: str,
    seconds: float = 60.0,
    why: Callable[[], str] = lambda: "",
) -> float:
    """The seconds it took. Unavailable after `seconds`: says `what` did not happen, and what `why` knows of it."""
    begun = time.monotonic()
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return time.monotonic() - begun
        if time.monotonic() - begun > seconds:
            raise Unavailable(f"{what}: not within {seconds:.0f} s. {why()}".rstrip(". "))
        await asyncio.sleep(_POLL_SECONDS)
