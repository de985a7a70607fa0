"""How many bytes one peer may have copied, whatever they are. Pure.

What there is no room for is forgotten but for its name, with what it was to replace, which is no more. Its cluster has
to say it again: once there is room, the kind is `short`, and whoever reads it lists it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

from clustermesh.mesh.refusals import Reason, Refusal, Refusals

KEY_COST: Final = 512
"""Bytes that an entry costs beside its value, in keys, names and tables."""
_MOST_NAMED: Final = 10_000
_ROOM: Final = 0.9  # of what it may have, a peer has so much at most when what was left out is asked for again


class Weight:
    """Of one peer. What is left out is said in what `refusals` returns."""

    def __init__(self, refusals: Callable[[], Refusals]) -> None:
        self.bytes = 0
        self.short: set[str] = set()
        self._refusals = refusals
        self._dropped: dict[str, set[Any]] = {}

    @property
    def kinds_dropped(self) -> Set[str]:
        """Of which something was left out."""
        return self._dropped.keys()

    def take(self, kind: str, name: Any, before: bytes | None, value: bytes | None, most: int) -> bool:
        """Whether there is room for `value` in the place of `before` where the peer may have `most` bytes in all. If
        there is none, neither of them is copied."""
        grows = _cost(value) - _cost(before)
        if grows > 0 and self.bytes + grows > most:
            self.bytes -= _cost(before)
            self._drop(kind, name, most)
            if before is not None and self.bytes < most * _ROOM:
                self.short |= self._dropped.keys()
            return False
        self.bytes += grows
        if self._dropped:
            self._forget(kind, name, most)
            if self.bytes < most * _ROOM:
                self.short |= self._dropped.keys()
        return True

    def found(self, value: bytes) -> None:
        """`value` stands already: it counts, whether or not there would be room for it."""
        self.bytes += _cost(value)

    def begin_list(self, kind: str) -> None:
        """All of `kind` is about to be said anew: it has room, or is left out again."""
        self.short.discard(kind)
        self._tell(kind, set(), 0)

    def _drop(self, kind: str, name: Any, most: int) -> None:
        dropped = self._dropped.get(kind, set())
        if len(dropped) < _MOST_NAMED:
            dropped.add(name)
        self.short.discard(kind)
        self._tell(kind, dropped, most)

    def _forget(self, kind: str, name: Any, most: int) -> None:
        dropped = self._dropped.get(kind, set())
        if name in dropped and len(dropped) < _MOST_NAMED:  # beyond that there are some that have no name here
            dropped.discard(name)
            self._tell(kind, dropped, most)

    def _tell(self, kind: str, dropped: set[Any], most: int) -> None:
        self._dropped.pop(kind, None)
        refusal = None
        if dropped:
            self._dropped[kind] = dropped
            number = f"{_MOST_NAMED} or more" if len(dropped) >= _MOST_NAMED else len(dropped)
            why = f"has more than {most} bytes to be copied, which is the limit: {number} {kind} are not copied"
            refusal = Refusal(Reason.LIMIT, why, len(dropped))
        self._refusals().set("copies", kind, refusal)


def _cost(value: bytes | None) -> int:
    return 0 if value is None else KEY_COST + len(value)
