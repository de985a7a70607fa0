"""Figures from what a load generator recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lab.records import Record, Traffic, add, between, percentile, summarize

RECORDS = [
    Record(10.0, 0.1, "alpha", None, "10.97.0.10"),
    Record(10.2, 0.1, "beta", None, "fd00:10:97::10"),
    Record(10.3, 2.0, None, "TimeoutError", "fd00:10:97::10"),
    Record(10.9, 0.1, "beta", None, "10.97.0.10"),
]


def test_answers_failures_and_the_longest_gap_are_counted() -> None:
    assert summarize(RECORDS) == Traffic(
        requests=4,
        failed=1,
        answers={"alpha": 1, "beta": 2},
        errors={"TimeoutError": 1},
        longest_gap_ms=700.0,  # from the answer at 10.3 to the one at 11.0
        at={"10.97.0.10": {"alpha": 1, "beta": 1}, "fd00:10:97::10": {"beta": 1}},
    )


def test_everywhere_is_who_answered_at_each_address_that_was_asked() -> None:
    assert summarize(RECORDS).clusters == {"alpha", "beta"}
    assert summarize(RECORDS).everywhere == {"beta"}
    assert summarize(RECORDS[:3]).everywhere == set()
    assert summarize([]).everywhere == set()


def test_nothing_recorded_is_nothing_answered() -> None:
    assert summarize([]) == Traffic()


def test_the_order_of_completion_does_not_matter() -> None:
    assert summarize(reversed(RECORDS)) == summarize(RECORDS)


def test_a_window_takes_the_requests_that_began_in_it() -> None:
    assert [record.at for record in between(RECORDS, 10.2, 10.9)] == [10.2, 10.3]


def test_adding_keeps_the_longest_gap() -> None:
    whole = add([summarize(RECORDS[:2]), summarize(RECORDS[1:])])
    assert (whole.requests, whole.failed, whole.longest_gap_ms) == (5, 1, 700.0)
    assert whole.answers == {"alpha": 1, "beta": 3}


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_sample_with_that_share_at_or_below_it(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert found in samples
    at_or_below = sum(sample <= found for sample in samples)
    below = sum(sample < found for sample in samples)
    assert at_or_below >= len(samples) * percent / 100 - 1e-9
    assert below < len(samples) * percent / 100 + 1


def test_known_percentiles() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert (percentile(hundred, 50), percentile(hundred, 99), percentile(hundred, 100)) == (50.0, 99.0, 100.0)
    assert percentile([], 50) is None
