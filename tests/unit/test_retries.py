"""What failed is tried again when it is due, the soonest first, and no more at once than is asked for."""

from __future__ import annotations

from clustermesh.retries import Retries


def test_what_is_due_is_taken_in_its_turn_and_no_more_than_asked_for() -> None:
    retries = Retries[int](first=2.0)
    for key in range(25):
        retries.fail(key, "no", now=key / 100)
    assert retries.take_due(1.0, 10) == []
    assert retries.take_due(2.075, 10) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert retries.take_due(3.0, 10) == list(range(8, 18))
    for key in range(8, 18):
        retries.fail(key, "no", now=3.0)
    assert retries.take_due(4.0, 10) == list(range(18, 25))
    assert retries.take_due(6.9) == []
    assert retries.take_due(7.0) == list(range(8, 18))


def test_what_is_forgotten_is_not_tried_again() -> None:
    retries = Retries[str](first=1.0)
    for key in ("a", "b"):
        retries.fail(key, "no", now=0.0)
    retries.forget("a")
    assert (retries.take_due(9.0, 5), retries.next_due, [*retries.problems]) == (["b"], None, ["b"])
