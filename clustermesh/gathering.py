"""How many changes go together: what is written in one transaction costs etcd, and whoever reads it, less. Pure."""

from __future__ import annotations

import math


class Gathering:
    """A pass that writes keeps the next one waiting until `seconds` after its beginning. So a change alone waits for
    nothing, and many go at once; a pass that finds nothing to write, as after the echo of a write, counts for nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._until = seconds, -math.inf

    def begin(self, now: float, *, writes: bool) -> None:
        """A pass begins."""
        if writes:
            self._until = now + self._seconds

    def wait(self, now: float) -> float:
        """Seconds until the next one may."""
        return max(self._until - now, 0.0)
