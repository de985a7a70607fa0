"""The brain of a list-and-watch of one kind: what the API's answers mean, and what to ask next. Pure.

The rules:

1. Nothing is known until a complete list is in; it is told as the difference to what was known before it, so a list
   after an interruption also tells what vanished meanwhile. Pages of an unfinished list count for nothing.
2. The list's resourceVersion begins the watch (LISTED), which counts once the server has taken it (FOLLOWING). Every
   event and every bookmark moves it, and nothing else: the answer to a probe may be ahead of events still to come. An
   interruption resumes the watch there.
3. What is gone from the history (410, be it in a page, at the start of a watch or inside it) is listed again; a list
   that could not be finished in time for that is tried with larger pages, an answer too large to read with smaller.
4. A resourceVersion that goes back, behind the watch or behind a list that was compared with, is another history: all
   is listed again.
5. Credentials that are not taken (401) are asked for again at once; only when the new ones fail too is it an
   interruption. A page that failed is asked for again where the list stood, unless the server refuses the place.
6. Waits double, with jitter. A server that names a time (Retry-After) is obeyed; it is there, so what was waited for it
   before, while it was not, does not count.
7. The first list may be what the API server remembers, which takes a quarter of its work and none of its etcd's: the
   watch from there tells what is newer. A list after that is of now, since what was told must not go back.
8. An object that cannot be read is kept as it was known and said in `refused`; nothing beside it waits. One without a
   name may be any of those that its list does not name: they stay.
9. From time to time what is known is compared with a list of now, beside the watch (comparison.py). What was kept from
   us is counted in `drift` and told; where the watch does not get past that list, it is given up.

`_TABLE` below is the whole of it; an event that a state has no row for is the shell's fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, Final, Generic

from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.kube.comparison import Comparison
from clustermesh.kube.decoding import version_number
from clustermesh.kube.faults import Busy, Expired, Oversized, Replaced, Unauthorized
from clustermesh.kube.hearing import (
    Abandoned,
    Bad,
    Changed,
    Command,
    Compared,
    Due,
    Ended,
    Entry,
    Event,
    Failed,
    Gone,
    Interrupted,
    Item,
    List,
    Listed,
    Opened,
    Page,
    Probed,
    Put,
    Received,
    Started,
    Tell,
    Wait,
    Watch,
)
from clustermesh.kube.resource import K, V
from clustermesh.store.backoff import Backoff

LIMIT: Final = 1000
"""Objects of one page at first."""
MAX_LIMIT: Final = 64_000
MAX_REFUSED: Final = 100
"""Objects that cannot be read and are shown; more are only counted."""
_REFUSED_WAIT: Final = 1.0  # a person must act first: ask seldom
_SHORT: Final = 1.0  # seconds; a watch that ends sooner is no watch
_BEHIND: Final = 150.0  # seconds; a bookmark comes every minute


class State(Enum):
    IDLE = auto()
    LISTING = auto()
    LISTED = auto()
    FOLLOWING = auto()


class View(Struct, frozen=True, kw_only=True):
    """One kind as status and metrics show it. `since` is when `state` began, by the shell's clock."""

    state: str
    since: float
    objects: int
    version: str
    problem: str
    lists: int
    refused: int


