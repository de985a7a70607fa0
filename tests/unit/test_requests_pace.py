"""Requests of a server, kept to so many at once and so many a second."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.pace import BURST, Load, Pace


async def test_no_more_are_under_way_than_may_be() -> None:
    pace, now, most = Pace(Load(at_once=3, per_second=1e6)), 0, 0

    async def ask() -> None:
        nonlocal now, most
        async with pace:
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*(ask() for _ in range(20)))
    assert (now, most) == (0, 3)


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=60), st.sampled_from([1.0, 10.0, 200.0]))
def test_no_second_has_more_than_a_second_s_and_a_burst(gaps: list[float], rate: float) -> None:
    pace, now, turns = Pace(Load(at_once=1, per_second=rate)), 100.0, list[float]()
    for gap in gaps:
        now += gap
        now += max(0.0, pace._take_turn(now))
        turns.append(now)
    for first in turns:
        assert sum(first <= turn < first + 1 for turn in turns) <= rate * (1 + BURST) + 2


async def test_one_who_is_cancelled_while_waiting_takes_nobody_s_place() -> None:
    pace = Pace(Load(at_once=1, per_second=1e-3))
    pace._take_turn(asyncio.get_running_loop().time())
    waiting = asyncio.create_task(pace.__aenter__())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not pace._slots.locked()
