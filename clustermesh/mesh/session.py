"""Where one remote cluster stands, as everybody is shown it; `brain` says when that changes."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class State(StrEnum):
    CONNECTING = "connecting"  # it has not answered yet
    SYNCING = "syncing"  # it has, and not every table was listed once
    FRESH = "fresh"  # every table is listed and followed
    STALE = "stale"  # what was learned is kept, and may be old: the connection is lost, or it was read from disk
    EVICTED = "evicted"  # refused for a stated reason: what it said is withdrawn until the reason is gone
    REMOVED = "removed"  # the operator took it out


class Session(Struct, frozen=True, kw_only=True):
    """`since` is Unix seconds; `error` is the last one, "" when all is well; `was_heard`: `heard` before this state."""

    state: State = State.CONNECTING
    since: float = 0.0
    error: str = ""
    failures: int = 0
    last_failure: float = 0.0
    was_heard: bool = False

    @property
    def heard(self) -> bool:
        """True once this process has heard all that the cluster says, or that nothing of it is wanted.

        What was restored from disk is older than that: what is absent there may have come since.
        """
        return self.was_heard or self.state in (State.FRESH, State.EVICTED, State.REMOVED)

    @property
    def complete(self) -> bool:
        """True when what is held of this cluster is whole, if perhaps old."""
        return self.state is not State.CONNECTING and self.state is not State.SYNCING

    def enter(self, state: State, now: float, error: str | None = None) -> Session:
        """The session in `state` at `now`; an `error` is one more failure, "" says that all is well again."""
        return Session(
            state=state,
            since=self.since if state is self.state else now,
            error=self.error if error is None else error,
            failures=self.failures + bool(error),
            last_failure=now if error else self.last_failure,
            was_heard=self.heard,
        )
