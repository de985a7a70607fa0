"""The session table, walked through as an operator would see it."""

from __future__ import annotations

import itertools

import pytest

from clustermesh.mesh.session import Event, Session, State, advance


def walk(*events: Event) -> list[State]:
    session, states = Session(), []
    for event in events:
        session = advance(session, event, now=1.0)
        states.append(session.state)
    return states


def test_a_new_cluster_is_fresh_once_everything_is_listed() -> None:
    assert walk(Event.CONFIGURED, Event.LISTED) == [State.SYNCING, State.FRESH]


def test_a_lost_connection_makes_stale_and_a_new_list_fresh_again() -> None:
    states = walk(Event.CONFIGURED, Event.LISTED, Event.LOST, Event.LOST, Event.CONFIGURED, Event.LISTED)
    assert states[2:] == [State.STALE, State.STALE, State.STALE, State.FRESH]


def test_a_cluster_restored_from_disk_is_stale_and_complete() -> None:
    session = advance(Session(), Event.RESTORED, now=1.0)
    assert session.state is State.STALE
    assert session.complete


def test_a_cluster_that_was_never_listed_is_not_complete_even_when_it_failed() -> None:
    session = advance(advance(Session(), Event.CONFIGURED, 1.0), Event.LOST, 2.0, "gone")
    assert not session.complete


def test_since_is_when_the_state_was_entered_and_failures_are_counted() -> None:
    session = Session(since=0.0)
    for event, now in ((Event.CONFIGURED, 1.0), (Event.LISTED, 2.0), (Event.LOST, 5.0), (Event.LOST, 9.0)):
        session = advance(session, event, now, "cut" if event is Event.LOST else "")
    assert (session.since, session.failures, session.last_failure, session.error) == (5.0, 2, 9.0, "cut")
    assert advance(session, Event.LISTED, 10.0).error == ""


def test_an_evicted_cluster_comes_back_when_its_configuration_is_in_order() -> None:
    assert walk(Event.CONFIGURED, Event.LISTED, Event.REFUSED, Event.LOST, Event.CONFIGURED, Event.LISTED)[2:] == [
        State.EVICTED,
        State.EVICTED,
        State.SYNCING,
        State.FRESH,
    ]


def test_nothing_leads_out_of_removed() -> None:
    removed = advance(Session(), Event.REMOVED, 1.0)
    for event in Event:
        if event is not Event.REMOVED:
            with pytest.raises(KeyError):
                advance(removed, event, 2.0)


def test_an_event_that_cannot_happen_raises() -> None:
    with pytest.raises(KeyError):
        advance(Session(), Event.LISTED, 1.0)


def test_every_state_can_be_lost_or_removed_by_any_path() -> None:
    for events in itertools.product([Event.CONFIGURED, Event.LISTED, Event.LOST, Event.REFUSED], repeat=4):
        session = Session()
        for event in events:
            try:
                session = advance(session, event, 1.0)
            except KeyError:
                break
            assert advance(session, Event.LOST, 2.0).failures == session.failures + 1
            assert advance(session, Event.REMOVED, 2.0).state is State.REMOVED
