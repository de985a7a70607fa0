"""The agent with 1,000 services of 10 backends: from its start to ready, and its memory.

The peer is a Python that only imports the libraries an agent needs: what is left is ours. Starts are with the kernel's
maps empty (a new node) and full (an agent started again).
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

from clustermesh.errors import ClusterMeshError, Unavailable
from lab import machine
from lab.lab import Lab

SERVICES, BACKENDS = 1000, 10
_RUNS = 5
_IMPORTS = "import asyncio, google.protobuf, hpack, msgspec, prometheus_client, pyroute2, yaml"


async def run(lab: Lab) -> list[dict[str, Any]]:
    """Figures in ms and MB."""
    found = await starts(lab)
    imports = [await _import_time() for _ in range(_RUNS)]
    return [
        {
            "name": f"agent start to ready, {SERVICES} services x {BACKENDS} (median of {_RUNS})",
            "value": round(statistics.median(found["agent_ready_s"]) * 1000),
            "unit": "ms",
            "peer": "importing its libraries",
            "peer_value": round(statistics.median(imports) * 1000),
        },
        {
            "name": "agent resident memory then (largest)",
            "value": max(found["agent_rss_mb"]),
            "unit": "MB",
        },
    ]


async def starts(lab: Lab) -> dict[str, list[float]]:
    """Seconds from an agent's start until it is ready, and its memory in MB three seconds later, of each start."""
    lab.apply("alpha", {"bench.yaml": manifest(SERVICES, BACKENDS)})
    await _until_programmed(lab, SERVICES)
    ready, memory = [], []
    for _ in range(_RUNS):
        ready.append(await _restart(lab))
        await asyncio.sleep(3)
        memory.append(round(await _resident(lab) / 1024, 1))
    lab.delete("alpha", "bench.yaml")
    return {"agent_ready_s": ready, "agent_rss_mb": memory}


def manifest(services: int, backends: int) -> dict[str, Any]:
    """A List of global Services without selectors and their EndpointSlices."""
    items: list[dict[str, Any]] = []
    for number in range(services):
        name = f"bench-{number}"
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": name,
                    "namespace": "default",
                    "annotations": {"service.cilium.io/global": "true"},
                },
                "spec": {
                    "clusterIP": f"10.111.{number // 250}.{number % 250 + 1}",
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                },
            }
        )
        first = number * backends
        addresses = [f"10.{60 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}" for n in range(first, first + backends)]
        items.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-1",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
            }
        )
    return {"apiVersion": "v1", "kind": "List", "items": items}


async def _restart(lab: Lab) -> float:
    """Seconds from the start of the new agent's process until it calls itself ready with everything programmed."""
    old = await lab.kill("alpha-1", "agent")
    while True:
        try:
            pid = lab.service_pid("alpha-1", "agent")
        except Unavailable:
            pid = old
        if pid != old:
            break
        await asyncio.sleep(0.005)
    begun = time.monotonic()
    await _until_programmed(lab, SERVICES)
    return time.monotonic() - begun


async def _until_programmed(lab: Lab, count: int, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                status = await lab.ask_agent("alpha-1", "status")
            except ClusterMeshError:
                await asyncio.sleep(0.01)
                continue
            services = next(target for target in status["targets"] if target["name"] == "services")
            if status["ready"] and services["pending"] == 0 and services["actual"] >= count:
                return
            await asyncio.sleep(0.02)


async def _resident(lab: Lab) -> int:
    """VmRSS of the agent in KiB."""
    pid = lab.service_pid("alpha-1", "agent")
    text = await lab.run("alpha-1", "cat", f"/proc/{pid}/status")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))


async def _import_time() -> float:
    begun = time.monotonic()
    await machine.run([sys.executable, "-c", _IMPORTS])
    return time.monotonic() - begun
