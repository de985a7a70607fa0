"""Delays are counted once per change, whichever of stamp and application comes first."""

from __future__ import annotations

import itertools
import time

import pytest

from agent import propagation as propagation_module
from agent.histograms import HOP_SECONDS
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


def test_others_are_told_the_last_delay_of_each_cluster_and_a_little_more_or_less_is_no_news() -> None:
    propagation = Propagation()
    for revision, (ago, told) in enumerate(
        [(0.0305, 50), (0.0385, 50), (-5, 1), (3, 5000), (10**9, 50_000_000)],  # -5: the clock there is ahead of ours
    ):
        propagation.stamped(CHANGE, revision, stamp(ago))
        apply(propagation, revision)
        assert propagation.latest == {"beta": told}
    propagation.forget("beta")
    assert not propagation.latest


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


def hops(cluster: str) -> dict[str, float]:
    """The seconds counted for each hop of `cluster`'s changes."""
    samples = (sample for metric in HOP_SECONDS.collect() for sample in metric.samples)
    counted = (each for each in samples if each.name.endswith("_sum") and each.labels["source_cluster"] == cluster)
    return {each.labels["hop"]: each.value for each in counted}


@pytest.mark.parametrize("stamp_first", [True, False])
def test_each_hop_of_a_change_is_counted_and_can_be_asked_for(
    stamp_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = f"hops-{stamp_first}"
    moments = iter([13_000_000_000, 17_000_000_000])
    monkeypatch.setattr(propagation_module.time, "time_ns", lambda: next(moments))
    propagation = Propagation()
    if stamp_first:
        propagation.stamped((cluster, ("n", "s")), 7, Stamp(observed=10_000_000_000, published=11_000_000_000))
    propagation.heard(cluster, "services", ("n", "s"), 7)
    propagation.applied(propagation.take_seen())
    if not stamp_first:
        propagation.stamped((cluster, ("n", "s")), 7, Stamp(observed=10_000_000_000, published=11_000_000_000))
    assert hops(cluster) == {"publish": 1.0, "read": 2.0, "apply": 4.0}
    times = propagation.times(cluster, "services", ("n", "s"))
    assert times is not None
    assert (times.observed, times.heard, times.applied) == (10_000_000_000, 13_000_000_000, 17_000_000_000)
    propagation.gone(cluster, "services", ("n", "s"))
    assert propagation.times(cluster, "services", ("n", "s")) is None


def test_own_changes_wait_for_no_stamp_and_the_times_that_are_kept_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation_module, "_MOST_TIMED", 10)
    propagation = Propagation()
    for number in range(100):
        propagation.heard("alpha", "services", ("n", f"s{number}"), number + 1, stamped=False)
    propagation.applied(propagation.take_seen())
    assert len(propagation._times) == 10
    assert not [change for change in propagation._applied if change[1] == ("n", "s99")]
    times = propagation.times("alpha", "services", ("n", "s99"))
    assert times is not None
    assert times.applied
