from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import Number, in_state, pack
from agent.plan.backends import BackendNumbers
from clustermesh.deltas import Deltas
from clustermesh.model import BackendState

SIZE = 24  # of a value of lb_backends
those = st.lists(st.integers(0, 12), max_size=5)


def value(number: int) -> bytes:
    return number.to_bytes(2, "big") + bytes(SIZE - 2)


@given(st.lists(st.tuples(those, st.lists(st.tuples(st.integers(0, 12), st.sampled_from([*BackendState][1:]))))))
def test_the_table_has_what_somebody_uses_in_its_best_state_and_no_number_twice(
    services: list[tuple[list[int], list[tuple[int, BackendState]]]],
) -> None:
    """Against counting. Services come one after the other, the same backend in one twice included; then all go."""
    table = Deltas[bytes, bytes]()
    numbers, active, resting = BackendNumbers(table), Counter[int](), Counter[tuple[int, BackendState]]()
    given_before = dict[bytes, int]()

    def check() -> None:
        wanted = {each: value(each) for each in +active}
        for each, state in sorted(+resting, key=lambda pair: -pair[1]):
            if each not in +active:
                wanted[each] = in_state(value(each), state)
        assert sorted(table.desired.values()) == sorted(wanted.values())
        for each, held in wanted.items():
            (key,) = numbers.of([value(each)])
            assert table.desired[key] == held
            assert given_before.setdefault(key, each) == each, "a number that another had"

    for used, rests in services:
        numbers.acquire([value(each) for each in used])
        numbers.acquire_resting([(value(each), state) for each, state in rests])
        active.update(used)
        resting.update(rests)
        check()
    for used, rests in services:
        numbers.release([value(each) for each in used])
        numbers.release_resting([(value(each), state) for each, state in rests])
        active.subtract(used)
        resting.subtract(rests)
        check()


def test_after_the_last_number_comes_the_first_that_nobody_has() -> None:
    table = Deltas[bytes, bytes]()
    for number in (2, 0xFFFFFFFE):
        table.observe(pack(Number(number)), value(number % 100))
    numbers = BackendNumbers(table)
    numbers.adopt()
    numbers.acquire([value(2)])
    numbers.acquire([value(each) for each in (50, 51, 52)])
    assert numbers.of([value(each) for each in (50, 51, 52)]) == [pack(Number(each)) for each in (0xFFFFFFFF, 1, 3)]
