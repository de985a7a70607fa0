"""What lies in a prefix, without looking at everything else."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Set
from typing import Final, Generic, TypeVar

from clustermesh.address import BITS, Address, Prefix, contains, from_int, to_int

T = TypeVar("T")
EVERYWHERE: Final = Prefix(from_int(0), 0)
MOST: Final = 1024  # addresses of a block


def outermost(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Those of `prefixes` that lie in no other: together they hold the same addresses, and each only once."""
    found = list[Prefix]()
    for prefix in sorted(prefixes):  # one that holds others comes right before them
        if not found or not contains(found[-1], prefix.address):
            found.append(prefix)
    return found


class AddressIndex:
    """Addresses in order, in blocks: one that comes or goes moves those of its block, however many there are."""

    def __init__(self) -> None:
        self.blocks: list[list[Address]] = []  # none is empty, or has more than MOST
        self._firsts: list[Address] = []

    def add(self, address: Address) -> None:
        """Adding twice is adding once."""
        if not self.blocks:
            self.blocks, self._firsts = [[address]], [address]
            return
        at, block, place = self._find(address)
        if place < len(block) and block[place] == address:
            return
        block.insert(place, address)
        if place == 0:
            self._firsts[at] = address
        if len(block) > MOST:
            self._split(at, block)

    def discard(self, address: Address) -> None:
        """Absent is fine."""
        if not self.blocks:
            return
        at, block, place = self._find(address)
        if place == len(block) or block[place] != address:
            return
        del block[place]
        if not block:
            del self.blocks[at], self._firsts[at]
        elif place == 0:
            self._firsts[at] = block[0]

    def inside(self, prefix: Prefix = EVERYWHERE) -> Iterator[Address]:
        """Those that lie in `prefix`, in order, a block at a time: some may come and go meanwhile."""
        last = from_int(to_int(prefix.address) + (1 << (BITS - prefix.length)) - 1)
        found = self._some(prefix.address, last)
        while found:
            yield from found
            found = self._some(from_int(to_int(found[-1]) + 1), last) if found[-1] < last else []

    def _some(self, first: Address, last: Address) -> list[Address]:
        """Those of one block that lie between the two; none where there are none."""
        at, block, place = self._find(first) if self.blocks else (0, [], 0)
        if place == len(block) and at + 1 < len(self.blocks):
            block, place = self.blocks[at + 1], 0
        return block[place : bisect_right(block, last)]

    def _find(self, address: Address) -> tuple[int, list[Address], int]:
        """The block where it is, or would be, and the place there."""
        at = max(0, bisect_right(self._firsts, address) - 1)
        block = self.blocks[at]
        return at, block, bisect_left(block, address)

    def _split(self, at: int, block: list[Address]) -> None:
        half = block[MOST // 2 :]
        del block[MOST // 2 :]
        self.blocks.insert(at + 1, half)
        self._firsts.insert(at + 1, half[0])


class AddressBook(Generic[T]):
    """Who is at each address: any number of things, in the order in which they were added."""

    def __init__(self) -> None:
        # One thing stands by itself, several in a dict: most addresses have one, some have ten thousand.
        self._things: dict[Address, T | dict[T, None]] = {}
        self._index = AddressIndex()

    @property
    def addresses(self) -> Set[Address]:
        """Those where something is."""
        return self._things.keys()

    def add(self, address: Address, thing: T) -> None:
        there = self._things.get(address)
        if there is None:
            self._things[address] = thing
            self._index.add(address)
        elif isinstance(there, dict):
            there[thing] = None
        elif there != thing:
            self._things[address] = {there: None, thing: None}

    def discard(self, address: Address, thing: T) -> None:
        """Absent is fine."""
        there = self._things.get(address)
        if isinstance(there, dict):
            there.pop(thing, None)
        if there in (thing, {}):
            del self._things[address]
            self._index.discard(address)

    def at(self, address: Address) -> Iterable[T]:
        """What is there."""
        there = self._things.get(address)
        return there if isinstance(there, dict) else () if there is None else (there,)

    def inside(self, prefix: Prefix) -> Iterator[tuple[Address, T]]:
        """Everything at the addresses in `prefix`, in order of address."""
        for address in self._index.inside(prefix):
            there = self._things.get(address)  # whoever goes through them in turns may come when it has gone
            if isinstance(there, dict):
                yield from [(address, thing) for thing in there]
            elif there is not None:
                yield address, there
