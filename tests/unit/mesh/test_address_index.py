"""What lies in a prefix, against a twin that looks at every address."""

from __future__ import annotations

import random
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import Address, Prefix, contains, masked, nth, parse, parse_prefix
from clustermesh.mesh import address_index
from clustermesh.mesh.address_index import MOST, AddressBook, AddressIndex, outermost

addresses = st.one_of(
    st.builds(lambda a, b: parse(f"10.0.{a}.{b}"), st.integers(0, 2), st.sampled_from([0, 1, 127, 128, 255])),
    st.builds(lambda a: parse(f"fd00::{a:x}"), st.sampled_from([0, 1, 0xFFFF])),
)
prefixes = st.builds(
    lambda address, length: Prefix(masked(address, length), length),
    addresses,
    st.sampled_from([0, 16, 80, 96, 104, 112, 119, 120, 121, 128]),
)
steps = st.lists(st.tuples(st.sampled_from(["add", "discard", "ask"]), addresses, prefixes, st.integers(0, 3)))


@given(steps)
def test_an_index_agrees_with_looking_at_every_address(script: list[tuple[str, Address, Prefix, int]]) -> None:
    table, index = set[Address](), AddressIndex()
    with patch.object(address_index, "MOST", 3):
        for step, address, prefix, _ in script:
            if step == "ask":
                assert list(index.inside(prefix)) == sorted(a for a in table if contains(prefix, a))
            elif step == "add":
                table.add(address)
                index.add(address)
            else:
                table.discard(address)
                index.discard(address)
            assert all(0 < len(block) <= 3 for block in index.blocks)
        assert list(index.inside()) == sorted(table)


@given(steps)
def test_a_book_agrees_with_a_list_of_pairs(script: list[tuple[str, Address, Prefix, int]]) -> None:
    book, twin = AddressBook[int](), list[tuple[Address, int]]()
    for step, address, prefix, thing in script:
        if step == "ask":
            expected = sorted(pair for pair in twin if contains(prefix, pair[0]))
            assert sorted(book.inside(prefix)) == expected
        elif step == "add" and (address, thing) not in twin:
            book.add(address, thing)
            book.add(address, thing)
            twin.append((address, thing))
        elif step == "discard":
            book.discard(address, thing)
            twin = [pair for pair in twin if pair != (address, thing)]


@given(st.lists(prefixes))
def test_the_outermost_of_prefixes_are_those_that_lie_in_no_other(nested: list[Prefix]) -> None:
    def lies_in(inner: Prefix, outer: Prefix) -> bool:
        return outer.length < inner.length and contains(outer, inner.address)

    assert outermost(nested) == sorted(each for each in {*nested} if not any(lies_in(each, other) for other in nested))


def test_one_of_many_thousands_moves_only_some_when_it_comes_or_goes() -> None:
    around = parse_prefix("fd00::/64")
    there, index = [nth(around, number) for number in range(20_000)], AddressIndex()
    for address in random.Random(7).sample(there, len(there)):
        index.add(address)
    assert max(map(len, index.blocks)) <= MOST
    assert len(index.blocks) <= 4 * len(there) // MOST, "and there are few of those"
    for address in there[::2]:
        index.discard(address)
    assert list(index.inside(around)) == there[1::2]


def test_who_asks_in_turns_misses_nothing_that_was_there_all_along() -> None:
    there, index = [nth(parse_prefix("fd00::/64"), number) for number in range(5_000)], AddressIndex()
    for address in there:
        index.add(address)
    some = index.inside()
    found = [next(some) for _ in range(1_500)]
    for address in there[:3_000:2]:
        index.discard(address)
    found += some
    assert set(there) - set(found) <= set(there[:3_000:2])
    assert found == sorted(set(found))
