"""Readers that begin together do so a few at a time, and none that hangs keeps the others from it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.mesh.pace import LONGEST, SAVED, SHARE, Budget, Pace


async def test_only_so_many_begin_at_once_and_the_next_when_one_is_done() -> None:
    pace = Pace()
    ends = [await pace.begin() for _ in range(8)]
    ninth = asyncio.create_task(pace.begin())
    await asyncio.sleep(0)
    assert not ninth.done()
    ends[0]()
    ends[0]()
    await ninth
    tenth = asyncio.create_task(pace.begin())
    await asyncio.sleep(0)
    assert not tenth.done(), "an end counts once"
    ends[1]()
    await tenth


async def test_whoever_hangs_gives_way_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustermesh.mesh.pace._HOLD", 0.01)
    pace = Pace()
    for _ in range(50):
        await pace.begin()


def test_what_was_saved_up_is_spent_at_once_and_all_beyond_it_is_waited_for() -> None:
    budget = Budget()
    assert budget.spend(SAVED, now=100.0) == 0
    assert budget.spend(0.1, now=100.0) == pytest.approx(0.1 / SHARE)
    assert budget.spend(0.0, now=100.0 + 0.1 / SHARE) == pytest.approx(0)


@pytest.mark.parametrize("cost", [2 * SAVED, 1e6])
def test_a_debt_is_paid_in_short_waits_and_none_is_larger_than_what_can_be_saved(cost: float) -> None:
    budget, now, waited = Budget(), 100.0, 0.0
    wait = budget.spend(cost, now)
    while wait > 1e-6:
        assert wait <= LONGEST
        now, waited = now + wait, waited + wait
        wait = budget.spend(0.0, now)
    assert waited == pytest.approx(SAVED / SHARE)


@given(st.lists(st.tuples(st.floats(0, LONGEST * SHARE), st.floats(0, 60)), max_size=200))
def test_whoever_waits_as_told_has_its_share_over_any_time_and_what_was_saved_up(
    pieces: list[tuple[float, float]],
) -> None:
    budget, now, spent = Budget(), 0.0, list[tuple[float, float]]()
    for cost, idle in pieces:
        now += idle
        spent.append((now, cost))
        now += budget.spend(cost, now)
    for first, (begin, _) in enumerate(spent):
        for last, (end, _) in enumerate(spent[first:], first):
            together = sum(cost for _, cost in spent[first:last])  # of the last one the wait comes after
            assert together <= SAVED + (end - begin) * SHARE + 1e-6
