"""What lies in a prefix, against a twin that looks at every address."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import V4, Address, Prefix, contains, from_int, masked, parse, to_int
from clustermesh.mesh import address_index
from clustermesh.mesh.address_index import AddressBook, AddressIndex, outermost

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
    table = dict[Address, None]()
    index = AddressIndex(table)
    for step, address, prefix, _ in script:
        if step == "ask":
            assert index.inside(prefix) == sorted(a for a in table if contains(prefix, a))
        elif step == "add":
            table[address] = None
            index.touch(address)
        else:
            table.pop(address, None)
            index.touch(address)


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


def test_a_table_that_changes_much_between_two_questions_is_still_whole() -> None:
    table = dict.fromkeys(parse(f"10.0.0.{n}") for n in range(200))
    index = AddressIndex(table)
    assert len(index.inside(V4)) == 200
    for n in range(200):
        del table[parse(f"10.0.0.{n}")]
        index.touch(parse(f"10.0.0.{n}"))
    assert index.inside(V4) == []


@given(st.lists(prefixes))
def test_the_outermost_of_prefixes_are_those_that_lie_in_no_other(nested: list[Prefix]) -> None:
    def lies_in(inner: Prefix, outer: Prefix) -> bool:
        return outer.length < inner.length and contains(outer, inner.address)

    assert outermost(nested) == sorted(each for each in {*nested} if not any(lies_in(each, other) for other in nested))


def test_thousands_that_came_and_went_are_put_in_order_together(monkeypatch: pytest.MonkeyPatch) -> None:
    first = to_int(parse("fd00::"))
    table = dict.fromkeys(from_int(first + number) for number in range(0, 40_000, 2))
    index, searched = AddressIndex(table), list[None]()
    index.inside(V4)
    for number in range(0, 1000, 2):
        del table[from_int(first + number)]
        table[from_int(first + 20_001 + number)] = None
        index.touch(from_int(first + number))
        index.touch(from_int(first + 20_001 + number))

    def count(*given: Any) -> int:
        searched.append(None)
        return bisect_left(*given)

    monkeypatch.setattr(address_index, "bisect_left", count)
    assert index.inside(Prefix(parse("fd00::"), 64)) == sorted(table)
    assert len(searched) == 2, "the two ends of the prefix"
