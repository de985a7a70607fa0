"""Agents killed at any moment under load, and connections whose backend goes: two whole clusters of one node each.

`make soak ARGS=kills` makes it 200 kills instead of six (LAB_KILLS), at other moments each time (LAB_SEED).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Final

import lab_frames
import pytest

from clustermesh.address import nth, parse_prefix, text
from clustermesh.errors import ClusterMeshError
from lab import bring_up, machine, manifests, node_spec, promises, teardown
from lab.lab import Lab
from lab.plan import make_plan
from lab.streams import Load
from lab.waiting import until

_FOLDER: Final = "/run/clustermesh-lab-killed"
_KILLS: Final = int(os.environ.get("LAB_KILLS", "6"))
_SEED: Final = int(os.environ.get("LAB_SEED", "8"))
_NODE: Final = "alpha-1"
_NODE_PORT: Final = 30080
_CLEANUP: Final = (str(machine.bin_folder() / "clustermesh"), "node", "cleanup", "--force")

# Says what became of a connection that nobody speaks over.
_HOLD: Final = """
import socket, sys
held = socket.create_connection((sys.argv[1], 80), 10)
print("connected", flush=True)
held.settimeout(60)
try:
    print("closed" if not held.recv(1) else "data", flush=True)
except OSError as e:
    print(type(e).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Lab]:
    try:
        yield asyncio.run(bring_up.up(make_plan(nodes=1, pods=1, folder=_FOLDER), print, bound=True))
    finally:
        left = teardown.down(Path(_FOLDER))
    assert left == []


def _agent(lab: Lab) -> int:
    """Its pid, 0 while there is none."""
    with suppress(ClusterMeshError):
        return lab.service_pid(_NODE, "agent")
    return 0


async def _is_settled(lab: Lab) -> bool:
    try:
        status = await lab.ask_agent(_NODE, "status")
    except ClusterMeshError:
        return False
    return bool(status["ready"]) and not any(target["pending"] for target in status["targets"])


async def _is_as_wanted(lab: Lab) -> bool:
    try:
        return not await lab.ask_agent(_NODE, "map_diff")
    except ClusterMeshError:
        return False


def _elsewhere(lab: Lab, cluster: str, number: int) -> dict[str, manifests.Document]:
    """The endpoints of the probe service of `cluster`: an address of a pod that is none."""
    cidr = next(each for each in lab.plan.cluster(cluster).nodes[0].pod_cidrs if "." in each)
    return manifests.probe_slice([text(nth(parse_prefix(cidr), 200 + number % 40))])


@pytest.mark.timeout(300 + 10 * _KILLS)
async def test_no_request_fails_and_tables_are_right_wherever_in_its_work_an_agent_is_killed(pair: Lab) -> None:
    rng, load, outside = random.Random(_SEED), promises.web_load(pair), await _load_from_outside(pair)
    async with load.running(), outside.running():
        for each in (load, outside):
            await until(
                lambda each=each: each.traffic.everywhere == {"alpha", "beta"},  # type: ignore[misc]
                "answers from both clusters",
            )
        for number in range(_KILLS):
            await until(lambda: bool(_agent(pair)), "an agent")
            pair.apply("beta", _elsewhere(pair, "beta", number))
            await asyncio.sleep(rng.random() * 1.5)  # it imports, opens maps, restores, writes, or has done it all
            pid = await pair.kill(_NODE, "agent")
            await until(lambda pid=pid: _agent(pair) not in (0, pid), "another agent")  # type: ignore[misc]
            if number % 3 == 2:
                await until(lambda: _is_settled(pair), "the agent is ready")
                await until(lambda: _is_as_wanted(pair), "the kernel holds what it should")
        await until(lambda: _is_settled(pair), "the agent is ready")
        await until(lambda: _is_as_wanted(pair), "the kernel holds what it should")
    for where, each in (("a pod", load), ("outside", outside)):
        print(f"{_KILLS} kills: {each.traffic.requests} requests from {where}, {each.traffic.failed} failed")
        assert each.traffic.failed == 0, each.traffic


async def _load_from_outside(lab: Lab) -> Load:
    """Requests to a node port of the web service in alpha, at its node's addresses, from the other machine."""
    cluster = lab.plan.cluster("alpha")
    service = manifests.web_service(cluster)
    service["spec"] |= {
        "type": "NodePort",
        "ports": [each | {"nodePort": _NODE_PORT} for each in service["spec"]["ports"]],
    }
    lab.apply("alpha", {"service-web.yaml": service})

    await until(lambda: _is_served(lab, cluster.nodes[0].addresses, _NODE_PORT), "the node port is served")
    marker, kinds = promises.MARKER, "tcp,udp-connected"
    return Load(lab, "beta-1", cluster.nodes[0].addresses, _NODE_PORT, marker=marker, kinds=kinds, rate=100)


