"""How long to wait before the next attempt."""

import random

from clustermesh.store.backoff import FIRST, LAST, SHORT, Backoff


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
