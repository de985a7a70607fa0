"""The agent as it was before the layout of the maps changed, built from git: an upgrade comes from it and goes back.

A node's agent is exchanged as an operator would do it: stopped, the other started, the programs running on meanwhile.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clustermesh.errors import ClusterMeshError, Unavailable
from lab import machine, promises
from lab.lab import Lab
from lab.plan import WEB_PORT
from lab.records import Traffic
from lab.streams import Load
from lab.waiting import until

COMMIT = "28f7da9b3b8f6071906ca33ebc9e9aff5944dfd5"
"""The last one with layout v1."""

LEAST = 2000  # requests of each direction
_REPOSITORY = Path(__file__).parents[2]
_KINDS = "tcp,udp-connected,udp-unconnected"


def build(folder: Path) -> None:
    """Put the older sources into `folder` and compile their programs. Unavailable where git does not have them."""
    known = subprocess.run(
        ["git", "-C", str(_REPOSITORY), "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, check=False
    )
    if known.returncode:
        raise Unavailable(f"commit {COMMIT} is not in this clone's history: git fetch --unshallow")
    archive = subprocess.run(["git", "-C", str(_REPOSITORY), "archive", COMMIT], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    subprocess.run(["make", "-s", "-C", str(folder / "bpf")], check=True, timeout=60)


async def downgrade(lab: Lab, node: str, older: Path) -> None:
    """As docs/operate.md says. What the agent heard last, however short ago, is on disk once it has stopped: of a
    cluster that is not, the older one takes routes and tunnels away before it makes them anew."""
    await _stop(lab, node)
    kept = (await lab.run(node, "ls", "/var/lib/clustermesh/clusters")).split()
    assert {f"{cluster.name}.state" for cluster in lab.plan.clusters} <= set(kept)
    given = "--context", str(lab.plan.context(node.partition("-")[0])), "--node", node
    await lab.run(node, str(machine.bin_folder() / "clustermesh"), "node", "prepare-downgrade", *given)
    command = ["env", f"PYTHONPATH={older}", sys.executable, "-P", "-m", "agent"]
    await _start(lab, node, command, "v1")


async def upgrade(lab: Lab, node: str) -> None:
    await _stop(lab, node)
    await _start(lab, node, [str(machine.bin_folder() / "clustermesh-agent")], "v2")


async def _stop(lab: Lab, node: str) -> None:
    machine.stop(lab.plan.home(node), "agent")
    await until(lambda: not _runs(lab, node), f"the agent of {node} stopped")


def _runs(lab: Lab, node: str) -> bool:
    try:
        return bool(lab.service_pid(node, "agent"))
    except ClusterMeshError:
        return False


async def _start(lab: Lab, node: str, command: list[str], layout: str) -> None:
    cluster = node.partition("-")[0]
    context = str(lab.plan.context(cluster))
    machine.keep(lab.plan.home(node), "agent", [*command, "--context", context, "--node", node])

    async def is_ready() -> bool:
        try:
            status = await lab.ask_agent(node, "status")
        except ClusterMeshError:
            return False
        return bool(status["ready"]) and await _layouts(lab, node) == [layout]

    await until(is_ready, f"the agent of {node} is ready, its maps alone")


async def _layouts(lab: Lab, node: str) -> list[str]:
    """The layouts whose maps are pinned."""
    names = (await lab.run(node, "ls", "/sys/fs/bpf/clustermesh")).split()
    return sorted(name for name in names if name != "links")


@asynccontextmanager
async def under_load(lab: Lab) -> AsyncIterator[list[Traffic]]:
    """Requests over IPv4, which both versions know, from before the block until there were enough after it; what came
    of them is in the list then."""
    found: list[Traffic] = []
    ips = tuple(ip for ip in lab.plan.cluster("alpha").web_ips if ":" not in ip)
    load = Load(lab, "alpha/client", ips, WEB_PORT, marker=promises.MARKER, kinds=_KINDS)
    async with load.running():
        await until(lambda: len(load.traffic.clusters) == 2, "answers from both clusters")
        yield found
        after = load.traffic.requests
        await until(lambda: load.traffic.requests > max(LEAST, after + 500), "enough requests")
    found.append(load.traffic)
