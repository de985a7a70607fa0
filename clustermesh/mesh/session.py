"""The state machine of one remote cluster, as a table. Pure: time is an argument.

Rules:
- A cluster is `connecting` until it answered, `syncing` until every resource was listed once, then `fresh`.
- What was learned is kept when the connection is lost: the cluster is `stale` since that moment, and `fresh` again once
  everything was listed anew. A cluster restored from the last good state on disk starts as `stale`.
- `evicted` means refused for a stated reason (its id is taken, its configuration is invalid): its data is withdrawn
  until the reason is gone. `removed` means the operator disconnected it; nothing leads out of it.
- A pair that is not in the table is a bug and raises.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class State(StrEnum):
    CONNECTING = "connecting"
    SYNCING = "syncing"
    FRESH = "fresh"
    STALE = "stale"
    EVICTED = "evicted"
    REMOVED = "removed"


class Event(StrEnum):
    RESTORED = "restored"  # the last good state was read from disk
    CONFIGURED = "configured"  # it answered, and its configuration is valid
    LISTED = "listed"  # every resource is listed and followed
    LOST = "lost"  # some resource is not followed any more
    REFUSED = "refused"  # its configuration may not be used here
    REMOVED = "removed"  # the operator took it out


_TABLE: dict[tuple[State, Event], State] = {
    (State.CONNECTING, Event.RESTORED): State.STALE,
    (State.CONNECTING, Event.CONFIGURED): State.SYNCING,
    (State.CONNECTING, Event.LOST): State.CONNECTING,
    (State.CONNECTING, Event.REFUSED): State.EVICTED,
    (State.SYNCING, Event.CONFIGURED): State.SYNCING,
    (State.SYNCING, Event.LISTED): State.FRESH,
    (State.SYNCING, Event.LOST): State.SYNCING,
    (State.SYNCING, Event.REFUSED): State.EVICTED,
    (State.FRESH, Event.CONFIGURED): State.FRESH,
    (State.FRESH, Event.LISTED): State.FRESH,
    (State.FRESH, Event.LOST): State.STALE,
    (State.FRESH, Event.REFUSED): State.EVICTED,
    (State.STALE, Event.CONFIGURED): State.STALE,
    (State.STALE, Event.LISTED): State.FRESH,
    (State.STALE, Event.LOST): State.STALE,
    (State.STALE, Event.REFUSED): State.EVICTED,
    (State.EVICTED, Event.CONFIGURED): State.SYNCING,
    (State.EVICTED, Event.LOST): State.EVICTED,
    (State.EVICTED, Event.REFUSED): State.EVICTED,
    **{(state, Event.REMOVED): State.REMOVED for state in State},
}


class Session(Struct, frozen=True, kw_only=True):
    """Where one remote cluster stands. `since` is Unix seconds; `error` is the last one, "" when all is well."""

    state: State = State.CONNECTING
    since: float = 0.0
    error: str = ""
    failures: int = 0
    last_failure: float = 0.0

    @property
    def complete(self) -> bool:
        """True when what is held of this cluster is whole, if perhaps old: what is absent from it may be pruned."""
        return self.state is not State.CONNECTING and self.state is not State.SYNCING


def advance(session: Session, event: Event, now: float, error: str = "") -> Session:
    """The session after `event` at `now` (Unix seconds). Raises KeyError for a pair that cannot happen."""
    state = _TABLE[session.state, event]
    failed = event in (Event.LOST, Event.REFUSED)
    return Session(
        state=state,
        since=now if state is not session.state else session.since,
        error=error if failed else ("" if event is Event.LISTED else session.error),
        failures=session.failures + failed,
        last_failure=now if failed else session.last_failure,
    )