async def _is_served(lab: Lab, addresses: Sequence[str], port: int) -> bool:
    """By somebody: a service without backends refuses."""
    rows = [row for row in await lab.ask_agent(_NODE, "services") if row["port"] == port and row["backends"]]
    return {(row["address"], row["protocol"]) for row in rows} >= {*product(addresses, ("TCP", "UDP"))}


@asynccontextmanager
async def connection(lab: Lab, address: str) -> AsyncIterator[asyncio.StreamReader]:
    """Of alpha's client, held open; what becomes of it is read from what this gives."""
    command, environment = lab.command("alpha/client", [sys.executable, "-IS", "-c", _HOLD, address])
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"connected\n"
        yield process.stdout
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what runs in the pod is a child of the one that entered it
        await process.wait()


async def _serve_probe(lab: Lab, cluster: str) -> str:
    """The probe service leads to the web pod of `cluster`; where alpha's client calls it, once it does."""
    (web,) = [pod for pod in lab.pods(cluster) if pod.name.startswith("web")]
    there = next(address for address in web.addresses if "." in address)
    for each in ("alpha", "beta"):
        lab.delete(each, *manifests.probe_slice([there]))
    lab.apply(cluster, manifests.probe_slice([there]))
    await until(lambda: _probe_has(lab, "backends", [there]), f"the probe service leads to the web pod of {cluster}")
    return next(address for address in lab.plan.cluster("alpha").probe_ips if "." in address)


async def _probe_has(lab: Lab, which: str, addresses: list[str]) -> bool:
    """Whether these and no other are the "backends", or those "resting", where alpha's probe service is called."""
    rows = [row for row in await lab.ask_agent(_NODE, "services") if row["service"] == "default/probe"]
    return [backend["address"] for row in rows for backend in row[which] if "." in row["address"]] == addresses


async def test_a_connection_goes_on_when_its_backend_leaves_the_service_of_another_cluster_and_lives_on(
    pair: Lab,
) -> None:
    async with connection(pair, await _serve_probe(pair, "beta")) as told:
        line = asyncio.create_task(told.readline())
        pair.apply("beta", _elsewhere(pair, "beta", 0))
        (web,) = [pod for pod in pair.pods("beta") if pod.name.startswith("web")]
        there = [address for address in web.addresses if "." in address]
        await until(lambda: _probe_has(pair, "resting", there), "beta's web pod rests")
        await asyncio.sleep(2)  # sockets have been looked for by then
        assert not line.done()
        line.cancel()


async def test_a_connection_is_reset_when_its_backend_leaves_the_service_and_lives_on(pair: Lab) -> None:
    async with connection(pair, await _serve_probe(pair, "alpha")) as told:
        pair.apply("alpha", _elsewhere(pair, "alpha", 0))
        assert await told.readline() == b"ConnectionAbortedError\n"


async def test_a_connection_whose_backend_left_while_no_agent_ran_is_reset_by_the_next(pair: Lab) -> None:
    async with connection(pair, await _serve_probe(pair, "alpha")) as told:
        home = pair.plan.home(_NODE)
        argv = node_spec.read_services(home)["agent"].argv
        machine.stop(home, "agent")
        await until(lambda: not _agent(pair), "no agent")
        pair.apply("alpha", _elsewhere(pair, "alpha", 1))
        machine.keep(home, "agent", argv)
        assert await told.readline() == b"ConnectionAbortedError\n"


async def test_unmounted_with_all_that_was_pinned_the_next_agent_begins_anew(pair: Lab) -> None:
    """What the unmounted one covered, the machine's own, may be covered itself."""
    load = promises.web_load(pair, "tcp")
    await pair.run(_NODE, "umount", "-l", "/sys/fs/bpf")
    pid = await pair.kill(_NODE, "agent")
    await until(lambda: _agent(pair) not in (0, pid), "another agent")
    await until(lambda: _is_settled(pair), "the agent is ready")
    await until(lambda: _is_as_wanted(pair), "the kernel holds what it should")
    async with load.running():
        await until(lambda: load.traffic.everywhere == {"alpha", "beta"}, "answers from both clusters")
    assert load.traffic.failed == 0, load.traffic


def _frames(status: Mapping[str, Any]) -> list[str]:
    """How the program of frames runs on eth0, and how it came there."""
    hooks = [each for each in status["datapath"]["hooks"] if "xdp" in each["mechanism"]]
    return [f"{each['target']}: {each['mechanism']}, {each['outcome']}" for each in hooks]


