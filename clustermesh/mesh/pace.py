"""How many readers may be at what at the same time, so that hundreds that begin together are done sooner; and how much
of the event loop, which all share, one of them may take.

Each list held in part, and each answer that nobody has time to hear, costs memory and time-outs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_AT_ONCE: Final = 8
_HOLD: Final = 5.0  # seconds; one that hangs delays the next by so much, and no more
_PATIENCE: Final = 60.0
SHARE: Final = 0.33  # of the loop, for what one peer changes, for ever
SAVED: Final = 3.0  # seconds of it that may be saved up; all of 10,000 services cost one or two
LONGEST: Final = 1.0  # seconds of one wait: whoever is in debt is heard on, be it slowly


class Pace:
    """`turn` is held while a part is taken in, `begin` is called before lists are asked for."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def begin(self) -> Callable[[], None]:
        """Wait until there are few enough others, but not for ever; call what is returned when the lists are in."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._slots.acquire()
                return _once(self._slots.release)
        return lambda: None


def _once(release: Callable[[], None]) -> Callable[[], None]:
    """`release`, also when nobody calls it for long; and once only."""

    def end() -> None:
        if not timer.cancelled():
            timer.cancel()
            release()

    timer = asyncio.get_running_loop().call_later(_HOLD, end)
    return end


class Budget:
    """For how long the changes of one cluster may hold the loop: SHARE of the time that goes by, and at once what was
    saved up. A cost may leave a debt of up to SAVED; who has one waits, LONGEST at once, before more is heard. Pure."""

    def __init__(self) -> None:
        self._credit, self._at = SAVED, 0.0

    def spend(self, cost: float, now: float) -> float:
        """Seconds to wait from `now` on, where this did `cost` so much."""
        earned = (now - self._at) * SHARE
        self._credit, self._at = max(-SAVED, min(SAVED, self._credit + earned) - cost), now
        return min(LONGEST, max(0.0, -self._credit / SHARE))
