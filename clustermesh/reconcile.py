"""Desired -> diff -> apply, for every resource: etcd keys, eBPF maps, WireGuard peers, routes.

A `Target` is three idempotent verbs over batches. A `Tracker` remembers what is wanted and what was truly applied
(`deltas.py`), so that one change costs one change. `Reconciler.flush` adds before it deletes: trackers are upserted in
the order given and deleted from in the reverse order, so whatever is referred to (a backend) is there before, and goes
after, what refers to it.

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
)
from contextlib import aclosing
from itertools import islice
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from clustermesh.deltas import Deltas
from clustermesh.errors import ApplyError, ClusterMeshError, Unavailable
from clustermesh.line import LIMIT, Line

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

PAGE: Final = 1024  # entries compared between two turns of the event loop, a few ms
SLICE: Final = 2048  # entries that a target is asked to take at once: what is done for them before and after is as much

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


@runtime_checkable
class Prompt(Protocol):
    """A target that takes this many entries in place, without waiting for anything, in less time than a task costs."""

    at_once: int


class Tracker(Deltas[K, V]):
    """The deltas of one target, read from it and written to it."""

    def __init__(
        self, name: str, target: Target[K, V], *, limit: float = LIMIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.name, self.target = name, target
        self.drift = 0
        self._clock, self._line = clock, Line(limit)
        self._at_once = target.at_once if isinstance(target, Prompt) else 0
        self._unreadable: str | None = None

    @property
    def error(self) -> str | None:
        """What is wrong now: why the target cannot be read, or why one of `problems` was not applied."""
        first = next(iter(self.problems.values()), None)
        return self._unreadable or (None if first is None else first.sentence)

    @property
    def is_readable(self) -> bool:
        """Whether the target could be read when that was last tried."""
        return self._unreadable is None

    def hurry(self) -> None:
        """Whatever was in the way is gone: try at the next flush all that failed."""
        self._retries.hurry(len(self.problems), self._clock())

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

    # -- writing ------------------------------------------------------------------------------------------------------

    async def upsert_pending(self) -> None:
        """Write what changed and what is due again."""
        for key in self._retries.take_due(self._clock()):
            self._dirty.setdefault(key, self.desired.get(key))
        if not self._dirty:
            return
        for keys in _chunks(list(self._dirty), SLICE):
            # As it is wanted by now: others have had their turn during the slice before.
            entries = {key: value for key in keys if (value := self._dirty.get(key)) is not None}
            if entries:
                self._settle(entries, await self._attempt(self.target.upsert(entries), entries), self._clock())

    async def delete_pending(self) -> None:
        if not self._dirty:
            return
        for some in _chunks(list(self._dirty), SLICE):
            keys = [key for key in some if key not in self.desired]
            if keys:
                self._settle(dict.fromkeys(keys), await self._attempt(self.target.delete(keys), keys), self._clock())

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
            if 0 < entries <= self._at_once:
                return await call
            return await self._line.call(call, entries)
        except ClusterMeshError:
            raise
        except Exception as e:
            _log.exception("%s: a call failed", self.name)
            raise Unavailable(f"internal error, see the log: {e!r}") from e


async def _next_page(pages: AsyncIterator[T]) -> T | None:
    return await anext(pages, None)


def _chunks(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    each = iter(items)
    while chunk := list(islice(each, size)):
        yield chunk


class Reconciler:
    """Several trackers applied as one: every upsert in order, then every delete in reverse order.

    Nothing is deleted until `may_delete` is set, which its owner does when the first complete list is in; but what is
    not wanted any more of `grants`, those of the trackers by which somebody is let in.
    """

    def __init__(self, *trackers: Tracker[Any, Any], grants: Collection[Tracker[Any, Any]] = ()) -> None:
        self.trackers, self._grants = trackers, grants
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
            for tracker in self._grants:
                await tracker.delete_pending()
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
