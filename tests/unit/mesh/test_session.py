"""What is shown of a cluster: since when it is where it is, what went wrong, and how often."""

from __future__ import annotations

import pytest

from clustermesh.mesh.session import Session, State


def test_since_is_when_the_state_was_entered_and_failures_are_counted() -> None:
    session = Session().enter(State.SYNCING, 1.0).enter(State.FRESH, 2.0, "")
    for now in (5.0, 9.0):
        session = session.enter(State.STALE, now, "cut")
    assert (session.since, session.failures, session.last_failure, session.error) == (5.0, 2, 9.0, "cut")
    assert session.enter(State.FRESH, 10.0, "").error == ""


def test_the_last_error_is_told_until_all_is_well() -> None:
    lost = Session().enter(State.CONNECTING, 1.0, "cut")
    assert lost.enter(State.SYNCING, 2.0).error == "cut"
    assert lost.enter(State.SYNCING, 2.0).failures == 1


def test_a_cluster_is_heard_once_all_of_it_was_listed_or_nothing_of_it_is_wanted() -> None:
    restored = Session().enter(State.STALE, 1.0)
    assert not restored.heard
    assert not restored.enter(State.SYNCING, 2.0).heard
    assert restored.enter(State.EVICTED, 2.0).heard
    assert restored.enter(State.FRESH, 2.0).enter(State.STALE, 3.0).heard


@pytest.mark.parametrize("state", State)
def test_a_cluster_is_complete_once_it_was_listed_or_restored(state: State) -> None:
    assert Session(state=state).complete == (state not in {State.CONNECTING, State.SYNCING})
