"""How long to wait before the next attempt."""

import random
from bisect import bisect_left
from heapq import heapify, heappop, heappush

import pytest

from clustermesh.store.backoff import FIRST, LAST, SHORT, SOON, SPREAD, STEADY, Backoff, Reconnect


class NoJitter(random.Random):
    def uniform(self, _a: float, b: float) -> float:
        return b


def test_waits_double_up_to_the_last() -> None:
    backoff = Backoff(rng=NoJitter())
    waits = [backoff.next() for _ in range(14)]
    assert waits[:4] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST]
    assert waits[-1] == LAST


def test_a_success_that_outlasted_its_wait_begins_anew() -> None:
    backoff = Backoff(rng=NoJitter())
    for _ in range(10):
        backoff.next()
    assert backoff.next(lasted=60) == FIRST


def test_short_successes_are_not_repeated_faster_than_they_last_nor_ever_slowly() -> None:
    backoff = Backoff(rng=NoJitter())
    waits = [backoff.next(lasted=0.001) for _ in range(20)]
    assert waits[:2] == [FIRST, 2 * FIRST]
    assert waits[-1] == SHORT


def test_a_refusal_waits_longer_at_once_and_doubles_too() -> None:
    backoff = Backoff(rng=NoJitter())
    assert [backoff.next(at_least=1.0) for _ in range(3)] == [1.0, 2.0, 4.0]


def test_jitter_takes_away_up_to_half() -> None:
    waits = [Backoff(first=1, rng=random.Random(seed)).next() for seed in range(200)]
    assert 0.5 <= min(waits) < 0.6
    assert 0.9 < max(waits) <= 1.0


READERS = 500


def busiest(moments: list[float], window: float = 0.1) -> int:
    """How many there are in the window that has most."""
    ordered = sorted(moments)
    return max(bisect_left(ordered, at + window) - number for number, at in enumerate(ordered))


def come_back(outage: float, seed: int, nobody: bool) -> tuple[list[float], list[float]]:
    """READERS that lose their etcd at 0, which answers after `outage` seconds: when each tried, and was back."""
    rng = random.Random(seed)
    tries, back = list[float](), list[float]()
    for reconnect in [Reconnect(random.Random(rng.random())) for _ in range(READERS)]:
        now = reconnect.wait(0.0, lasted=60.0)
        while now < outage:
            tries.append(now)
            now += reconnect.wait(now, lasted=0.0, nobody=nobody)
        back.append(now)
    return tries, back


@pytest.mark.parametrize("nobody", [False, True])
@pytest.mark.parametrize("outage", [0.0, 0.5, 3.0, 30.0, 600.0])
def test_many_that_lose_one_etcd_come_back_one_after_the_other(outage: float, nobody: bool) -> None:
    for seed in range(5):
        tries, back = come_back(outage, seed, nobody)
        assert busiest(back) <= READERS // 5
        assert busiest(tries or [0.0]) <= READERS // 5
        assert max(back) <= outage + min(2 * outage + 2 * SPREAD, SOON if nobody else LAST)


def test_who_share_a_connection_try_it_at_the_same_time() -> None:
    reconnect = Reconnect(random.Random(1))
    first = reconnect.wait(100.0, lasted=60.0)
    assert reconnect.wait(100.001, lasted=60.0) == pytest.approx(first - 0.001)
    assert reconnect.wait(100.002, lasted=0.0) == pytest.approx(first - 0.002), "once for all"


def test_once_it_went_well_a_reconnect_waits_little_again() -> None:
    reconnect, now = Reconnect(random.Random(1)), 0.0
    for _ in range(10):
        now += reconnect.wait(now, lasted=0.0)
    assert max(Reconnect(random.Random(seed)).wait(now, lasted=60.0) for seed in range(50)) <= SPREAD
    assert reconnect.wait(now, lasted=60.0) <= SPREAD


def test_who_answers_and_fails_each_time_is_asked_more_and_more_seldom() -> None:
    reconnect, now, waits = Reconnect(NoJitter()), 0.0, []
    for _ in range(8):
        waits.append(reconnect.wait(now, lasted=0.5))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert reconnect.wait(now, lasted=STEADY + 1) == SPREAD


def test_refusals_in_between_do_not_shorten_a_wait_that_harm_has_earned() -> None:
    reconnect, now, waits = Reconnect(NoJitter()), 0.0, []
    for nobody in (False, True, True, False, True, False, False, True):
        waits.append(reconnect.wait(now, lasted=0.0, nobody=nobody))
        now += waits[-1]
    assert waits == [1, 1, 1, 2, 2, 4, 8, 8]
    assert reconnect.wait(now, lasted=STEADY + 1) == SPREAD
    now += SPREAD
    assert [reconnect.wait(now + SOON * n, lasted=0.0, nobody=True) for n in range(3)] == [SOON] * 3


DOWN = 10.0


def overwhelm(seed: int, end: float = 600.0) -> tuple[int, int]:
    """READERS of an etcd that dies when two fifths of them have come within two seconds, and refuses for DOWN seconds
    until it is up again: how often it died, and how many are connected at the `end`."""
    rng = random.Random(seed)
    reconnects = [Reconnect(random.Random(rng.random())) for _ in range(READERS)]
    tries = [(each.wait(0.0, lasted=60.0), number) for number, each in enumerate(reconnects)]
    heapify(tries)
    connected, deaths, up_at = dict[int, float](), 0, DOWN / 2
    while tries and tries[0][0] < end:
        now, number = heappop(tries)
        if now < up_at:
            heappush(tries, (now + reconnects[number].wait(now, lasted=0.0, nobody=True), number))
            continue
        connected[number] = now
        if sum(now - since < 2.0 for since in connected.values()) > READERS * 2 // 5:
            deaths, up_at = deaths + 1, now + DOWN
            for each, since in connected.items():
                heappush(tries, (now + reconnects[each].wait(now, lasted=now - since), each))
            connected = {}
    return deaths, len(connected)


@pytest.mark.parametrize("seed", range(3))
def test_an_etcd_that_dies_of_its_readers_gets_relief_though_it_refuses_in_between(seed: int) -> None:
    deaths, connected = overwhelm(seed)
    assert connected == READERS
    assert deaths <= 8
