"""The cache in the own etcd: what it holds, what it is to hold, and the writing of the difference.

First configurations, then entries, a canary once all entries of its cluster and kind are acknowledged. One that stood
and is gone is written again only after a look at the entries themselves: of two things that were lost together, the
watches may tell in any order. Leases of entries outlive those of canaries: where nobody renews them, readers see first
that nobody answers for what is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Set
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Final

from clustermesh.apiserver.keys_target import Held, KeysTarget
from clustermesh.apiserver.ledger import Ledger, Section
from clustermesh.errors import DecodeError
from clustermesh.mirror.copies import KINDS, cache_place, canary_key, cluster_of
from clustermesh.mirror.sink import CANARIES, CONFIGS, MirrorSink
from clustermesh.reconcile import Reconciler
from clustermesh.store.client import EtcdClient
from clustermesh.store.lease import LeaseKeeper
from clustermesh.wire import RESOURCES, keys

_LOG: Final = logging.getLogger(__name__)
_TURN: Final = 0.005  # seconds of deciding between two turns of the event loop
_GATHER: Final = 0.01  # seconds between two passes: a change alone waits for nothing, many go at once


class _PagedTarget(KeysTarget):
    """Too many keys to be read in one go."""

    async def pages(self) -> AsyncIterator[Mapping[bytes, Held]]:
        for prefix in self.prefixes:
            pages: AsyncGenerator = self.client.pages(prefix)  # type: ignore[type-arg]
            async with aclosing(pages) as listings:
                async for listing, _ in listings:
                    yield {kv.key: self.held(kv) for kv in listing.kvs if self.covers(kv.key)}


def make_ledger(own: str, client: EtcdClient, keeper: LeaseKeeper, brief: LeaseKeeper) -> Ledger:
    """Everything of the cache; the own cluster's keys beside it are its API server's. `brief` has shorter leases."""
    configs = _PagedTarget(client, keeper, [keys.CLUSTER_CONFIGS], but=(keys.cluster_config_key(own),))
    canaries = _PagedTarget(client, brief, [keys.SYNCED], but=(keys.canary_prefix(own),))
    return Ledger(
        [
            Section(CONFIGS, configs),
            *(Section(kind, _PagedTarget(client, keeper, [cache_place(kind)])) for kind in KINDS),
            Section(CANARIES, canaries),
        ]
    )


PLACES: Final = (keys.CACHE, keys.CLUSTER_CONFIGS, keys.SYNCED)
"""The prefixes that show everything of `make_ledger`."""


def adopt(sink: MirrorSink, ledger: Ledger) -> Iterator[None]:
    """What was found is what stands, until its peer says otherwise; what nobody could have written goes. In turns."""
    for key, value in ledger[CONFIGS].found().items():
        with suppress(DecodeError):
            sink.found_config(keys.parse_cluster_config(key), value)
    for kind in KINDS:
        for key, value in ledger[kind].found().items():
            with suppress(DecodeError):
                sink.found(cluster_of(key), kind, RESOURCES[kind].name_of(key), value)
            yield
    held = sink.clusters
    for key, value in ledger[CANARIES].found().items():
        with suppress(DecodeError):
            if (canary := keys.parse_canary(key)).cached and canary.cluster in held:
                sink.found_canary(canary.cluster, key, value)
    ledger.prune()


async def in_turns(steps: Iterable[None]) -> None:
    """Take `steps`, and let others have their turn in between."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for _ in steps:
        if clock() - began > _TURN:
            await asyncio.sleep(0)
            began = clock()


class CacheWriter:
    """Call `wake` after the sink heard something. `now` makes the text of a canary."""

    def __init__(self, ledger: Ledger, sink: MirrorSink, now: Callable[[], bytes], audit_every: float) -> None:
        self.ledger, self._sink, self._now, self._audit_every = ledger, sink, now, audit_every
        self._configs = Reconciler(ledger[CONFIGS].tracker)
        self._data = Reconciler(*(ledger[kind].tracker for kind in KINDS))
        self._canaries = Reconciler(ledger[CANARIES].tracker)
        for each in (self._configs, self._data, self._canaries):
            each.may_delete = True  # what was found is guarded by the sink
        self._stood = frozenset[bytes]()  # canaries, after the last pass
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    def hurry(self) -> None:
        """etcd is there again: write now what could not be written."""
        for section in self.ledger.sections.values():
            section.tracker.hurry()
        self.wake()

    async def run(self) -> None:
        """Write until cancelled; what fails is tried again, each key in its time."""
        clock = asyncio.get_running_loop().time
        audited = clock()
        while True:
            self._wake.clear()
            began = clock()
            await self.write()
            if clock() - audited > self._audit_every:
                await self._audit()
                audited = clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_to_wait(clock())):
                    await self._wake.wait()
            await asyncio.sleep(began + _GATHER - clock())

    def _seconds_to_wait(self, now: float) -> float:
        due = [due for each in (self._configs, self._data, self._canaries) if (due := each.next_due) is not None]
        return max(min([*due, now + self._audit_every]) - now, 0.0)

    async def write(self) -> None:
        """One pass over what changed and what is due again."""
        await in_turns(self._sink.settle())
        complete = [(cluster, kind) for cluster in self._sink.clusters for kind in self._sink.complete(cluster)]
        async with AsyncExitStack() as stack:
            for section in self.ledger.sections.values():
                await stack.enter_async_context(section.busy())
            await self._canaries.delete()  # before what they speak of
            await self._configs.flush()
            await self._data.flush()
            self._want_canaries(complete)
            await self._write_canaries()

    async def _write_canaries(self) -> None:
        tracker = self.ledger[CANARIES].tracker
        pending = tracker.pending().upserts
        if not self._stood.isdisjoint(pending):
            await self._configs.adopt()
            await self._data.adopt()
            await self._configs.flush()
            await self._data.flush()
        if pending:
            await self._canaries.upsert()
            self._stood = frozenset(tracker.actual)

    def _want_canaries(self, complete: Iterable[tuple[str, str]]) -> None:
        """Where all that was wanted when it was complete is written. It stands from then on."""
        canaries = self.ledger[CANARIES]
        missing = [each for each in complete if canary_key(*each) not in canaries.tracker.desired]
        if not missing:
            return
        waiting = {kind: self._waiting(kind) for kind in KINDS}
        for cluster, kind in missing:
            if cluster not in waiting[kind]:
                canaries.want(canary_key(cluster, kind), self._now())

    def _waiting(self, kind: str) -> Set[str]:
        """The clusters of which something is not written yet."""
        return {cluster_of(key) for key in self.ledger[kind].tracker.pending().upserts}

    def written(self, cluster: str, kind: str) -> bool:
        """Whether the canary stands."""
        return canary_key(cluster, kind) in self.ledger[CANARIES].tracker.actual

    async def _audit(self) -> None:
        """Compare with etcd itself, in case a watch has kept something from us."""
        for section in self.ledger.sections.values():
            async with section.busy():
                drift = await section.tracker.audit()
            if drift:
                _LOG.warning("%s: %d keys were not as the watch had told", section.name, drift)
                self.wake()
