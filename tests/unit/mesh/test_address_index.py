"""What lies in a prefix, against a twin that looks at every address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import V4, Address, Prefix, contains, masked, parse
from clustermesh.mesh.address_index import AddressBook, AddressIndex

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
