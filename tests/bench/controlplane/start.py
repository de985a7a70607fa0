"""The API server's start: from its process to the last key of what a Kubernetes API has, in native mode."""

from __future__ import annotations

import time
from typing import Final

from apiserver_bed import Bed
from kube_bed import KubeBed

from clustermesh.wire import keys
from tests.bench.controlplane._objects import Objects
from tests.bench.controlplane._programs import api_server, cluster, folder, kubernetes, resident_mb, until_ready

_RUNS: Final = 3
_TIMED: Final = (keys.HEARTBEAT, keys.API_SERVER_LEADERS)  # written anew all the time, by design

Sample = tuple[float, float]


async def start_2000() -> dict[str, list[float]]:
    return _named("start_2000", await starts(Objects(2000)))


async def start_10000() -> dict[str, list[float]]:
    return _named("start_10000", await starts(Objects(10_000)))


async def pods_100000() -> dict[str, list[float]]:
    return _named("pods_100000", await starts(Objects(10_000, nodes=1000, backends=10, pods=100_000)))


async def restart_10000() -> dict[str, list[float]]:
    samples = await restarts(Objects(10_000))
    return {
        "restart_10000_s": [seconds for seconds, _ in samples],
        "restart_10000_keys_written": [written for _, written in samples],
    }


async def growth() -> dict[str, list[float]]:
    """How the start grows with the services: once for each number, since the largest takes half a minute to set up."""
    found: dict[str, list[float]] = {}
    for services in (1000, 10_000, 100_000):
        found |= _named(f"growth_{services}", await starts(Objects(services), runs=1))
    return found


FIGURES = {
    "start_2000": start_2000,
    "start_10000": start_10000,
    "restart_10000": restart_10000,
    "pods_100000": pods_100000,
    "growth": growth,
}


def _named(name: str, samples: list[Sample]) -> dict[str, list[float]]:
    return {f"{name}_s": [sample[0] for sample in samples], f"{name}_rss_mb": [sample[1] for sample in samples]}


async def starts(objects: Objects, runs: int = _RUNS) -> list[Sample]:
    """Seconds and megabytes of each start on an empty etcd."""
    found = []
    with folder() as home:
        async with kubernetes(home, objects) as api:
            for run in range(runs):
                async with cluster(home / str(run)) as bed:
                    found.append(await _start(bed, api))
                    await check(bed, objects)
    return found


async def restarts(objects: Objects, runs: int = _RUNS) -> list[Sample]:
    """Seconds of each start on an etcd that has it all, and keys that were written or removed by it."""
    found = []
    with folder() as home:
        async with kubernetes(home, objects) as api, cluster(home) as bed:
            await _start(bed, api)
            for _ in range(runs):
                before = await _revisions(bed)
                seconds, _ = await _start(bed, api)
                after = await _revisions(bed)
                found.append((seconds, float(len(dict(before.items() ^ after.items())))))
                await check(bed, objects)
    return found


async def _start(bed: Bed, api: KubeBed) -> Sample:
    began = time.monotonic()
    async with api_server(bed, api) as process:
        await until_ready(process, bed)
        return time.monotonic() - began, resident_mb(process)


async def _revisions(bed: Bed) -> dict[bytes, int]:
    found = (await bed.client.range(b"")).kvs
    return {kv.key: kv.mod_revision for kv in found if not kv.key.startswith(_TIMED)}


async def check(bed: Bed, objects: Objects) -> None:
    """RuntimeError unless everything is there."""
    wanted = {"services": objects.services, "nodes": objects.nodes, "ip": objects.pods}
    for directory, number in wanted.items():
        held = len((await bed.client.range(keys.state_prefix(directory, bed.context.name))).kvs)
        if held != number:
            raise RuntimeError(f"{held} of {number} {directory} were published")
