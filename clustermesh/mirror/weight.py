"""How much one peer may have copied: so many bytes, whatever they are, and so many exported ports. Pure.

What there is no room for is forgotten but for its name, with what it was to replace, which is no more. Its cluster has
to say it again: once there is room, the kind is `short`, and whoever reads it lists it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

from msgspec import Struct

from clustermesh.errors import DecodeError
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.wire import service_export
from clustermesh.wire.kinds import SERVICE_EXPORTS

KEY_COST: Final = 512
"""Bytes that an entry costs beside its value, in keys, names and tables."""
_MOST_NAMED: Final = 10_000
_ROOM: Final = 0.9  # of what it may have, a peer has so much at most when what was left out is asked for again


def _bytes(value: bytes | None) -> int:
    return 0 if value is None else KEY_COST + len(value)


def _ports(value: bytes | None) -> int:
    if value is None:
        return 0
    try:
        return len(service_export.decode(value).ports) or 1
    except DecodeError:
        return 1


class _Measure(Struct, frozen=True):
    """What is weighed: what a value costs, under which name what is left out is refused, and why."""

    cost: Callable[[bytes | None], int]
    name: str
    why: str


_COPIES: Final = _Measure(_bytes, "copies", "has more than {} bytes to be copied")
_EXPORTS: Final = _Measure(_ports, "exports", "exports services with more than {} ports, each of which takes room here")


class Weights:
    """Of one peer. What is left out is said in what `refusals` returns."""

    def __init__(self, refusals: Callable[[], Refusals]) -> None:
        self._copies, self._exports = Weight(_COPIES, refusals), Weight(_EXPORTS, refusals)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._copies.total

    @property
    def short(self) -> Set[str]:
        return self._copies.short | self._exports.short

    @property
    def kinds_dropped(self) -> Set[str]:
        """Of which something was left out."""
        return self._copies.kinds_dropped | self._exports.kinds_dropped

    def take(self, kind: str, name: Any, before: bytes | None, value: bytes | None, limits: Limits) -> bool:
        """Whether there is room for `value` in the place of `before`. If there is none, neither of them is copied."""
        counts = kind == SERVICE_EXPORTS
        if counts and not self._exports.take(kind, name, before, value, limits.exports):
            self._copies.take(kind, name, before, None, limits.copied_bytes)
            return False
        if self._copies.take(kind, name, before, value, limits.copied_bytes):
            return True
        if counts:
            self._exports.take(kind, name, value, None, limits.exports)
        return False

    def found(self, kind: str, value: bytes) -> None:
        """`value` stands already: it counts, whether or not there would be room for it."""
        self._copies.found(value)
        if kind == SERVICE_EXPORTS:
            self._exports.found(value)

    def begin_list(self, kind: str) -> None:
        """All of `kind` is about to be said anew: it has room, or is left out again."""
        for each in (self._copies, self._exports):
            each.begin_list(kind)


class Weight:
    """Of one peer by one measure."""

    def __init__(self, measure: _Measure, refusals: Callable[[], Refusals]) -> None:
        self.total = 0
        self._measure = measure
        self.short: set[str] = set()
        self._refusals = refusals
        self._dropped: dict[str, set[Any]] = {}

    @property
    def kinds_dropped(self) -> Set[str]:
        """Of which something was left out."""
        return self._dropped.keys()

    def take(self, kind: str, name: Any, before: bytes | None, value: bytes | None, most: int) -> bool:
        """As of both, where the peer may have `most` in all."""
        cost = self._measure.cost
        grows = cost(value) - cost(before)
        if grows > 0 and self.total + grows > most:
            self.total -= cost(before)
            self._drop(kind, name, most)
            if before is not None and self.total < most * _ROOM:
                self.short |= self._dropped.keys()
            return False
        self.total += grows
        if self._dropped:
            self._forget(kind, name, most)
            if self.total < most * _ROOM:
                self.short |= self._dropped.keys()
        return True

    def found(self, value: bytes) -> None:
        self.total += self._measure.cost(value)

    def begin_list(self, kind: str) -> None:
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
            why = f"{self._measure.why.format(most)}, which is the limit: {number} {kind} are not copied"
            refusal = Refusal(Reason.LIMIT, why, len(dropped))
        self._refusals().set(self._measure.name, kind, refusal)
