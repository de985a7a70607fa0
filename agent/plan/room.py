"""How much room the maps of services have left. Pure.

What is to go takes room until it is gone: the kernel is written to first, and nothing is deleted for a while after a
start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from clustermesh.deltas import Deltas


class Room:
    """`most` is how many entries each of the tables takes, in their order."""

    def __init__(self, tables: Mapping[str, Deltas[bytes, bytes]], most: Sequence[int]) -> None:
        self._tables, self._most = tables, dict(zip(tables, most, strict=True))
        self._each = list(zip(tables.values(), most, strict=True))

    def may_lack(self, size: int) -> bool:
        """Whether one of them might not take so many more. Asked of each service, so that it must cost nothing."""
        for table, most in self._each:  # noqa: SIM110  # a generator takes twice as long
            if len(table.desired) + table.surplus + size > most:
                return True
        return False

    def lack(self, wanted: Mapping[str, Collection[bytes]]) -> str:
        """Which of them does not take all of these keys, or nothing."""
        for name, keys in wanted.items():
            more, free = sum(not self._holds(name, key) for key in keys), self._free(name)
            if more > max(free, 0):
                most = self._most[name]
                why = f"it needs {more} more entries of the map lb_{name}, where {most - free} of {most} are taken"
                return f"{why}; fewer services or backends make room"
        return ""

    def filler(self) -> Callable[[str, bytes], bool]:
        """Asked of one key after the other: whether a table has it, or room for it beside those before."""
        free = {name: self._free(name) for name in self._tables}
        taken = set[tuple[str, bytes]]()

        def fits(name: str, key: bytes) -> bool:
            if (name, key) in taken or self._holds(name, key):
                return True
            if free[name] <= 0:
                return False
            free[name] -= 1
            taken.add((name, key))
            return True

        return fits

    def _holds(self, name: str, key: bytes) -> bool:
        return key in self._tables[name].desired or key in self._tables[name].actual

    def _free(self, name: str) -> int:
        return self._most[name] - len(self._tables[name].desired) - self._tables[name].surplus
