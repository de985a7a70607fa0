"""Names that wait to be settled: none for ever, and the newest not behind thousands of others."""

from __future__ import annotations

from clustermesh.multicluster.keeping import take_batch


def test_a_change_among_thousands_is_settled_at_once_and_who_changes_always_keeps_nobody_waiting() -> None:
    waiting = {("old", str(n)): None for n in range(5000)}
    for turn in range(200):
        fresh = [("busy", str(n)) for n in range(100)]
        waiting = dict.fromkeys(fresh) | {("new", str(turn)): None} | waiting if turn else waiting
        waiting = {("now", str(turn)): None} | waiting
        found = take_batch(waiting, 50)
        assert len(found) == 50
        assert ("now", str(turn)) in found
        assert not waiting.keys() & set(found)
    assert not any(name[0] == "old" for name in waiting)


def test_few_are_all_taken_once() -> None:
    for number in (0, 1, 49, 50, 51):
        waiting = {("a", str(n)): None for n in range(number)}
        before = set(waiting)
        first, second = take_batch(waiting, 50), take_batch(waiting, 50)
        assert (len(first), sorted([*first, *second])) == (min(number, 50), sorted(before))
        assert waiting == {}
