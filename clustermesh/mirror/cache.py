"""The cache in the own etcd: what it holds, what it is to hold, and the writing of the difference.

First configurations, then entries, a canary once all entries of its cluster and kind are acknowledged. One that stood
and is gone is written again only after a look at the entries themselves: of two things that were lost together, the
watches may tell in any order. Leases of entries outlive those of canaries, which are renewed three times as often:
where nobody renews them, readers see first that nobody answers for what is there; where somebody does, they see that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack, suppress
from typing import Any, Final

from clustermesh.errors import DecodeError
from clustermesh.gathering import Gathering
from clustermesh.logs import about
from clustermesh.mesh.ownership import is_copy
from clustermesh.mirror.copies import KINDS, cache_place, canary_key, cluster_of
from clustermesh.mirror.sections import Cache, CopiesTarget, Section
from clustermesh.mirror.sink import CANARIES, CONFIGS, MirrorSink
from clustermesh.reconcile import Reconciler
from clustermesh.store.client import EtcdClient
from clustermesh.store.lease import LeaseKeeper
from clustermesh.wire import RESOURCES, keys
from clustermesh.wire.kinds import NODES

_LOG: Final = logging.getLogger(__name__)
_TURN: Final = 0.005  # seconds of deciding between two turns of the event loop
_SOON: Final = 1.0  # seconds until etcd is read again where it could not be
_GATHER: Final = 0.01  # seconds


def make_cache(own: str, client: EtcdClient, keeper: LeaseKeeper, brief: LeaseKeeper) -> Cache:
    """Everything of the cache; the own cluster's keys beside it are its API server's. `brief` has shorter leases."""
    configs = CopiesTarget(client, keeper, keys.CLUSTER_CONFIGS, (keys.cluster_config_key(own),), is_copy)
    canaries = CopiesTarget(client, brief, keys.SYNCED, (keys.canary_prefix(own),), is_copy)
    return Cache(
        [
            Section(CONFIGS, configs),
            *(Section(kind, CopiesTarget(client, keeper, cache_place(kind))) for kind in KINDS),
            Section(CANARIES, canaries),
        ]
    )


PLACES: Final = (keys.CACHE, keys.CLUSTER_CONFIGS, keys.SYNCED)
"""The prefixes that show everything of `make_cache`."""


def adopt(sink: MirrorSink, cache: Cache, connected: Set[str]) -> Iterator[None]:
    """What is there and nobody here asked for stands, until its peer says otherwise; what nobody could have written
    goes. Of what the nodes of `connected` clusters want, those have it that stand there. In turns."""
    for key, value in cache[CONFIGS].unclaimed():
        with suppress(DecodeError):
            sink.found_config(keys.parse_cluster_config(key), value)
    named = [(cluster_of(key), key, value) for key, value in cache[NODES].differing()]
    sink.seat([(cluster, _name(NODES, key), value) for cluster, key, value in named if cluster in connected])
    yield
    for kind in KINDS:
        for key, value in cache[kind].unclaimed():
            with suppress(DecodeError):
                sink.found(cluster_of(key), kind, _name(kind, key), value)
            yield
    held = sink.clusters
    for key, value in cache[CANARIES].unclaimed():
        with suppress(DecodeError):
            if (canary := keys.parse_canary(key)).cached and canary.cluster in held:
                sink.found_canary(canary.cluster, key, value)


def _name(kind: str, key: bytes) -> Any:
    return RESOURCES[kind].name_of(key)


async def in_turns(steps: Iterable[None]) -> None:
    """Take `steps`, and let others have their turn in between."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for _ in steps:
        if clock() - began > _TURN:
            await asyncio.sleep(0)
            began = clock()


