"""Desired -> diff -> apply, for every resource: etcd keys, eBPF maps, WireGuard peers, routes.

A `Target` is three idempotent verbs over batches. A `Tracker` remembers what is wanted and what was truly applied, so
that one change costs one change. `Reconciler.flush` adds before it deletes: trackers are upserted in the order given
and deleted from in the reverse order, so whatever is referred to (a backend) is there before, and goes after, what
refers to it.

Rules
- What failed is tried again by itself, each key with a back-off of its own, or at once when it changes.
- Each call has a time limit. One that does not end is cancelled and left behind; the target is not called again before
  it has ended.
- An entry whose fate is unknown (its call failed or was left behind as a whole) is written or deleted again, whatever
  is wanted by then.
- Nothing is deleted that an entry which could not be changed, and exists, may still refer to.
- What was found in the target and was never wanted since can be kept back from deletion: whoever knows that it is to
  go may not have spoken yet.
- A comparison goes page by page; what is written in between is left out of it, and another one in between ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableSet,
)
from contextlib import aclosing
from itertools import chain, islice, repeat
from operator import is_
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from clustermesh.errors import ApplyError, ClusterMeshError, Unavailable
from clustermesh.line import LIMIT, Line
from clustermesh.retries import Problem, Retries

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

PAGE: Final = 1024  # entries compared between two turns of the event loop, a few ms
SLICE: Final = 4096  # entries that a target is asked to take at once: what is done for them before and after is as much

_log = logging.getLogger(__name__)


class Target(Protocol[K, V]):
    """A resource outside this process. Raises ApplyError where some entries failed and the rest were applied."""

    async def dump(self) -> Mapping[K, V]: ...
    async def upsert(self, entries: Mapping[K, V]) -> None: ...
    async def delete(self, keys: Collection[K]) -> None: ...  # absent is success


@runtime_checkable
class Paged(Protocol):
    """A target that is too large to be read in one go: each page is a mapping, as of `dump`."""

    def pages(self) -> AsyncIterator[Mapping[Any, Any]]: ...


class Delta(NamedTuple, Generic[K, V]):
    """What turns one table into another."""

    upserts: dict[K, V]
    deletes: list[K]


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """The smallest delta with apply(diff(desired, actual), actual) == desired."""
    absent = object()
    upserts = {key: value for key, value in desired.items() if actual.get(key, absent) != value}
    return Delta(upserts, [key for key in actual if key not in desired])


class Tracker(Generic[K, V]):
    """What one target should hold (`desired`), what it was last known to hold (`actual`), and where the two differ."""

    def __init__(
        self, name: str, target: Target[K, V], *, limit: float = LIMIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.target = name, target
        self.desired: dict[K, V] = {}
        self.actual: dict[K, V] = {}
        self.drift = 0
        self.failures = 0  # tries that failed, of any entry
        self.blocking: set[K] = set()  # entries with a problem that exist, or may: they still refer to others
        self._clock, self._line = clock, Line(limit)
        self._unreadable: str | None = None
        self._dirty: dict[K, None] = {}  # an ordered set: what was asked for first is applied first
        self._retries = Retries[K]()  # what failed is here and, until it is due, not in `_dirty`
        self.problems: Mapping[K, Problem] = self._retries.problems
        self._unsure: set[K] = set()  # entries whose fate is unknown
        self._touched: set[K] | None = None  # what was written since a comparison began
        self._withdrawn: set[K] | None = None  # wanted once, and no more: while it is set, all else is kept, ...
        self._kept: dict[K, None] = {}  # ... apart from `_dirty`: a change must not cost all that is kept

    @property
    def failed(self) -> dict[K, str]:
        """The entries that could not be applied, each with a sentence."""
        return {key: problem.sentence for key, problem in self.problems.items()}

    @property
    def error(self) -> str | None:
        """What is wrong now: why the target cannot be read, or why one of `problems` was not applied."""
        first = next(iter(self.problems.values()), None)
        return self._unreadable or (None if first is None else first.sentence)

    @property
    def settled(self) -> bool:
        """True when the target is known to hold exactly what is wanted, and what is kept."""
        return not self.problems and not self._dirty

    @property
    def next_due(self) -> float | None:
        """When something that failed is to be tried again, by the clock."""
        return self._retries.next_due

    def hurry(self) -> None:
        """Whatever was in the way is gone: try at the next flush all that failed."""
        self._retries.hurry(len(self.problems), self._clock())

    def set(self, key: K, value: V) -> None:
        held = self.actual.get(key)
        self._kept.pop(key, None)
        if held is not None and held == value:
            self.desired[key] = held  # equal values are one object
            if not self.problems and not self._unsure:
                self._dirty.pop(key, None)  # what was there, and ...
                return
        else:
            self.desired[key] = value
            if key not in self._dirty and not self.problems:
                self._dirty[key] = None  # ... what is new, at a third of the cost
                return
        self._mark(key)

    def remove(self, key: K) -> None:
        if self.desired.pop(key, None) is not None:
            if self._withdrawn is not None:
                self._withdrawn.add(key)
            self._mark(key)

    def replace(self, desired: Mapping[K, V]) -> None:
        """Make `desired` the whole of what is wanted."""
        delta = diff(desired, self.desired)
        for key, value in delta.upserts.items():
            self.set(key, value)
        for key in delta.deletes:
            self.remove(key)

    def keep_unclaimed(self) -> None:
        """From now on delete only what was wanted after this call, which comes before any other."""
        self._withdrawn = set()

    def release_unclaimed(self) -> None:
        """What was kept and is not wanted may go."""
        self._withdrawn = None
        self._dirty |= self._kept
        self._kept = {}

    def _is_kept(self, key: K) -> bool:
        return self._withdrawn is not None and key not in self.desired and key not in self._withdrawn

    def observe(self, key: K, value: V | None) -> None:
        """Take in that the target now holds `value` at `key` (None: nothing), whoever wrote it."""
        if self._touched is not None:
            self._touched.add(key)
        self._take(key, value)

    def _take(self, key: K, value: V | None) -> None:
        self._unsure.discard(key)
        if value is None:
            self.actual.pop(key, None)
        else:
            wanted = self.desired.get(key)
            self.actual[key] = value if wanted is None or wanted != value else wanted  # equal values are one object
        self._mark(key)

    @property
    def pending_size(self) -> int:
        """How many entries are still to be applied: the length of `pending` at a small part of its cost."""
        return len(self._dirty) + sum(key not in self._dirty for key in self.problems)

    @property
    def has_all(self) -> bool:
        """True when the target is known to hold everything that is wanted; more than that may be there."""
        return not any(key in self.desired for key in chain(self._dirty, self.problems))

    def pending(self) -> Delta[K, V]:
        """What is still to be applied, entries that failed before included."""
        return self._split([*self._dirty, *(key for key in self.problems if key not in self._dirty)])

    def _split(self, keys: Iterable[K]) -> Delta[K, V]:
        upserts: dict[K, V] = {}
        deletes: list[K] = []
        for key in keys:
            if key in self.desired:
                upserts[key] = self.desired[key]
            else:
                deletes.append(key)
        return Delta(upserts, deletes)

    def _mark(self, key: K) -> None:
        self._dirty.pop(key, None)  # what was marked last is applied last
        self._kept.pop(key, None)
        if self.desired.get(key) != self.actual.get(key) or key in self._unsure:
            (self._kept if self._is_kept(key) else self._dirty)[key] = None
        else:
            self._retries.forget(key)
        self._note_blocking(key)

    def _note_blocking(self, key: K) -> None:
        if key in self.problems and (key in self.actual or key in self._unsure):
            self.blocking.add(key)
        else:
            self.blocking.discard(key)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def adopt(self) -> int:
        """Take in what the target holds; returns how much of it was not known.

        A target that cannot be read leaves everything as it was last known, and `error` says why.
        """
        return sum([found async for found in self.compare()])

    async def audit(self) -> int:
        """Compare the target with what it was last known to hold; counts and returns the drift."""
        drift = await self.adopt()
        self.drift += drift
        return drift

    async def compare(self) -> AsyncGenerator[int, None]:
        """As `adopt`, in steps of a few milliseconds: yields what each has found. Between two, others may flush.

        Where they compare, too, this ends: what it has read is older than what they found.
        """
        mine = self._touched = set[K]()
        try:
            async with aclosing(self._compare_all()) as steps:
                async for found in steps:
                    yield found
                    if self._touched is not mine:
                        return
        finally:
            if self._touched is mine:
                self._touched = None

    async def _compare_all(self) -> AsyncGenerator[int, None]:
        unseen: set[K] = set()
        try:
            for known in _chunks(list(self.actual)):
                unseen.update(known)
                yield 0
            async with aclosing(self._pages()) as pages:
                async for page in pages:
                    yield self._compare_page(page, unseen)
            for known in _chunks([*unseen, *self._unsure]):
                yield self._compare_absent(known)
            self._unreadable = None
        except ClusterMeshError as e:
            self._unreadable = str(e)

    async def _pages(self) -> AsyncGenerator[Mapping[K, V], None]:
        """Raises ClusterMeshError."""
        if not isinstance(self.target, Paged):
            whole = await self._ask(self.target.dump())
            for part in _chunks(whole.items()):
                yield dict(part)
                await asyncio.sleep(0)
            return
        pages = aiter(self.target.pages())
        while (page := await self._ask(_next_page(pages))) is not None:
            yield page
            await asyncio.sleep(0)

    def _compare_page(self, page: Mapping[K, V], unseen: MutableSet[K]) -> int:
        found = 0
        if not (self.desired or self.problems or self._unsure or self._touched) and self.actual.keys().isdisjoint(page):
            self.actual.update(page)  # as at a start
            (self._dirty if self._withdrawn is None else self._kept).update(dict.fromkeys(page))
            return len(page)
        for key, value in page.items():
            unseen.discard(key)
            known = self.actual.get(key)
            if (known is None or known != value or key in self._unsure) and not self._is_touched(key):
                found += known != value
                self._take(key, value)
        return found

    def _compare_absent(self, keys: Iterable[K]) -> int:
        found = 0
        for key in keys:
            if not self._is_touched(key):
                found += key in self.actual
                self._take(key, None)
        return found

    def _is_touched(self, key: K) -> bool:
        return self._touched is not None and key in self._touched

    # -- writing ------------------------------------------------------------------------------------------------------

    async def upsert_pending(self) -> None:
        """Write what changed and what is due again."""
        for key in self._retries.take_due(self._clock()):
            self._dirty.setdefault(key)
        for keys in _chunks(list(self._dirty), SLICE):
            entries = {key: value for key in keys if (value := self.desired.get(key)) is not None}
            if entries:
                self._settle(entries, await self._attempt(self.target.upsert(entries), entries))

    async def delete_pending(self) -> None:
        for some in _chunks(list(self._dirty), SLICE):
            keys = [key for key in some if key not in self.desired]
            if keys:
                self._settle(dict.fromkeys(keys), await self._attempt(self.target.delete(keys), keys))

    def _settle(self, entries: Mapping[K, V | None], failed: Mapping[K, str]) -> None:
        now = self._clock()
        if not (failed or self.problems or self._unsure or self._touched is not None):
            self._settle_all(entries)
            return
        for key, value in entries.items():
            if key not in failed:
                self.observe(key, value)
                continue
            if self._is_what_was_tried(key, value):
                self._dirty.pop(key, None)  # until it is due
            self._retries.fail(key, failed[key], now)
            self._note_blocking(key)
        self.failures += len(failed)
        # Where something succeeds, room was made, or the target is back: a little more of the rest may succeed, too.
        self._retries.hurry(2 * (len(entries) - len(failed)), now)

    def _settle_all(self, entries: Mapping[K, V | None]) -> None:
        """Where all is well: what `observe` would do for each. All were written or all deleted."""
        if None in islice(entries.values(), 1):
            _drop(self.actual, entries)
        else:
            self.actual.update(entries)  # type: ignore[arg-type]
        if all(map(is_, map(self.desired.get, entries), entries.values())):
            _drop(self._dirty, entries)
        else:  # some are wanted otherwise since the call began
            for key in entries:
                self._mark(key)

    def _is_what_was_tried(self, key: K, value: V | None) -> bool:
        return self.desired.get(key) == value

    async def _attempt(self, call: Coroutine[Any, Any, None], keys: Collection[K]) -> Mapping[K, str]:
        """The keys that failed, each with a sentence."""
        try:
            await self._ask(call, len(keys))
        except ApplyError as e:
            return e.failed  # type: ignore[return-value]  # keyed as the target's own keys
        except ClusterMeshError as e:
            if self._touched is not None:
                self._touched.update(keys)
            self._unsure.update(keys)
            return dict.fromkeys(keys, str(e))
        return {}

    async def _ask(self, call: Coroutine[Any, Any, T], entries: int = 0) -> T:
        """Raises ClusterMeshError, whatever goes wrong: a bug in a target is no reason to end the agent."""
        try:
            return await self._line.call(call, entries)
        except ClusterMeshError:
            raise
        except Exception as e:
            _log.exception("%s: a call failed", self.name)
            raise Unavailable(f"internal error, see the log: {e!r}") from e


async def _next_page(pages: AsyncIterator[T]) -> T | None:
    return await anext(pages, None)


def _drop(table: dict[Any, Any], keys: Iterable[Any]) -> None:
    deque(map(table.pop, keys, repeat(None)), maxlen=0)


def _chunks(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    each = iter(items)
    while chunk := list(islice(each, size)):
        yield chunk


class Reconciler:
    """Several trackers applied as one: every upsert in order, then every delete in reverse order.

    Nothing is deleted until `may_delete` is set, which its owner does when the first complete list is in.
    """

    def __init__(self, *trackers: Tracker[Any, Any]) -> None:
        self.trackers = trackers
        self.may_delete = False

    async def flush(self) -> None:
        """Apply what is pending and due. Failures are kept in each tracker's `problems`."""
        await self.upsert()
        await self.delete()

    async def upsert(self) -> None:
        for tracker in self.trackers:
            await tracker.upsert_pending()

    async def delete(self) -> None:
        """What an entry that could not be changed may still refer to (the trackers before it) is not deleted from."""
        if not self.may_delete:
            return
        for tracker in reversed(self.trackers):
            await tracker.delete_pending()
            if tracker.blocking:
                return

    async def adopt(self) -> None:
        """Take over what the targets hold when this process starts."""
        for tracker in self.trackers:
            await tracker.adopt()

    async def audit(self) -> int:
        """Read every target; returns the entries found changed behind our back."""
        return sum([await tracker.audit() for tracker in self.trackers])

    @property
    def next_due(self) -> float | None:
        """When something that failed is to be tried again, by the trackers' clock."""
        return min((due for tracker in self.trackers if (due := tracker.next_due) is not None), default=None)

    @property
    def settled(self) -> bool:
        """True when kernel, etcd or whatever the targets are hold exactly what is wanted."""
        return all(tracker.settled for tracker in self.trackers)
