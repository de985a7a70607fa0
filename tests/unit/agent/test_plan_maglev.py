"""Maglev's table against the paper's own words, one place at a time; how even it is, and how few places move."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import MAGLEV_PLACES
from agent.plan.maglev import maglev

backends = st.lists(st.binary(min_size=19, max_size=19), min_size=1, max_size=40, unique=True)


def some(number: int) -> list[bytes]:
    return [f"{each:019}".encode() for each in range(number)]


def twin(those: list[bytes]) -> list[bytes]:
    """Pseudocode 1 of the paper, with a permutation written out for each backend."""
    permutation = {}
    for each in those:
        digest = blake2b(each, digest_size=16).digest()
        offset = int.from_bytes(digest[:8], "little") % MAGLEV_PLACES
        skip = int.from_bytes(digest[8:], "little") % (MAGLEV_PLACES - 1) + 1
        permutation[each] = [(offset + j * skip) % MAGLEV_PLACES for j in range(MAGLEV_PLACES)]
    table: dict[int, bytes] = {}
    while True:
        for each in sorted(those):
            table[next(place for place in permutation[each] if place not in table)] = each
            if len(table) == MAGLEV_PLACES:
                return [table[place] for place in range(MAGLEV_PLACES)]


@given(backends, st.integers(1, 100))
def test_equal_weights_make_the_table_of_the_paper(those: list[bytes], weight: int) -> None:
    assert [those[each] for each in maglev(tuple(those), (weight,) * len(those))] == twin(those)


@given(st.lists(st.tuples(st.binary(min_size=1), st.integers(1, 65535)), min_size=1, max_size=40), st.randoms())
def test_the_order_they_come_in_makes_no_difference(those: list[tuple[bytes, int]], random: object) -> None:
    by_name = dict(those)
    shuffled = [*by_name]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    tables = [
        [names[each] for each in maglev(tuple(names), tuple(by_name[name] for name in names))]
        for names in ([*by_name], shuffled)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "weights",
    [
        (1, 1),
        (1, 2, 3),
        (100, 50, 1),
        (65535, 1, 1),
        (1000, *[1] * 1000),
        tuple(range(1, 101)),
        (7,) * 1021,
        (2,) * 3000,
    ],
    ids=lambda weights: f"{len(weights)} of {max(weights)}",
)
def test_each_has_as_many_places_as_its_weight_says(weights: tuple[int, ...]) -> None:
    counted = Counter(maglev(tuple(some(len(weights))), weights))
    assert sum(counted.values()) == MAGLEV_PLACES
    for each, weight in enumerate(weights):
        assert abs(counted[each] - MAGLEV_PLACES * weight / sum(weights)) <= 1


@pytest.mark.parametrize("number", [2, 10, 100])
def test_few_places_move_but_those_of_who_is_gone(number: int) -> None:
    those = some(number)
    before, after = (maglev(tuple(each), (1,) * len(each)) for each in (those, those[:-1]))
    moved = sum(had != has for had, has in zip(before, after, strict=True) if had != number - 1)
    assert moved < MAGLEV_PLACES // 10