class Brain(Generic[K, V]):
    """What is known of one kind, `known`, and how to learn the rest. It may outlive the shell that feeds it."""

    def __init__(self, limit: int = LIMIT, rng: random.Random | None = None) -> None:
        self.known: dict[K, V] = {}
        self.refused: dict[K, str] = {}
        self.complete = False
        self.drift = 0  # objects that were not as the watch had told
        self._comparison: Comparison[K, V] | None = None
        self._state, self._since = State.IDLE, 0.0
        self._version = ""
        self._limit, self._next = limit, ""
        self._fresh: dict[K, V] = {}
        self._bad: dict[K, str] = {}
        self._nameless = 0
        self._may_be_any = False  # an object of the list has no name: it may be any known one that is not named
        self._lists = 0
        self._problem = ""
        self._renewed = False
        self._cached = True  # an old list will do
        self._backoff = Backoff(rng=rng)

    def view(self) -> View:
        """The state of this kind, and what is wrong with it."""
        return View(
            state=self._state.name.lower(),
            since=self._since,
            objects=len(self.known),
            version=self._version,
            problem=self._problem,
            lists=self._lists,
            refused=len(self.refused) + self._nameless,
        )

    def hear(self, event: Event[K, V], now: float) -> list[Command[K, V]]:
        """What to do next, in this order; empty while a watch goes on."""
        if isinstance(event, Failed):
            return self._fail(event.error, now)
        handler = _TABLE[self._state, type(event)]
        return handler(self, event, now)

    def _enter(self, state: State, now: float) -> None:
        self._state, self._since = state, now

    def _start(self, _event: Started, now: float) -> list[Command[K, V]]:
        return [self._watch(now) if self.complete and self._version else self._list(now)]

    def _list(self, now: float) -> List:
        """Begin a list from nothing."""
        self._enter(State.LISTING, now)
        self._fresh, self._bad, self._nameless, self._next = {}, {}, 0, ""
        self._may_be_any = False
        return List(self._limit, fresh=self._renewed, cached=self._cached)

    def _watch(self, now: float) -> Watch:
        self._enter(State.LISTED, now)
        return Watch(self._version, fresh=self._renewed)

    def _page(self, event: Page[K, V], now: float) -> list[Command[K, V]]:
        for entry in event.entries:
            self._collect(entry)
        self._renewed = False
        if event.next:
            self._next = event.next
            return [List(self._limit, event.next)]
        return [Tell(self._settle(event.version)), self._watch(now)]

    def _collect(self, entry: Entry[K, V]) -> None:
        match entry:
            case Put(key, value):
                before = self.known.get(key)
                self._fresh[key] = before if before == value and before is not None else value
            case Bad(key, error):
                self._refuse(self._bad, key, str(error))
                self._may_be_any |= key is None
                if key is not None and key in self.known:
                    self._fresh[key] = self.known[key]

    def _refuse(self, refused: dict[K, str], key: K | None, sentence: str) -> None:
        if key is not None and (key in refused or len(refused) < MAX_REFUSED):
            refused[key] = sentence
        else:
            self._nameless += 1

    def _settle(self, version: str) -> Listed[K, V]:
        """The list is complete: what it changes."""
        before, after = self.known, self.known | self._fresh if self._may_be_any else self._fresh
        changes: dict[K, V | None] = {key: value for key, value in after.items() if before.get(key) is not value}
        changes.update((key, None) for key in before if key not in after)
        self.known, self.refused, self._version = after, self._bad, version
        self._fresh, self._bad, self._comparison = {}, {}, None
        self.complete, self._problem = True, ""
        self._lists += 1
        return Listed(changes)

    def _open(self, _event: Opened, now: float) -> list[Command[K, V]]:
        self._enter(State.FOLLOWING, now)
        self._renewed = False
        if not self._problem:
            return []
        self._problem = ""
        return [Tell(Changed({}))]

    def _probe(self, event: Probed, now: float) -> list[Command[K, V]]:
        if not _goes_back(self._newest, event.version):
            return self._doubt(now)
        sentence = f"the API server is at resourceVersion {event.version}, it was at {self._newest} before"
        return self._fail(Replaced(sentence), now)

    @property
    def _newest(self) -> str:
        """Where its history was at least: a list to compare with may be ahead of the watch."""
        compared = "" if self._comparison is None else self._comparison.version
        return compared if _is_past(compared, self._version) else self._version

    def _receive(self, event: Received[K, V], now: float) -> list[Command[K, V]]:
        if _goes_back(self._version, event.version):
            return self._probe(Probed(event.version), now)
        before: dict[K, V | None] = {}
        for entry in event.entries:
            self._take(entry, before)
        self._version = event.version or self._version
        changes = {key: self.known.get(key) for key, value in before.items() if self.known.get(key) != value}
        if self._comparison is not None:
            self._comparison.told(event.entries)
            changes |= self._repair()
        return [Tell(Changed(changes))] if changes else []

    def _take(self, entry: Entry[K, V], before: dict[K, V | None]) -> None:
        match entry:
            case Put(key, value):
                self.refused.pop(key, None)
                before.setdefault(key, self.known.get(key))
                self.known[key] = value
            case Gone(key):
                self.refused.pop(key, None)
                before.setdefault(key, self.known.pop(key, None))
                self.known.pop(key, None)
            case Bad(key, error):
                self._refuse(self.refused, key, str(error))

    def _end(self, _event: Ended, now: float) -> list[Command[K, V]]:
        """Watches end; one that ends at once is a server that cannot keep them."""
        lasted = now - self._since
        if lasted < _SHORT:
            return self._fail(Unavailable("the API server ended the watch at once"), now)
        return [self._watch(now)]

    def _begin_comparison(self, _event: Due, _now: float) -> list[Command[K, V]]:
        self._comparison = Comparison(self.known)
        return [List(self._limit)]

    def _compare(self, event: Compared[K, V], now: float) -> list[Command[K, V]]:
        if (comparison := self._comparison) is None:  # all was listed meanwhile
            return []
        comparison.page(self.known, event.entries)
        if event.next:
            return [List(self._limit, event.next)]
        comparison.end(event.version, now)
        changes = self._repair()
        return [Tell(Changed(changes))] if changes else []

    def _abandon(self, _event: Abandoned | Due, _now: float) -> list[Command[K, V]]:
        self._comparison = None
        return []

    def _repair(self) -> dict[K, V | None]:
        """What a comparison has found, once that is certain."""
        comparison = self._comparison
        if comparison is None or not comparison.version:
            return {}
        if comparison.differing and not _is_past(self._version, comparison.version):
            return {}
        self._comparison, changes = None, comparison.differing
        self.drift += len(changes)
        for key, value in changes.items():
            self.refused.pop(key, None)
            if value is None:
                self.known.pop(key, None)
            else:
                self.known[key] = value
        return changes

    def _doubt(self, now: float) -> list[Command[K, V]]:
        """The watch is silent: has it anything left to tell?"""
        comparison = self._comparison
        if comparison is None or not comparison.version or now - comparison.since < _BEHIND:
            return []
        self.drift += len(comparison.differing)
        error = Replaced(f"the watch stays behind: {len(comparison.differing)} objects are not as it had told")
        return self._fail(error, now)

    def _fail(self, error: ClusterMeshError, now: float) -> list[Command[K, V]]:
        lasted = now - self._since if self._state is State.FOLLOWING else 0.0
        if isinstance(error, Unauthorized) and not self._renewed:
            self._renewed = True
            return [self._again(error, now)]
        self._problem = str(error)
        told: Item[K, V] = Interrupted(error)
        named = error.seconds if isinstance(error, Busy) else 0.0
        wait = self._backoff.next(max(lasted, named), _REFUSED_WAIT if isinstance(error, Refused) else 0.0)
        self._renewed = isinstance(error, Unauthorized)
        return [Tell(told), Wait(max(wait, named)), self._again(error, now)]

    def _again(self, error: ClusterMeshError, now: float) -> Command[K, V]:
        """What to ask after `error`."""
        refused = isinstance(error, Refused) and not isinstance(error, Unauthorized)
        if refused or isinstance(error, Expired | Replaced):
            self._cached = False
        if isinstance(error, Expired | Replaced):
            if self._state is State.LISTING and self._next:
                self._limit = min(self._limit * 4, MAX_LIMIT)
            self._version = ""
            return self._list(now)
        if self._state is not State.LISTING:
            return self._watch(now)
        if isinstance(error, Oversized):
            self._limit = max(self._limit // 4, 1)
        elif refused:
            return self._list(now)
        return List(self._limit, self._next, self._renewed, self._cached and not self._next)


def _goes_back(before: str, now: str) -> bool:
    old, new = version_number(before), version_number(now)
    return old is not None and new is not None and new < old


def _is_past(now: str, version: str) -> bool:
    reached, wanted = version_number(now), version_number(version)
    return reached is not None and wanted is not None and reached >= wanted


_TABLE: Final[Mapping[tuple[State, type[Any]], Callable[..., list[Any]]]] = {
    (State.IDLE, Started): Brain._start,
    (State.LISTING, Started): Brain._start,
    (State.LISTED, Started): Brain._start,
    (State.FOLLOWING, Started): Brain._start,
    (State.LISTING, Page): Brain._page,
    (State.LISTED, Opened): Brain._open,
    (State.FOLLOWING, Received): Brain._receive,
    (State.FOLLOWING, Probed): Brain._probe,
    (State.FOLLOWING, Ended): Brain._end,
    (State.FOLLOWING, Due): Brain._begin_comparison,
    **{(state, Due): Brain._abandon for state in State if state is not State.FOLLOWING},
    **{(state, Compared): Brain._compare for state in State},
    **{(state, Abandoned): Brain._abandon for state in State},
}
