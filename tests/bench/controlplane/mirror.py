"""Reading peers: one cluster with many services, and the 250 of Cilium's own scale test.

The 250 stand in one etcd, as the copies of a mirror behind them: two cores have no room for 250 servers of etcd. The
mirror has a connection and watches of its own for each all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from apiserver_bed import Bed
from ports import free_port

from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import keys
from tests.bench.controlplane._clusters import Shape, connect, fill, named, own_cluster, until_mirrored
from tests.bench.controlplane._programs import cluster, folder, mirror, resident_mb
from tests.bench.middle import reader

_RUNS: Final = 3
_BEAT: Final = 30.0
_MANY: Final = range(2, 252)
_EACH: Final = Shape(nodes=100, identities=100, endpoints=1000, cached=True, most=511)


async def mirror_10000() -> dict[str, list[float]]:
    found = await mirrors([2], Shape(services=10_000), _RUNS)
    return {
        "mirror_10000_s": [seconds for seconds, _ in found],
        "mirror_10000_rss_mb": [megabytes for _, megabytes in found],
    }


async def mirror_250_clusters() -> dict[str, list[float]]:
    return {"mirror_250_clusters_s": [seconds for seconds, _ in await mirrors(_MANY, _EACH, _RUNS)]}


async def agent_250_clusters() -> dict[str, list[float]]:
    found = await agents(_MANY, _EACH, _RUNS)
    return {
        "agent_250_clusters_s": [seconds for seconds, _ in found],
        "agent_250_clusters_rss_mb": [megabytes for _, megabytes in found],
    }


async def idle_511() -> dict[str, list[float]]:
    """An agent that is connected to all others there can be, in a minute without changes."""
    return {"idle_511_cpu_percent": (await reader.peers_511_idle())["peers_511_idle_cpu_percent"]}


FIGURES = {
    "mirror_10000": mirror_10000,
    "mirror_250_clusters": mirror_250_clusters,
    "agent_250_clusters": agent_250_clusters,
    "idle_511": idle_511,
}


async def mirrors(numbers: Sequence[int], shape: Shape, runs: int) -> list[tuple[float, float]]:
    """Seconds and megabytes of each start of a mirror on an empty etcd."""
    found = []
    with folder() as home:
        async with _peers(home, numbers, shape) as at:
            for run in range(runs):
                async with _beta(home / str(run), at, numbers, shape) as beta:
                    found.append(await _mirror(beta, numbers, shape))
    return found


async def agents(numbers: Sequence[int], shape: Shape, runs: int) -> list[tuple[float, float]]:
    """Seconds and megabytes of each agent that reads what a mirror has copied, with the mirror beside it."""
    with folder() as home:
        async with _peers(home, numbers, shape) as at, _beta(home, at, numbers, shape) as beta, mirror(beta) as process:
            await until_mirrored(process, beta, [named(number) for number in numbers])
            found = [await _read(beta.context.path / "cached-peers", numbers, shape) for _ in range(runs)]
    return found


async def _read(peers: Path, numbers: Sequence[int], shape: Shape) -> tuple[float, float]:
    found = await reader.measure("endpoints", peers, len(numbers) * shape.endpoints)
    return found["seconds"], found["rss_mb"]


async def _mirror(beta: Bed, numbers: Sequence[int], shape: Shape) -> tuple[float, float]:
    began = time.monotonic()
    async with mirror(beta) as process:
        await until_mirrored(process, beta, [named(number) for number in numbers])
        taken = time.monotonic() - began, resident_mb(process)
    await _check(beta, numbers, shape)
    return taken


async def _check(beta: Bed, numbers: Sequence[int], shape: Shape) -> None:
    """RuntimeError unless everything was copied."""
    wanted = shape.nodes + shape.identities + shape.endpoints + shape.services
    for number in numbers:
        places = [keys.cache_prefix(each, named(number)) for each in ("nodes", "identities", "ip", "services")]
        held = sum([len((await beta.client.range(place)).kvs) for place in places])
        if held != wanted:
            raise RuntimeError(f"{held} keys of {wanted} of cluster {named(number)} were copied")


@asynccontextmanager
async def _peers(home: Path, numbers: Sequence[int], shape: Shape) -> AsyncIterator[str]:
    """Where their etcd is, which beats."""
    etcd = LocalEtcd(home / "peers", [f"http://127.0.0.1:{free_port()}"], flags=["--quota-backend-bytes=8589934592"])
    try:
        await etcd.start()
        async with EtcdClient(etcd.endpoints) as client:
            await fill(client, numbers, shape)
            beating = asyncio.create_task(_beat(client))
            yield etcd.endpoints[0]
            beating.cancel()
    finally:
        etcd.kill()


async def _beat(client: EtcdClient) -> None:
    while True:
        await client.put(keys.HEARTBEAT, str(time.time()).encode())
        await asyncio.sleep(_BEAT)


@asynccontextmanager
async def _beta(home: Path, at: str, numbers: Sequence[int], shape: Shape) -> AsyncIterator[Bed]:
    """A cluster without nodes that is connected to all of them."""
    async with cluster(home, "beta", 1, shape.most) as beta:
        await own_cluster(beta)
        for number in numbers:
            connect(beta, named(number), at)
        yield beta
