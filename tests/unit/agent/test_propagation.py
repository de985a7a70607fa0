"""Delays are counted once per change, whichever of stamp and application comes first."""

from __future__ import annotations

import itertools
import time

import pytest

from agent import propagation as propagation_module
from agent.propagation import Propagation
from clustermesh.model import Stamp

CHANGE = ("beta", ("n", "s"))


def stamp(ago: float) -> Stamp:
    now = time.time_ns()
    return Stamp(observed=now - int(ago * 1e9), published=now)


def apply(propagation: Propagation, revision: int) -> None:
    propagation.seen(CHANGE, revision)
    propagation.applied(propagation.take_seen())


@pytest.mark.parametrize("stamp_first", [True, False])
def test_a_stamp_and_an_application_of_one_revision_are_one_delay(stamp_first: bool) -> None:
    propagation = Propagation()
    steps = [lambda: propagation.stamped(CHANGE, 7, stamp(5)), lambda: apply(propagation, 7)]
    for step in steps if stamp_first else reversed(steps):
        step()
    (delay,) = propagation.recent
    assert delay >= 4990
    apply(propagation, 7)
    assert len(propagation.recent) == 1


def test_revisions_that_do_not_meet_count_nothing_and_do_not_hide_the_next() -> None:
    for order in itertools.permutations(["stamp 7", "apply 8", "stamp 9", "apply 9"]):
        propagation = Propagation()
        for step in order:
            verb, revision = step.split()
            if verb == "stamp":
                propagation.stamped(CHANGE, int(revision), stamp(1))
            else:
                apply(propagation, int(revision))
        in_order = order.index("stamp 7") < order.index("stamp 9") and order.index("apply 8") < order.index("apply 9")
        assert len(propagation.recent) == 1 or not in_order


def test_what_came_in_during_a_flush_is_not_applied_by_it() -> None:
    propagation = Propagation()
    propagation.seen(CHANGE, 1)
    taken = propagation.take_seen()
    propagation.seen(CHANGE, 2)
    propagation.stamped(CHANGE, 2, stamp(1))
    propagation.applied(taken)
    assert not propagation.recent
    propagation.applied(propagation.take_seen())
    assert len(propagation.recent) == 1


def test_changes_that_never_meet_their_other_half_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real Cilium stamps nothing, and services with new names come for ever."""
    monkeypatch.setattr(propagation_module, "_MOST_WAITING", 10)
    propagation = Propagation()
    for number in range(100):
        propagation.applied({("cilium", ("n", f"job-{number}")): number})
        propagation.stamped(("ours", ("n", f"job-{number}")), number, Stamp(observed=1, published=2))
    assert len(propagation._applied) == len(propagation._stamps) == 10
    propagation.stamped(("cilium", ("n", "job-99")), 99, Stamp(observed=1, published=2))
    assert len(propagation.recent) == 1, "the newest are those that are kept"


def test_a_cluster_that_comes_back_does_not_meet_its_old_revisions() -> None:
    propagation = Propagation()
    propagation.seen(("beta", ("n", "a")), 7)
    propagation.applied({("beta", ("n", "s")): 7})
    propagation.forget("beta")
    propagation.stamped(("beta", ("n", "s")), 7, Stamp(observed=1, published=2))
    assert not propagation.recent
    assert not propagation.take_seen()
