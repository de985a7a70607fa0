"""Reading many clusters: a process with peers, readers, the mesh state and the domain of addresses, one local etcd.

The etcd holds the clusters' data as kvstoremesh's copies, and each peer file names it, as an agent behind kvstoremesh
has it. A mesh has at most 511 clusters, this one included, so that 510 peers stand for "511".
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clustermesh.address import from_int, parse, parse_prefix, to_int
from clustermesh.model import ClusterConfig, Endpoint, Node, NodeAddress
from clustermesh.store.client import EtcdClient, Op, Put
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import RESOURCES, cluster_config, endpoint, keys, node

_CLUSTERS, _ENDPOINTS = 250, 1000
_PEERS = 510
_RUNS = 3


async def endpoints_250000() -> dict[str, list[float]]:
    """From an empty process to the last of 250,000 addresses in the ipcache: time, work, memory, longest step."""
    async with _etcd(_CLUSTERS, _ENDPOINTS) as folder:
        runs = [await measure("endpoints", folder, _CLUSTERS * _ENDPOINTS) for _ in range(_RUNS)]
    return {
        "endpoints_250000_s": [run["seconds"] for run in runs],
        "endpoints_250000_cpu_s": [run["cpu"] for run in runs],
        "endpoints_250000_rss_mb": [run["rss_mb"] for run in runs],
        "endpoints_250000_stall_ms": [run["stall_ms"] for run in runs],
    }


async def peers_511_idle() -> dict[str, list[float]]:
    """The share of a core that it takes to hear of a minute in which nothing changes but heartbeats."""
    async with _etcd(_PEERS, 2) as folder:
        run = await measure("idle", folder, _PEERS)
    return {"peers_511_idle_cpu_percent": [run["percent"]], "peers_511_idle_rss_mb": [run["rss_mb"]]}


FIGURES = {"endpoints_250000": endpoints_250000, "peers_511_idle": peers_511_idle}


@asynccontextmanager
async def _etcd(clusters: int, endpoints: int) -> AsyncIterator[Path]:
    """A folder of peer files whose etcd is filled, and beats."""
    with TemporaryDirectory() as home:
        url = f"http://127.0.0.1:{_free_port()}"
        server = LocalEtcd(Path(home) / "etcd", [url], flags=["--quota-backend-bytes=4294967296"])
        await server.start()
        try:
            async with EtcdClient([url]) as client, asyncio.TaskGroup() as tasks:
                lease = await client.grant(3600)
                for number in range(1, clusters + 1):
                    await client.transact(_entries(number, endpoints, lease))
                beating = tasks.create_task(_beat(client, lease))
                folder = Path(home) / "peers"
                folder.mkdir()
                for number in range(1, clusters + 1):
                    (folder / f"c{number}").write_text(f"endpoints: [{url}]\n")
                yield folder
                beating.cancel()
        finally:
            await server.stop()


async def _beat(client: EtcdClient, lease: int) -> None:
    for number in range(1_000_000):
        await client.put(keys.HEARTBEAT, str(number).encode(), lease)
        await asyncio.sleep(60)


def _entries(number: int, endpoints: int, lease: int) -> Iterator[Op]:
    """What kvstoremesh keeps of cluster `number`: its canaries last."""
    name, identity = f"c{number}", (number << 15) + 300
    first = to_int(parse("10.0.0.0")) + number * 2048
    host = from_int(to_int(parse("172.16.0.0")) + number)
    config = ClusterConfig(id=number, synced_canaries=True, cached=True, max_connected_clusters=511)
    machine = Node(
        cluster=name,
        cluster_id=number,
        name="n1",
        addresses=(NodeAddress(type="InternalIP", ip=host),),
        pod_cidrs=(parse_prefix(f"10.{number * 2048 >> 16}.{number * 2048 >> 8 & 255}.0/21"),),
    )
    yield Put(keys.cluster_config_key(name), cluster_config.encode(config), lease)
    yield Put(keys.cache_key(keys.node_key(name, "n1"), name), node.encode(machine), lease)
    for offset in range(endpoints):
        pod = Endpoint(ip=from_int(first + offset), identity=identity, host_ip=host, namespace="shop", pod_name="p")
        yield Put(keys.cache_key(keys.endpoint_key(pod.ip), name), endpoint.encode(pod), lease)
    for resource in RESOURCES.values():
        if resource.of_peers and (canary := resource.canary(name, cached=True)) is not None:
            yield Put(canary, b"now", lease)


async def measure(mode: str, folder: Path, wanted: int) -> dict[str, Any]:
    """What one process found out that reads the clusters of `folder`."""
    argv = (sys.executable, "-m", "tests.bench.middle._mesh_reading", mode, str(folder), str(wanted))
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"measuring {mode} failed")
    found: dict[str, Any] = json.loads(out)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
