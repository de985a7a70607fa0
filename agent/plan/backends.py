"""Backends -> numbers, under which lb_backends holds them, with the state they are in. Pure but for its tracker.

A backend keeps its number as long as anybody uses it, whatever its state: by it connections know that it is there
still. Services may differ on the state of a backend they share; the map says the best of it, since a service gives only
those that are in its slots. A number is not used again until all others were, so that a lookup under way never meets
another service's backend.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import chain, filterfalse, repeat
from typing import Final

from agent.bpf.layouts import Number, as_active, in_state, packer, unpack_numbers
from clustermesh.deltas import Deltas
from clustermesh.model import BackendState

_MOST: Final = 0xFFFFFFFF
_NUMBER: Final = packer(Number)


class BackendNumbers:
    """By value, as the map has it for an active one: of two clusters with a backend at one address each has its own."""

    def __init__(self, table: Deltas[bytes, bytes]) -> None:
        self._table = table
        self._numbers: dict[bytes, bytes] = {}
        self._more_users: dict[bytes, int] = {}  # how many have it as an active one, beyond the first
        self._resting: dict[bytes, list[BackendState]] = {}  # what those say who have it otherwise
        self._unused = _unused(table.desired, 1)

    def adopt(self) -> None:
        """Take over the numbers that the kernel holds (the tracker must have been audited)."""
        actual = self._table.actual
        self._numbers = {as_active(value): key for key, value in actual.items()}
        self._unused = _unused(self._table.desired, max(unpack_numbers(actual), default=0) + 1)

    def get(self, value: bytes) -> bytes:
        """Its number; `value` itself where it has none, which is no number either."""
        return self._numbers.get(value, value)

    def of(self, values: Iterable[bytes]) -> list[bytes]:
        """Those that each of these has."""
        return [*map(self._numbers.__getitem__, values)]

    def __contains__(self, value: bytes) -> bool:
        return value in self._numbers

    def acquire(self, values: Iterable[bytes]) -> None:
        """Each of these has a number, and one more user that has it as an active one."""
        numbers, used, first = self._numbers, self._table.desired, dict[bytes, bytes]()
        for value in values:
            if (key := numbers.get(value)) is None:
                key = numbers[value] = next(self._unused)
            elif key in first or used.get(key) == value:
                self._more_users[value] = self._more_users.get(value, 0) + 1
                continue
            first[key] = value
        self._table.set_all(first)

    def release(self, values: Iterable[bytes]) -> None:
        """Undo `acquire`."""
        for value in values:
            more = self._more_users.pop(value, 0)
            if more > 1:
                self._more_users[value] = more - 1
            elif not more:
                self._rest_or_go(value)

    def acquire_resting(self, those: Iterable[tuple[bytes, BackendState]]) -> None:
        """Each of these has a number, and one more user that has it in this state."""
        for value, state in those:
            if (key := self._numbers.get(value)) is None:
                key = self._numbers[value] = next(self._unused)
            self._resting.setdefault(value, []).append(state)
            if self._table.desired.get(key) != value:
                self._rest_or_go(value)

    def release_resting(self, those: Iterable[tuple[bytes, BackendState]]) -> None:
        """Undo `acquire_resting`."""
        for value, state in those:
            self._resting[value].remove(state)
            if not self._resting[value]:
                del self._resting[value]
            if self._table.desired[self._numbers[value]] != value:
                self._rest_or_go(value)

    def _rest_or_go(self, value: bytes) -> None:
        """Nobody has it as an active one."""
        if states := self._resting.get(value):
            self._table.set(self._numbers[value], in_state(value, min(states)))
        else:
            self._table.remove(self._numbers.pop(value))


def _unused(used: Container[bytes], number: int) -> Iterator[bytes]:
    """Keys of backends from `number` on, below which all are that are used. What else the kernel holds there goes, or
    is overwritten."""
    again = map(_NUMBER, chain.from_iterable(repeat(range(1, _MOST + 1))))
    return chain(map(_NUMBER, range(number, _MOST + 1)), filterfalse(used.__contains__, again))
