"""The process that is measured by `reader`: peers, their readers, the mesh state and the domain of addresses.

    python -m tests.bench.middle._mesh_reading endpoints|idle PEERS_FOLDER HOW_MANY

prints one JSON object. The ipcache is a kernel map of its size where this user may make one, else a dict.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.domains.addresses import Addresses
from agent.domains.tables import Targets
from agent.memory import GC_THRESHOLDS
from agent.plan.attached import AttachedPods
from agent.propagation import Propagation
from agent.state import AgentState
from agent.targets.maps import MapTarget
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Cluster
from clustermesh.reconcile import Target
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls

_PATIENCE = 300.0
_SETTLE, _WINDOW = 10.0, 60.0  # seconds


class _Dict:
    """A kernel for those who may not use theirs."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    async def dump(self) -> dict[bytes, bytes]:
        return dict(self.held)

    async def upsert(self, entries: Mapping[bytes, bytes]) -> None:
        self.held |= entries

    async def delete(self, keys: Collection[bytes]) -> None:
        for key in keys:
            self.held.pop(key, None)


class Reading:
    """The peers of a folder, read as an agent reads them."""

    def __init__(self, folder: Path, keep: Path, own: Cluster) -> None:
        self.state = AgentState(own.name, Propagation())
        self.state.admit_peers()
        self.peers = Peers(folder, own, self.state, _connect, peer_tables, keep, self.state.authorize)
        self.addresses = Addresses(self.state, cast(Targets, SimpleNamespace(ipcache=_target())), AttachedPods())
        self.state.on_dirty.append(self.addresses.wake)
        self.longest = 0.0  # seconds of work without a turn for others; of work, because a busy machine is not ours

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.peers.run())
            tasks.create_task(self.addresses.run())

    async def watch_loop(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.thread_time() - began)

    def fresh(self) -> int:
        return sum(reader.session.state is State.FRESH for reader in self.peers.readers.values())


def _target() -> Target[bytes, bytes]:
    with suppress(OSError):
        return MapTarget("ipcache", map_create(MapType.HASH, 16, 24, 512_000, NO_PREALLOC))
    return _Dict()


def _connect(file: PeerFile) -> EtcdClient:
    tls = Tls(file.ca, file.cert, file.key) if file.ca and file.cert and file.key else None
    return EtcdClient(file.endpoints, tls)


async def endpoints(reading: Reading, wanted: int) -> dict[str, Any]:
    began = time.monotonic()
    async with asyncio.timeout(_PATIENCE):
        while len(reading.addresses.ipcache.actual) < wanted:
            await asyncio.sleep(0.05)
    seconds, work = time.monotonic() - began, time.process_time()
    return {"seconds": seconds, "cpu": work, "rss_mb": _resident(), "stall_ms": reading.longest * 1000}


async def idle(reading: Reading, wanted: int) -> dict[str, Any]:
    async with asyncio.timeout(_PATIENCE):
        while reading.fresh() < wanted:
            await asyncio.sleep(0.5)
    await asyncio.sleep(_SETTLE)
    spent, began = time.process_time(), time.monotonic()
    await asyncio.sleep(_WINDOW)
    percent = (time.process_time() - spent) / (time.monotonic() - began) * 100
    return {"percent": percent, "rss_mb": _resident(), "fresh": reading.fresh()}


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def main(mode: str, folder: Path, wanted: int) -> dict[str, Any]:
    gc.set_threshold(*GC_THRESHOLDS)
    with TemporaryDirectory() as keep:
        own = Cluster(name="own", id=511, max_clusters=511)
        reading = Reading(folder, Path(keep), own)
        background = [asyncio.create_task(reading.run())]
        if mode == "endpoints":
            background.append(asyncio.create_task(reading.watch_loop()))
        try:
            return await (endpoints if mode == "endpoints" else idle)(reading, wanted)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))))
