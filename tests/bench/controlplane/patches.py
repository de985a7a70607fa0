"""A change of an EndpointSlice on its way: to the own etcd, and through a mirror to the cache of a peer.

A change gives its slice an address that was nowhere before; it has arrived where a watcher of this process hears of a
value with that address. The time is taken before the change is asked for.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from apiserver_bed import Bed
from kube_bed import KubeBed

from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.follow import Changed, Interrupted, Listed, follow
from clustermesh.store.follow import Put as Written
from clustermesh.wire import keys
from tests.bench.controlplane._clusters import connect, own_cluster, until_mirrored
from tests.bench.controlplane._objects import Objects, service_name
from tests.bench.controlplane._programs import (
    PATIENCE,
    api_server,
    cluster,
    folder,
    kubernetes,
    mirror,
    registered,
    until_ready,
)

_RUNS: Final = 3
_PATCHES: Final = 300
_PAUSE: Final = 0.02  # between two patches
_SETTLED: Final = 3.0  # seconds after the start, at the end of which both look once over all the memory they keep
_TURN: Final = 0.01  # between two writes of the many


class Mesh(NamedTuple):
    """Alpha's Kubernetes API, alpha's etcd, and beta's, which has a mirror of alpha."""

    objects: Objects
    api: KubeBed
    alpha: Bed
    beta: Bed


class Arrivals:
    """What has arrived under a prefix of an etcd, and how long that took."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix, self.milliseconds = prefix, list[float]()
        self.listed, self._moved = asyncio.Event(), asyncio.Condition()
        self._awaited: dict[bytes, list[tuple[bytes, float]]] = {}

    def expect(self, service: int, address: str) -> None:
        """From now on."""
        key = self.prefix + "/".join(service_name(service)).encode()
        self._awaited.setdefault(key, []).append((b'"%s"' % address.encode(), time.monotonic()))

    async def follow(self, client: EtcdClient) -> None:
        async with aclosing(follow(client, self.prefix)) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    raise item.error
                if isinstance(item, Listed):
                    self.listed.set()
                await self._hear(item)

    async def _hear(self, item: Listed | Changed) -> None:
        now = time.monotonic()
        for event in item.events:
            if isinstance(event, Written):
                self._note(event.kv.key, event.kv.value, now)
        async with self._moved:
            self._moved.notify_all()

    def _note(self, key: bytes, value: bytes, now: float) -> None:
        """A change that a later one of the same service has overtaken has arrived with it."""
        waiting = self._awaited.get(key, [])
        found = next((at for at in reversed(range(len(waiting))) if waiting[at][0] in value), -1)
        self.milliseconds += [(now - began) * 1000 for _, began in waiting[: found + 1]]
        del waiting[: found + 1]

    async def until_all(self) -> None:
        """TimeoutError where something was lost."""
        async with asyncio.timeout(PATIENCE), self._moved:
            await self._moved.wait_for(lambda: not any(self._awaited.values()))


async def patch() -> dict[str, list[float]]:
    """One after the other, asked of the API."""
    found: dict[str, list[float]] = {}
    with folder() as home:
        async with _mesh(home, Objects(10_000)) as mesh:
            for run in range(_RUNS):
                for name, value in (await patches(mesh, _PATCHES, run * _PATCHES)).items():
                    found.setdefault(name, []).append(value)
    return found


async def rate_1000() -> dict[str, list[float]]:
    """1,000 a second for a minute, written where the API keeps them: its own writing would take both cores."""
    with folder() as home:
        async with _mesh(home, Objects(10_000)) as mesh:
            runs = [await changes(mesh, 60) for _ in range(_RUNS)]
    return {"rate_1000_p99_ms": [_percentile(run, 99) for run in runs]}


FIGURES = {"patch": patch, "rate_1000": rate_1000}


async def patches(mesh: Mesh, number: int, first: int = 0) -> dict[str, float]:
    """Both percentiles, for both places."""
    async with _watched(mesh) as (own, cached):
        for each in range(first, first + number):
            await _patch(mesh, each, own, cached)
            await asyncio.sleep(_PAUSE)
    return {
        f"patch_to_{place}_p{percent}_ms": _percentile(arrivals.milliseconds, percent)
        for place, arrivals in (("etcd", own), ("cache", cached))
        for percent in (50, 99)
    }


async def _patch(mesh: Mesh, number: int, own: Arrivals, cached: Arrivals) -> None:
    service, address = number % mesh.objects.services, mesh.objects.spare(number)
    made = mesh.objects.slice(service, address)
    for arrivals in (own, cached):
        arrivals.expect(service, address)
    await asyncio.to_thread(mesh.api.merge, made, {"endpoints": made["endpoints"]})
    await own.until_all()
    await cached.until_all()


async def changes(mesh: Mesh, seconds: float, rate: int = 1000) -> list[float]:
    """Milliseconds of each on its way to the peer's cache. TimeoutError where one never arrives."""
    async with _watched(mesh) as (_, cached), EtcdClient(mesh.api.etcd.endpoints) as client:
        began, number, done = time.monotonic(), 0, set[asyncio.Task[int]]()
        while number < seconds * rate:
            due = int((time.monotonic() - began) * rate)
            some = range(number, min(due, int(seconds * rate)))
            if some:
                done.add(asyncio.create_task(client.transact(_changes(mesh.objects, some, cached))))
                number = some.stop
            await asyncio.sleep(_TURN)
        await asyncio.gather(*done)
    return cached.milliseconds


def _changes(objects: Objects, numbers: range, cached: Arrivals) -> Iterator[Put]:
    for number in numbers:
        service, address = number % objects.services, objects.spare(number)
        cached.expect(service, address)
        yield registered(objects.slice_key(service), objects.slice(service, address))


@asynccontextmanager
async def _watched(mesh: Mesh) -> AsyncIterator[tuple[Arrivals, Arrivals]]:
    """What arrives in alpha's etcd and in beta's cache; in the end everything has."""
    own, cached = Arrivals(keys.state_prefix("services", "alpha")), Arrivals(keys.cache_prefix("services", "alpha"))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(own.follow(mesh.alpha.client)), group.create_task(cached.follow(mesh.beta.client))]
        await asyncio.gather(own.listed.wait(), cached.listed.wait())
        yield own, cached
        await asyncio.gather(own.until_all(), cached.until_all())
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _mesh(home: Path, objects: Objects) -> AsyncIterator[Mesh]:
    """Everything runs, and alpha is in beta's cache."""
    async with kubernetes(home, objects) as api, cluster(home) as alpha, cluster(home, "beta", 2) as beta:
        await own_cluster(beta)
        connect(beta, "alpha", alpha.context.endpoint, alpha.tls("admin"))
        async with api_server(alpha, api) as serving, mirror(beta) as mirroring:
            await until_ready(serving, alpha)
            await until_mirrored(mirroring, beta, ["alpha"])
            await asyncio.sleep(_SETTLED)
            yield Mesh(objects, api, alpha, beta)


def _percentile(samples: list[float], percent: int) -> float:
    return statistics.quantiles(samples, n=100)[percent - 1]