async def _restart(lab: Lab, argv: Sequence[str], frames: list[str]) -> None:
    """Another agent, told otherwise, under which frames are served like this."""
    machine.stop(lab.plan.home(_NODE), "agent")
    await until(lambda: not _agent(lab), "no agent")
    machine.keep(lab.plan.home(_NODE), "agent", argv)
    await _until_frames(lab, frames)


async def _until_frames(lab: Lab, frames: list[str]) -> None:
    """What is there, and is not wanted, goes once all clusters were heard."""

    async def are_so() -> bool:
        if not await _is_settled(lab) or _frames(await lab.ask_agent(_NODE, "status")) != frames:
            return False
        return await _has_program(lab) == bool(frames)

    await until(are_so, f"frames are served by {frames}")


async def _has_program(lab: Lab) -> bool:
    return "xdpgeneric" in await lab.run(_NODE, "ip", "link", "show", "eth0")


async def test_no_request_fails_while_an_agent_that_accelerates_is_killed_and_told_not_to(pair: Lab) -> None:
    cluster, home = pair.plan.cluster("alpha"), pair.plan.home(_NODE)
    at, argv = cluster.nodes[0].addresses, node_spec.read_services(home)["agent"].argv
    fast = [*argv, "--bpf-lb-acceleration", "best-effort"]
    attached, adopted = (["eth0: generic xdp link, " + each] for each in ("attached", "adopted"))
    await lab_frames.sum_up(pair, "beta-1", cluster.control.name)
    await lab_frames.serve_edge(pair, cluster)
    await until(lambda: _is_served(pair, at, lab_frames.NODE_PORT), "the node port is served")
    kinds = "tcp,udp-connected"
    load = Load(pair, "beta-1", at, lab_frames.NODE_PORT, marker=promises.MARKER, kinds=kinds, rate=100)
    async with load.running(), lab_frames.conversation(pair, "beta-1", at):
        await until(lambda: load.traffic.everywhere == {"alpha"}, "answers at both addresses")
        await _restart(pair, fast, attached)
        for _ in range(2):
            pid = await pair.kill(_NODE, "agent")
            assert await _has_program(pair)
            await until(lambda pid=pid: _agent(pair) not in (0, pid), "another agent")  # type: ignore[misc]
            await _until_frames(pair, adopted)
        assert await lab_frames.came_up(pair, "beta-1", _NODE, at) < len(at) * lab_frames.CALLS / 2
        await _restart(pair, argv, [])
        assert await lab_frames.came_up(pair, "beta-1", _NODE, at) >= 0.95 * len(at) * lab_frames.CALLS
        await _restart(pair, fast, attached)
    assert load.traffic.failed == 0, load.traffic
    machine.stop(home, "agent")
    await until(lambda: not _agent(pair), "no agent")
    assert await _has_program(pair)
    await pair.run(_NODE, *_CLEANUP)
    assert not await _has_program(pair)
    machine.keep(home, "agent", argv)
    await until(lambda: _is_settled(pair), "the agent is ready")


async def _loaded_by_bcc(lab: Lab) -> bool:
    return await _is_settled(lab) and (await lab.ask_agent(_NODE, "status"))["datapath"]["loader"] == "bcc"


async def test_an_agent_whose_programs_bcc_compiles_takes_over_is_killed_and_cleaned_up_after(pair: Lab) -> None:
    """Last of all: the node has left its cluster then."""
    load, home = promises.web_load(pair, "tcp,udp-connected,udp-unconnected"), pair.plan.home(_NODE)
    argv = node_spec.read_services(home)["agent"].argv
    async with load.running():
        await until(lambda: load.traffic.everywhere == {"alpha", "beta"}, "answers from both clusters")
        machine.stop(home, "agent")
        await until(lambda: not _agent(pair), "no agent")
        machine.keep(home, "agent", [*argv, "--loader", "bcc"])
        await until(lambda: _loaded_by_bcc(pair), "an agent by BCC, which compiles for long", 240)
        await until(lambda: _is_as_wanted(pair), "the kernel holds what it should")
        pid = await pair.kill(_NODE, "agent")
        await until(lambda: _agent(pair) not in (0, pid), "another agent")
        await asyncio.sleep(2)  # it has begun
    assert load.traffic.failed == 0, load.traffic
    machine.stop(home, "agent")
    await until(lambda: not _agent(pair), "no agent")
    assert "nothing of an agent" not in await pair.run(_NODE, *_CLEANUP)
    assert "nothing of an agent was here" in await pair.run(_NODE, *_CLEANUP)
