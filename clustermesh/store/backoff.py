"""How long to wait before the next attempt: doubling, with jitter, anew after a success that lasted. Pure.

`Backoff` is for one of a few: it is back soon. `Reconnect` is for one of thousands that lose one etcd in the same
instant: its first wait is longer, and drawn from the whole of it, so that etcd meets them one after the other.
"""

from __future__ import annotations

import random
from typing import Final

FIRST: Final = 0.05
LAST: Final = 30.0
SHORT: Final = 1.0
SPREAD: Final = 1.0
SOON: Final = 2.0
STEADY: Final = 5.0


class Backoff:
    """Waits of `first` seconds doubling up to `last`, each shortened at random by up to half."""

    def __init__(self, first: float = FIRST, last: float = LAST, rng: random.Random | None = None) -> None:
        self._first, self._last = first, last
        self._rng = rng or random.Random()
        self._delay = 0.0

    def next(self, lasted: float = 0.0, at_least: float = 0.0) -> float:
        """Seconds to wait now.

        `lasted` is for how many seconds the last attempt went well, 0 where it did not: where that was longer than the
        wait before it, waiting begins anew; where it went well at all, the wait stays below `SHORT`. The wait before
        jitter is never under `at_least`.
        """
        doubled = self._first if lasted > self._delay else max(self._first, self._delay * 2)
        self._delay = max(min(doubled, SHORT if lasted else self._last), at_least)
        return self._delay * self._rng.uniform(0.5, 1.0)


class Reconnect:
    """When those who share one connection try it again: all at the same time, anything up to `SPREAD` seconds after it
    went well, and later and later while it does not. It went well where it lasted longer than the wait before it, or
    `STEADY` seconds: who answers, and then does harm each time, is asked more and more seldom. Where `nobody` listens,
    as while etcd moves to another node, that costs nobody there anything: it is tried again within `SOON`, or, where
    harm was done since it last went well, after as long as that has earned."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._delay = self._earned = 0.0
        self._at = 0.0

    def wait(self, now: float, lasted: float, *, nobody: bool = False) -> float:
        """Seconds to wait from `now` on for one of them, for whom it `lasted` so many before it failed, or 0."""
        if now >= self._at:
            went_well = lasted > min(self._delay, STEADY)
            if went_well:
                self._delay, self._earned = SPREAD, 0.0
            elif nobody:
                self._delay = self._earned or min(max(self._delay * 2, SPREAD), SOON)
            else:
                self._delay = self._earned = min(max(self._delay * 2, SPREAD), LAST)
            self._at = now + self._delay * self._rng.uniform(0.0 if went_well else 0.5, 1.0)
        return self._at - now
