"""The brain of a list-and-watch: what to ask etcd next, and what its answers mean. Pure; the shell is `follow`.

The rules:

1. Nothing is known until a complete list is in (UNLISTED). A list is told as the difference to what was known before;
   by a follower that keeps only the newest keys (known.py) it is told whole, a page at a time.
2. A list is followed by a watch from the revision after it (LISTED), which counts once etcd has confirmed it
   (FOLLOWING).
3. After any interruption the history is doubted: etcd may have been started empty, under the same cluster id and
   already past our revision. It is proved by the newest key we know being, at our revision, exactly as we know it,
   its lease included, whose number no two etcds share (DOUBTED -> LISTED); then the watch resumes where it was. Where
   it is not proved, and after a compaction, all is listed again.
4. Events of one revision are told together: fragments are held back until their revision is complete. Where that
   takes more than there is room for all is listed again.
5. Only an event, a list, or a progress notification of our own watch moves our revision. The header of an answer does
   not: in a watch that is catching up it is ahead of the events.

`_TABLE` below is the whole of it; an input that a state has no row for is the server's fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store.faults import ClusterIdChanged, Compacted, Oversized, Replaced, refusal
from clustermesh.store.known import Deleted, Event, Everything, Newest, Nothing, Put
from clustermesh.store.operations import KEY_COST, KeyValue, Listing

__all__ = [
    "Changed",
    "Deleted",
    "Event",
    "Everything",
    "Follower",
    "Interrupted",
    "Item",
    "ListAll",
    "Listed",
    "Newest",
    "Nothing",
    "Prove",
    "Put",
    "State",
    "Step",
    "WatchFrom",
    "WatchMessage",
]

MAX_HELD: Final = 64 << 20  # bytes of one revision, with KEY_COST for each change; the end of a lease has the most
_MOST_REVISION: Final = 1 << 62  # no etcd gets there, and what is asked for after it still has a number


class Listed(Struct, frozen=True):
    """The complete list is in. `events` is what differs from what was known before it, deletions included.

    Of a follower that knows only the newest, `events` is all there is, and `more` of it follows but for the last part.
    """

    events: Sequence[Event]
    revision: int
    more: bool = False


class Changed(Struct, frozen=True):
    """Changes, in order. Without events: the watch is up again after an interruption, and nothing was missed.

    Where it was cut in parts, `more` of it follows but for the last one.
    """

    events: Sequence[Event]
    revision: int
    more: bool = False


class Interrupted(Struct, frozen=True):
    """Following goes on later; what was told stands, but may be out of date. After Replaced a full list follows."""

    error: ClusterMeshError


Item: TypeAlias = Listed | Changed | Interrupted


class WatchMessage(Struct, frozen=True):
    """One response of a watch. `own` is False for an answer to the whole stream; `events` carry their revisions."""

    revision: int
    cluster_id: int = 0
    created: bool = False
    canceled: bool = False
    reason: str = ""
    compact_revision: int = 0
    fragment: bool = False
    own: bool = True
    events: Sequence[tuple[int, Event]] = ()


class ListAll(NamedTuple):
    """Next step: list every key under the prefix."""


class Prove(NamedTuple):
    """Next step: read `key` as of `revision`."""

    key: bytes
    revision: int


class WatchFrom(NamedTuple):
    """Next step: watch the prefix from `revision` on."""

    revision: int


Step: TypeAlias = ListAll | Prove | WatchFrom


class HoldLimit:
    """How many bytes are held back by all who share it, and `most` may be."""

    def __init__(self, most: int = MAX_HELD) -> None:
        self.most, self.held = most, 0


class State(Enum):
    UNLISTED = auto()
    LISTED = auto()
    FOLLOWING = auto()
    DOUBTED = auto()


class _Input(Enum):
    PAGE = auto()
    LISTING = auto()
    PROOF = auto()
    CREATED = auto()
    EVENTS = auto()
    FRAGMENT = auto()
    PROGRESS = auto()
    SIGN_OF_LIFE = auto()
    CANCELED = auto()


class Follower:
    """What is known of one prefix, and how to learn the rest. Feed it what its steps bring; it may outlive `follow`."""

    def __init__(self, known: Everything | None = None, limit: HoldLimit | None = None) -> None:
        self.state = State.UNLISTED
        self.revision = 0
        self._cluster_id = 0
        self._known = Everything() if known is None else known
        self._first = True  # the next page begins a list
        self._held: list[tuple[int, Event]] = []  # all of one revision
        self._held_bytes, self._limit = 0, limit or HoldLimit()
        self._interrupted = False
        self._anchor = b""

    @property
    def size(self) -> int:
        """How many keys are known."""
        return len(self._known)

    @property
    def paged(self) -> bool:
        """Whether a list is taken in page by page."""
        return self._known.paged

    def step(self) -> Step:
        """What to ask etcd now."""
        if self.state is State.DOUBTED:
            return Prove(self._anchor, self.revision)
        return ListAll() if self.state is State.UNLISTED else WatchFrom(self.revision + 1)

    def listed(self, listing: Listing, more: bool = False) -> Listed:
        """Take in a complete list, or the next page of one."""
        _check_revision(listing.revision)
        self._move(_Input.PAGE if more else _Input.LISTING)
        events = self._known.listed(listing.kvs, self._first)
        self.revision, self._cluster_id, self._first = listing.revision, listing.cluster_id, not more
        self._interrupted = self._interrupted and more
        return Listed(events, self.revision, more)

    def proved(self, kv: KeyValue | None) -> None:
        """Take in the key that was asked for as a proof. Replaced where it is not as we know it."""
        self._move(_Input.PROOF)
        if kv is None or not self._known.proves(kv):
            raise Replaced("etcd holds another history than before: it was started empty or restored")

    def received(self, message: WatchMessage) -> Changed | None:
        """Take in one response of the watch. Raises what ends it."""
        kind = _kind(message)
        self._move(kind)
        return _RECEIVERS[kind](self, message)

    def interrupted(self, error: ClusterMeshError) -> Interrupted:
        """Take in that a step failed or the watch ended."""
        self.drop_held()
        self._interrupted = self._first = True
        if isinstance(error, Compacted | Replaced | Oversized) or not self._known:  # nothing known proves nothing
            self.state = State.UNLISTED
        elif self.state is not State.UNLISTED:
            self.state = State.DOUBTED
            self._anchor = self._known.anchor()
        return Interrupted(error)

    def _move(self, kind: _Input) -> None:
        following = _TABLE.get((self.state, kind))
        if following is None:
            raise Unavailable(f"etcd sent {kind.name.lower()} while {self.state.name.lower()}")
        self.state = following

    def _begin(self, message: WatchMessage) -> Changed | None:
        if self._cluster_id and message.cluster_id != self._cluster_id:
            raise ClusterIdChanged(f"etcd is cluster {message.cluster_id:x}, not {self._cluster_id:x} as before")
        if message.revision < self.revision:
            raise Replaced(f"etcd is at revision {message.revision}, it was at {self.revision} before")
        if not self._interrupted:
            return None
        self._interrupted = False
        return Changed((), self.revision)

    def _hold(self, message: WatchMessage) -> Changed | None:
        self._check(message)
        if not message.events:
            return None
        last, complete = message.events[-1][0], list[tuple[int, Event]]()
        if self._held and self._held[-1][0] != last:
            complete = self._take_held()
        complete += [entry for entry in message.events if entry[0] != last]
        fresh = [entry for entry in message.events if entry[0] == last]
        self._held += fresh
        size = sum(map(_size, fresh))
        self._held_bytes += size
        self._limit.held += size
        if self._limit.held > self._limit.most:
            raise Oversized(f"revision {last} does not end, and more than {self._limit.most} bytes are held back")
        return self._tell(complete)

    def _release(self, message: WatchMessage) -> Changed | None:
        self._check(message)
        held = self._take_held()
        return self._tell(held + list(message.events) if held else message.events)

    def _take_held(self) -> list[tuple[int, Event]]:
        held = self._held
        self.drop_held()
        return held

    def drop_held(self) -> None:
        """What is held back is not told any more."""
        self._limit.held -= self._held_bytes
        self._held, self._held_bytes = [], 0

    def _check(self, message: WatchMessage) -> None:
        _check_revision(message.revision)
        for revision, _ in message.events:
            if not 0 < revision <= message.revision:
                raise Unavailable(f"etcd told of a change at revision {revision}, and is at {message.revision}")

    def _tell(self, entries: Sequence[tuple[int, Event]]) -> Changed | None:
        if not entries:
            return None
        events = [event for _, event in entries]
        self._known.told(events)
        self.revision = max(self.revision, entries[-1][0])
        return Changed(events, self.revision)

    def _progress(self, message: WatchMessage) -> Changed | None:
        _check_revision(message.revision)
        self.revision = max(self.revision, message.revision)
        return None

    def _ignore(self, _message: WatchMessage) -> Changed | None:
        return None

    def _end(self, message: WatchMessage) -> Changed | None:
        if message.compact_revision:
            raise Compacted(f"etcd's history before revision {message.compact_revision} is gone")
        raise refusal(message.reason or "watch cancelled", "the watch")


_TABLE: Final[dict[tuple[State, _Input], State]] = {
    (State.UNLISTED, _Input.PAGE): State.UNLISTED,
    (State.UNLISTED, _Input.LISTING): State.LISTED,
    (State.DOUBTED, _Input.PROOF): State.LISTED,
    (State.LISTED, _Input.CREATED): State.FOLLOWING,
    (State.LISTED, _Input.CANCELED): State.LISTED,
    (State.FOLLOWING, _Input.EVENTS): State.FOLLOWING,
    (State.FOLLOWING, _Input.FRAGMENT): State.FOLLOWING,
    (State.FOLLOWING, _Input.PROGRESS): State.FOLLOWING,
    (State.FOLLOWING, _Input.SIGN_OF_LIFE): State.FOLLOWING,
    (State.FOLLOWING, _Input.CANCELED): State.FOLLOWING,
}
_RECEIVERS: Final[dict[_Input, Callable[[Follower, WatchMessage], Changed | None]]] = {
    _Input.CREATED: Follower._begin,
    _Input.EVENTS: Follower._release,
    _Input.FRAGMENT: Follower._hold,
    _Input.PROGRESS: Follower._progress,
    _Input.SIGN_OF_LIFE: Follower._ignore,
    _Input.CANCELED: Follower._end,
}


def _kind(message: WatchMessage) -> _Input:
    if message.canceled:  # also "created" where etcd refuses a watch
        return _Input.CANCELED
    if message.created:
        return _Input.CREATED
    if not message.own:
        return _Input.SIGN_OF_LIFE
    if message.fragment:
        return _Input.FRAGMENT
    return _Input.EVENTS if message.events else _Input.PROGRESS


def _size(entry: tuple[int, Event]) -> int:
    event = entry[1]
    return KEY_COST + (len(event.kv.key) + len(event.kv.value) if isinstance(event, Put) else len(event.key))


def _check_revision(revision: int) -> None:
    if not 0 < revision <= _MOST_REVISION:
        raise Unavailable(f"etcd says that it is at revision {revision}, which no etcd is")
