"""Who has what several want and only one can have: the first of them in order, whoever came when. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from typing import Any, Generic, TypeVar

W = TypeVar("W", bound=tuple[Any, ...])  # who
K = TypeVar("K", bound=Hashable)  # what


class Shares(Generic[W, K]):
    """`want` and `leave`, then ask for the `holder`. A change costs the same however many there are."""

    def __init__(self) -> None:
        self._wanted_by: dict[K, list[W]] = {}  # in order

    def want(self, who: W, things: Iterable[K]) -> None:
        """`who` wants each of `things`, none of which it wants already."""
        for thing in things:
            insort(self._wanted_by.setdefault(thing, []), who)

    def leave(self, who: W, things: Iterable[K]) -> None:
        """`who`, which wants each of `things`, does not any more."""
        for thing in things:
            wanted_by = self._wanted_by[thing]
            del wanted_by[bisect_left(wanted_by, who)]
            if not wanted_by:
                del self._wanted_by[thing]

    def holder(self, thing: K) -> W | None:
        wanted_by = self._wanted_by.get(thing)
        return None if wanted_by is None else wanted_by[0]
