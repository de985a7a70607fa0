"""A change of an EndpointSlice on its way: to the own etcd, and through a mirror to the cache of a peer.

Beside them, to a bare watcher of the Kubernetes API: sooner than that nobody hears of it.

A change gives its slice an address that was nowhere before; it has arrived where a watcher hears of a value with that
address. The time runs from the moment at which the change is asked for to that at which the watcher has the message.
Who asks and who watches are processes of their own, so that none waits for another one's Python; nothing is subtracted.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from apiserver_bed import Bed
from kube_bed import KubeBed, path_of

from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.endpoint import parse
from clustermesh.store.tls import Tls
from clustermesh.wire import keys
from tests.bench.controlplane import _asking
from tests.bench.controlplane._arrivals import Expected, Listener, listening, milliseconds, watching
from tests.bench.controlplane._asking import elsewhere
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
_PAUSE: Final = 0.03  # seconds between an answer and the next patch
_SETTLED: Final = 3.0  # seconds after the start, at the end of which both look once over all the memory they keep
_TURNS: Final = 100  # a second, of the many
_OFTEN: Final = 1.0  # seconds between two looks at whether all is there
_SLICES: Final = "/apis/discovery.k8s.io/v1/endpointslices"
_OWN: Final = keys.state_prefix("services", "alpha")
_CACHED: Final = keys.cache_prefix("services", "alpha")


class Mesh(NamedTuple):
    """Alpha's Kubernetes API, alpha's etcd, and beta's, which has a mirror of alpha."""

    objects: Objects
    api: KubeBed
    alpha: Bed
    beta: Bed


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
    """1,000 a second for a minute, which leaves each of 9,000 services with five backends: a mirror takes 49,152 of a
    peer."""
    with folder() as home:
        async with _mesh(home, Objects(9_000), GOGC="800") as mesh:
            runs = [await changes(mesh, 60) for _ in range(_RUNS)]
    return {"rate_1000_p99_ms": [_percentile(run, 99) for run in runs]}


FIGURES = {"patch": patch, "rate_1000": rate_1000}


async def patches(mesh: Mesh, number: int, first: int = 0) -> dict[str, float]:
    """Both percentiles, for both places."""
    which = range(first, first + number)
    async with watching(mesh.api.port, _asker(mesh), _SLICES) as watcher:
        asked, found = await _measure(mesh, which, _patch(mesh, which))
        found["watch"] = milliseconds(_expected(mesh.objects, which, asked, b""), await watcher.end())
    return {
        f"patch_to_{place}_p{percent}_ms": _percentile(samples, percent)
        for place, samples in found.items()
        for percent in (50, 99)
    }


async def changes(mesh: Mesh, seconds: float, rate: int = 1000) -> list[float]:
    """Milliseconds of each on its way to the peer's cache."""
    which = range(int(seconds * rate))
    _, found = await _measure(mesh, which, _write(mesh, which, rate))
    return found["cache"]


async def _measure(mesh: Mesh, which: range, ask: Awaitable[list[int]]) -> tuple[Sequence[int], dict[str, list[float]]]:
    """When each of the changes was asked for that `ask` makes, and its milliseconds by where it arrives. RuntimeError
    where one is lost."""
    async with _listening(mesh.alpha, _OWN) as own, _listening(mesh.beta, _CACHED) as cached:
        asked = await ask
        for bed, prefix in ((mesh.alpha, _OWN), (mesh.beta, _CACHED)):
            await _until_there(bed, prefix, mesh.objects, which)
        heard = {"etcd": await own.end(), "cache": await cached.end()}
    return asked, {
        place: milliseconds(_expected(mesh.objects, which, asked, prefix), heard[place])
        for place, prefix in (("etcd", _OWN), ("cache", _CACHED))
    }


def _listening(bed: Bed, prefix: bytes) -> AbstractAsyncContextManager[Listener]:
    return listening(bed.context.endpoint, bed.tls("admin"), prefix)


async def _patch(mesh: Mesh, which: range) -> list[int]:
    """Asked of the API, one after the other."""
    wanted = [mesh.objects.slice(*_change(mesh.objects, number)) for number in which]
    requests = [(f"{path_of(each)}/{each['metadata']['name']}", {"endpoints": each["endpoints"]}) for each in wanted]
    return await elsewhere(_asking.patch, mesh.api.port, _asker(mesh), requests, _PAUSE)


def _asker(mesh: Mesh) -> Tls:
    return mesh.api.authority.issue("asker", organisation="system:masters")


async def _write(mesh: Mesh, which: range, rate: int) -> list[int]:
    """`rate` a second, written where the API keeps them: its own writing would take both cores. Each has a revision of
    its own, as the API writes them: who resumes a watch goes on behind a revision."""
    each = rate // _TURNS
    turns = [[_put(mesh.objects, number) for number in which[at : at + each]] for at in range(0, len(which), each)]
    times = await elsewhere(_asking.write, parse(mesh.api.etcd.endpoints[0]), turns, 1 / _TURNS)
    return [times[number // each] for number in range(len(which))]


def _put(objects: Objects, number: int) -> bytes:
    service, address = _change(objects, number)
    put = registered(objects.slice_key(service), objects.slice(service, address))
    return pb.PutRequest(key=put.key, value=put.value).SerializeToString()


def _change(objects: Objects, number: int) -> tuple[int, str]:
    """Which service it is of, and the address that comes."""
    return number % objects.services, objects.spare(number)


def _expected(objects: Objects, which: range, asked: Sequence[int], prefix: bytes) -> list[Expected]:
    found = []
    for number, at in zip(which, asked, strict=True):
        service, address = _change(objects, number)
        found.append(Expected(_key(prefix, service), _spelled(address), at))
    return found


def _key(prefix: bytes, service: int) -> bytes:
    return prefix + "/".join(service_name(service)).encode()


def _spelled(address: str) -> bytes:
    return b'"%s"' % address.encode()


async def _until_there(bed: Bed, prefix: bytes, objects: Objects, which: range) -> None:
    """Until each service has the address that it got last. TimeoutError where one is lost."""
    last = {_key(prefix, service): _spelled(address) for service, address in (_change(objects, each) for each in which)}
    async with asyncio.timeout(PATIENCE):
        while last:
            await asyncio.sleep(_OFTEN)
            for kv in (await bed.client.range(prefix)).kvs:
                if kv.key in last and last[kv.key] in kv.value:
                    del last[kv.key]


@asynccontextmanager
async def _mesh(home: Path, objects: Objects, **of_kubernetes: str) -> AsyncIterator[Mesh]:
    """Everything runs, and alpha is in beta's cache. `of_kubernetes` is in that API's environment."""
    async with (
        kubernetes(home, objects, **of_kubernetes) as api,
        cluster(home) as alpha,
        cluster(home, "beta", 2) as beta,
    ):
        await own_cluster(beta)
        connect(beta, "alpha", alpha.context.endpoint, alpha.tls("admin"))
        async with api_server(alpha, api) as serving, mirror(beta) as mirroring:
            await until_ready(serving, alpha)
            await until_mirrored(mirroring, beta, ["alpha"])
            await asyncio.sleep(_SETTLED)
            yield Mesh(objects, api, alpha, beta)


def _percentile(samples: list[float], percent: int) -> float:
    return statistics.quantiles(samples, n=100)[percent - 1]
