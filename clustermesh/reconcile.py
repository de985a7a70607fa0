"""Desired -> diff -> apply, for every resource: etcd keys, eBPF maps, WireGuard peers, routes.

A `Target` is three idempotent verbs over batches. A `Tracker` remembers what is wanted and what was truly applied, so
that one change costs one change. `Reconciler.flush` adds before it deletes: trackers are upserted in the order given
and deleted from in the reverse order, so whatever is referred to (a backend) is there before, and goes after, what
refers to it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from clustermesh.errors import ApplyError, ClusterMeshError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Target(Protocol[K, V]):
    """A resource outside this process. Raises ApplyError where some entries failed and the rest were applied."""

    async def dump(self) -> Mapping[K, V]: ...
    async def upsert(self, entries: Mapping[K, V]) -> None: ...
    async def delete(self, keys: Collection[K]) -> None: ...  # absent is success


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

    def __init__(self, name: str, target: Target[K, V]) -> None:
        self.name, self.target = name, target
        self.desired: dict[K, V] = {}
        self.actual: dict[K, V] = {}
        self.failed: dict[K, str] = {}
        self._unreadable: str | None = None
        self.drift = 0
        self._dirty: dict[K, None] = {}  # an ordered set: what was asked for first is applied first

    @property
    def error(self) -> str | None:
        """What is wrong now: why the target cannot be read, or why one of `failed` was not applied."""
        return self._unreadable or next(iter(self.failed.values()), None)

    def set(self, key: K, value: V) -> None:
        held = self.actual.get(key)
        self.desired[key] = held if held is not None and held == value else value  # equal values are one object
        self._mark(key)

    def remove(self, key: K) -> None:
        if self.desired.pop(key, None) is not None:
            self._mark(key)

    def replace(self, desired: Mapping[K, V]) -> None:
        """Make `desired` the whole of what is wanted."""
        delta = diff(desired, self.desired)
        for key, value in delta.upserts.items():
            self.set(key, value)
        for key in delta.deletes:
            self.remove(key)

    def observe(self, key: K, value: V | None) -> None:
        """Take in that the target now holds `value` at `key` (None: nothing), whoever wrote it."""
        if value is None:
            self.actual.pop(key, None)
        else:
            self.actual[key] = value
        self._mark(key)

    def observe_all(self, actual: Mapping[K, V]) -> int:
        """Take in a full dump; returns how many entries were not as they were last known to be (the drift)."""
        drift = diff(actual, self.actual)
        self.actual |= drift.upserts
        for key in drift.deletes:
            del self.actual[key]
        delta = diff(self.desired, self.actual)
        self._dirty = dict.fromkeys([*delta.upserts, *delta.deletes])
        self.failed = {key: why for key, why in self.failed.items() if key in self._dirty}
        return len(drift.upserts) + len(drift.deletes)

    def pending(self) -> Delta[K, V]:
        """What is still to be applied, entries that failed before included."""
        upserts: dict[K, V] = {}
        deletes: list[K] = []
        for key in self._dirty:
            if key in self.desired:
                upserts[key] = self.desired[key]
            else:
                deletes.append(key)
        return Delta(upserts, deletes)

    def _mark(self, key: K) -> None:
        wanted, held = key in self.desired, key in self.actual
        if wanted == held and (not wanted or self.desired[key] == self.actual[key]):
            self._dirty.pop(key, None)
            self.failed.pop(key, None)
        else:
            self._dirty.pop(key, None)  # what was marked last is applied last
            self._dirty[key] = None

    async def adopt(self) -> int:
        """Take in what the target holds; returns how much of it was not known.

        A target that cannot be dumped leaves everything as it was last known, and `error` says why.
        """
        try:
            unknown = self.observe_all(await self.target.dump())
        except ClusterMeshError as e:
            self._unreadable = str(e)
            return 0
        self._unreadable = None
        return unknown

    async def audit(self) -> int:
        """Compare the target with what it was last known to hold; counts and returns the drift."""
        drift = await self.adopt()
        self.drift += drift
        return drift

    async def upsert_pending(self) -> None:
        entries = self.pending().upserts
        if entries:
            self._settle(entries, await _outcome(self.target.upsert(entries), entries))

    async def delete_pending(self) -> None:
        keys = self.pending().deletes
        if keys:
            self._settle(dict.fromkeys(keys), await _outcome(self.target.delete(keys), keys))

    def _settle(self, entries: Mapping[K, V | None], failed: Mapping[K, str]) -> None:
        for key, value in entries.items():
            if key in failed:
                self.failed[key] = failed[key]
            else:
                self.failed.pop(key, None)
                self.observe(key, value)


class _Awaitable(Protocol):
    def __await__(self) -> object: ...


async def _outcome(attempt: _Awaitable, keys: Collection[K]) -> Mapping[K, str]:
    """The keys that failed, each with a sentence."""
    try:
        await attempt  # type: ignore[misc]  # a coroutine of None
    except ApplyError as e:
        return e.failed  # type: ignore[return-value]  # keyed as the target's own keys
    except ClusterMeshError as e:
        return dict.fromkeys(keys, str(e))
    return {}


class Reconciler:
    """Several trackers applied as one: every upsert in order, then every delete in reverse order.

    Nothing is deleted until `may_delete` is set, which its owner does when the first complete list is in.
    """

    def __init__(self, *trackers: Tracker) -> None:  # type: ignore[type-arg]  # of any keys and values
        self.trackers = trackers
        self.may_delete = False

    async def flush(self) -> None:
        """Apply what is pending. Failures stay pending and are kept in each tracker's `failed` and `error`."""
        await self.upsert()
        await self.delete()

    async def upsert(self) -> None:
        for tracker in self.trackers:
            await tracker.upsert_pending()

    async def delete(self) -> None:
        """Where a tracker has failures, what it may still refer to (the trackers before it) is not deleted from."""
        if not self.may_delete:
            return
        for tracker in reversed(self.trackers):
            await tracker.delete_pending()
            if tracker.failed:
                return

    async def adopt(self) -> None:
        """Take over what the targets hold when this process starts."""
        for tracker in self.trackers:
            await tracker.adopt()

    async def audit(self) -> int:
        """Dump every target; returns the entries found changed behind our back."""
        return sum([await tracker.audit() for tracker in self.trackers])

    @property
    def settled(self) -> bool:
        """True when kernel, etcd or whatever the targets are hold exactly what is wanted."""
        return not any(any(tracker.pending()) for tracker in self.trackers)
