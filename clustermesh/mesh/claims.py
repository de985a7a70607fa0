"""What belongs to whom: prefixes of addresses, of both families alike, and who of all that hold something holds them.

A claim that is, or overlaps, another holder's is a conflict; the first one stands until it is withdrawn. Claims of one
holder may lie in each other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final, NamedTuple

from clustermesh.address import BITS, Address, Prefix, from_int, to_int


class Holder(NamedTuple):
    """Who claims: a node of a cluster."""

    cluster: str
    node: str

    def __str__(self) -> str:
        return f"node {self.node} of cluster {self.cluster}"


class Claim(NamedTuple):
    """`prefix` is `holder`'s."""

    holder: Holder
    prefix: Prefix


class Claims:
    """Prefix -> holder. What two of them claim never overlaps: call `claim` only where `conflict` found none."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, Holder]] = {}  # length -> first address, as a number -> holder
        self._starts: dict[int, list[int]] = {}  # of the same, in order

    def conflict(self, holder: Holder, prefix: Prefix) -> Claim | None:
        """A claim of another holder that overlaps `prefix`, or None."""
        around = self.around(prefix)
        if around is not None:  # whoever holds all of it holds all that is in it
            return None if around.holder == holder else around
        return next((claim for claim in self.inside(prefix) if claim.holder != holder), None)

    def claim(self, holder: Holder, prefix: Prefix) -> None:
        """Claiming twice is claiming once."""
        first, table = to_int(prefix.address), self._by_length.setdefault(prefix.length, {})
        if first not in table:
            insort(self._starts.setdefault(prefix.length, []), first)
        table[first] = holder

    def withdraw(self, holder: Holder, prefix: Prefix) -> None:
        """Undo `claim`; a claim that is not held is withdrawn already."""
        first, table = to_int(prefix.address), self._by_length.get(prefix.length, {})
        if table.get(first) != holder:
            return
        del table[first]
        starts = self._starts[prefix.length]
        del starts[bisect_left(starts, first)]
        if not table:
            del self._by_length[prefix.length], self._starts[prefix.length]

    def owner(self, address: Address) -> Holder | None:
        """Who claims `address`, or None."""
        number = to_int(address)
        for length, table in self._by_length.items():
            if (holder := table.get(number & _MASKS[length])) is not None:
                return holder
        return None

    def around(self, prefix: Prefix) -> Claim | None:
        """A claim that holds all of `prefix`, or None; all there are, are of one holder."""
        first = to_int(prefix.address)
        for length, table in self._by_length.items():
            if length <= prefix.length and (holder := table.get(first & _MASKS[length])) is not None:
                return Claim(holder, Prefix(from_int(first & _MASKS[length]), length))
        return None

    def inside(self, prefix: Prefix) -> Iterator[Claim]:
        """The claims that lie in `prefix`."""
        first = to_int(prefix.address)
        end = first + (1 << (BITS - prefix.length))
        for length, starts in self._starts.items():
            if length >= prefix.length:
                for start in starts[bisect_left(starts, first) : bisect_left(starts, end)]:
                    yield Claim(self._by_length[length][start], Prefix(from_int(start), length))


_MASKS: Final = tuple(((1 << length) - 1) << (BITS - length) for length in range(BITS + 1))
