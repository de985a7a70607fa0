"""What lies in a prefix, without looking at everything else."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Set
from typing import Final, Generic, TypeVar

from clustermesh.address import BITS, Address, Prefix, contains, from_int, to_int

T = TypeVar("T")
_FEW: Final = 128


def outermost(prefixes: Iterable[Prefix]) -> list[Prefix]:
    """Those of `prefixes` that lie in no other: together they hold the same addresses, and each only once."""
    found = list[Prefix]()
    for prefix in sorted(prefixes):  # one that holds others comes right before them
        if not found or not contains(found[-1], prefix.address):
            found.append(prefix)
    return found


class AddressIndex:
    """The addresses of `table` in order. Costs nothing until it is asked, and then what changed since it was asked.

    `table` is the truth, looked at when asked; whoever changes it says where (`touch`). What is no address is left out.
    """

    def __init__(self, table: Collection[object]) -> None:
        self._table = table
        self._order: list[Address] | None = None
        self._touched: set[Address] = set()

    def touch(self, address: Address) -> None:
        """`address` came into the table, or left it."""
        if self._order is None:
            return
        self._touched.add(address)
        if len(self._touched) > _FEW + len(self._order) // 8:  # sorting all of them is not dearer now
            self._order, self._touched = None, set()

    def inside(self, prefix: Prefix) -> list[Address]:
        """The addresses of the table that lie in `prefix`, in order."""
        order = self._ordered()
        if not order:
            return []
        last = from_int(to_int(prefix.address) + (1 << (BITS - prefix.length)) - 1)
        begin, end = bisect_left(order, prefix.address), bisect_left(order, last)
        return order[begin : end + (end < len(order) and order[end] == last)]

    def _ordered(self) -> list[Address]:
        if self._order is None:
            self._order = sorted(Address(each) for each in self._table if isinstance(each, bytes))
        if len(self._touched) <= _FEW:
            self._place_each(self._order)
        else:  # each alone would move all that lie behind it
            self._order = [address for address in self._order if address not in self._touched]
            self._order += [address for address in self._touched if address in self._table]
            self._order.sort()
        self._touched.clear()
        return self._order

    def _place_each(self, order: list[Address]) -> None:
        for address in self._touched:
            place = bisect_left(order, address)
            held = place < len(order) and order[place] == address
            if held and address not in self._table:
                del order[place]
            elif not held and address in self._table:
                order.insert(place, address)


class AddressBook(Generic[T]):
    """Who is at each address: any number of things, in the order in which they were added."""

    def __init__(self) -> None:
        # One thing stands by itself, several in a dict: most addresses have one, some have ten thousand.
        self._things: dict[Address, T | dict[T, None]] = {}
        self._index = AddressIndex(self._things)

    @property
    def addresses(self) -> Set[Address]:
        """Those where something is."""
        return self._things.keys()

    def add(self, address: Address, thing: T) -> None:
        there = self._things.get(address)
        if there is None:
            self._things[address] = thing
            self._index.touch(address)
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
            self._index.touch(address)

    def inside(self, prefix: Prefix) -> Iterator[tuple[Address, T]]:
        """Everything at the addresses in `prefix`, in order of address."""
        for address in self._index.inside(prefix):
            there = self._things.get(address)  # whoever goes through them in turns may come when it has gone
            if isinstance(there, dict):
                yield from [(address, thing) for thing in there]
            elif there is not None:
                yield address, there