class CacheWriter:
    """Call `wake` after the sink heard something. `now` makes the text of a canary.

    Until it is to `lead` it writes nothing: what stands is decided on, so that the difference is known.
    """

    def __init__(self, cache: Cache, sink: MirrorSink, now: Callable[[], bytes], audit_every: float) -> None:
        self.cache, self._sink, self._now, self._audit_every = cache, sink, now, audit_every
        self._configs = Reconciler(cache[CONFIGS].tracker)
        self._data = Reconciler(*(cache[kind].tracker for kind in KINDS))
        self._canaries = Reconciler(cache[CANARIES].tracker)
        for each in (self._configs, self._data, self._canaries):
            each.may_delete = True  # what was found is guarded by the sink
        self._leads = False
        self._stood = frozenset[bytes]()  # canaries, after the last pass
        self._held_back: dict[bytes, bytes] = {}  # canaries that were lost, and wait for their entries
        self._doubtful = False  # etcd could not be read when that was to be found out
        self._wake = asyncio.Event()

    def lead(self) -> None:
        """From now on write."""
        self._leads = True
        self._stood = frozenset(self.cache[CANARIES].tracker.actual)
        self.hurry()

    def wake(self) -> None:
        self._wake.set()

    def hurry(self) -> None:
        """etcd is there again: write now what could not be written."""
        for section in self.cache.sections.values():
            section.tracker.hurry()
        self.wake()

    async def run(self) -> None:
        """Write until cancelled; what fails is tried again, each key in its time."""
        clock = asyncio.get_running_loop().time
        audited, gathering = clock(), Gathering(_GATHER)
        while True:
            self._wake.clear()
            began = clock()
            await in_turns(self._sink.settle())
            gathering.begin(began, writes=self._leads and self._has_pending())
            if self._leads:
                await self.write()
            if self._leads and clock() - audited > self._audit_every:
                await self._audit()
                audited = clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_wait(clock())):
                    await self._wake.wait()
            if wait := gathering.wait(clock()):
                await asyncio.sleep(wait)

    def _has_pending(self) -> bool:
        return any(section.tracker.pending_size for section in self.cache.sections.values())

    def _seconds_to_wait(self, now: float) -> float:
        due = [due for each in (self._configs, self._data, self._canaries) if (due := each.next_due) is not None]
        again = _SOON if self._doubtful else self._audit_every
        return max(min([*due, now + again]) - now, 0.0)

    async def write(self) -> None:
        """One pass over what changed and what is due again."""
        complete = self._list_complete()
        with ExitStack() as stack:
            for section in self.cache.sections.values():
                stack.enter_context(section.busy())
            await self._canaries.delete()  # before what they speak of
            await self._configs.flush()
            if not self.cache[CONFIGS].tracker.pending().upserts:  # what it is due for is due for the others, too
                await self._data.flush()
                await self._write_canaries(complete)

    def _list_complete(self) -> list[tuple[str, str]]:
        """What may have a canary, unless all have: hundreds of clusters are not looked at for each change."""
        clusters = self._sink.clusters
        if len(self.cache[CANARIES].tracker.desired) == len(clusters) * len(KINDS):
            return []
        return [(cluster, kind) for cluster in clusters for kind in self._sink.complete(cluster)]

    async def _write_canaries(self, complete: Iterable[tuple[str, str]]) -> None:
        """Those of which all entries are written."""
        canaries = self.cache[CANARIES]
        if not self._stood.isdisjoint(canaries.tracker.pending().upserts) and not await self._look_again():
            self._doubtful = True
            return
        self._doubtful = False
        missing = [each for each in complete if canary_key(*each) not in canaries.tracker.desired]
        pending = canaries.tracker.pending().upserts
        if missing or pending or self._held_back:
            waiting = {kind: self._waiting(kind) for kind in KINDS}
            for cluster, kind in missing:
                if cluster not in waiting[kind]:
                    canaries.want(canary_key(cluster, kind), self._now())
            self._hold_back(canaries, {canary_key(each, kind) for kind in KINDS for each in waiting[kind]})
            await self._canaries.upsert()
            self._stood = frozenset(canaries.tracker.actual)

    def _hold_back(self, canaries: Section, waiting: Set[bytes]) -> None:
        """One that was lost is wanted again once its entries are written, the lost ones among them."""
        for key, value in canaries.tracker.pending().upserts.items():
            if key in waiting:
                self._held_back[key] = value
                canaries.want(key, None)
        for key in self._held_back.keys() - waiting:
            value = self._held_back.pop(key)
            if keys.parse_canary(key).cluster in self._sink.clusters and key not in canaries.tracker.desired:
                canaries.want(key, value)

    async def _look_again(self) -> bool:
        """Write what has gone from etcd, as canaries did; whether that is known."""
        trackers = [*self._configs.trackers, *self._data.trackers]
        for tracker in trackers:
            await tracker.adopt()
        await self._configs.flush()
        if self.cache[CONFIGS].tracker.pending().upserts:
            return False
        await self._data.flush()
        return all(tracker.error is None or tracker.problems for tracker in trackers)

    def _waiting(self, kind: str) -> Set[str]:
        """The clusters of which something is not written yet."""
        return {cluster_of(key) for key in self.cache[kind].tracker.pending().upserts}

    def written(self, cluster: str, kind: str) -> bool:
        """Whether the canary stands."""
        return canary_key(cluster, kind) in self.cache[CANARIES].tracker.actual

    async def _audit(self) -> None:
        """Compare with etcd itself, in case a watch has kept something from us."""
        for section in self.cache.sections.values():
            with section.busy():
                drift = await section.tracker.audit()
            if drift:
                fields = about(kind=section.name)
                _LOG.warning("%s: %d keys were not as the watch had told", section.name, drift, extra=fields)
                self.wake()
