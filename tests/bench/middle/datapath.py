"""What a service costs at the socket, what 10,000 of them cost to program, and what an exchange of versions costs.

The socket figures are ratios of connect and close through a service of 100 backends to the same straight to a backend,
connection by connection in turns, over a veth pair as a pod has it.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from agent.memory import GC_THRESHOLDS
from agent.plan.services import ServicePlanner
from clustermesh.address import from_int, nth, parse, parse_prefix, text, to_int
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry, resolve
from clustermesh.model import LocalService, Port, Protocol, Service
from clustermesh.reconcile import Reconciler
from lab import bring_up, teardown
from lab.plan import make_plan
from tests.bench import own_datapath
from tests.bpf.bpf_node import Node
from tests.lab import older_version

_SERVICES, _BACKENDS = 10_000, 10
_ROUNDS, _CONNECTS = 41, 250
_FOLDER = "/run/clustermesh-bench-upgrade"


# -- programming ------------------------------------------------------------------------------------------------------


async def program_10000() -> list[float]:
    """Seconds from the merged state to maps that were empty, in a process that collects garbage as the agent does."""
    gc.set_threshold(*GC_THRESHOLDS)
    port = {"http": Port(protocol=Protocol.TCP, port=80)}
    target = {"http": Port(protocol=Protocol.TCP, port=8080)}
    first, vip = to_int(parse("10.0.0.1")), to_int(parse("10.96.0.1"))
    merged = []
    for number in range(_SERVICES):
        backends = {from_int(first + number * _BACKENDS + n): target for n in range(_BACKENDS)}
        own, other = dict(list(backends.items())[: _BACKENDS // 2]), dict(list(backends.items())[_BACKENDS // 2 :])
        name = {"namespace": "default", "name": f"s{number}"}
        local = Service(cluster="a", cluster_id=1, frontends={from_int(vip + number): port}, backends=own, **name)
        remote = Service(cluster="b", cluster_id=2, backends=other, **name)
        merged.append((LocalService(service=local, is_global=True), [remote]))
    return [await _program(merged) for _ in range(5)]


async def _program(merged: list[tuple[LocalService, list[Service]]]) -> float:
    with own_datapath.datapath() as datapath:
        trackers = own_datapath.trackers(datapath)
        planner, reconciler = ServicePlanner(trackers), Reconciler(*trackers)
        begun = time.perf_counter()
        for local, remotes in merged:
            planner.update((local.service.namespace, local.service.name), resolve(local, remotes))
        await reconciler.flush()
        seconds = time.perf_counter() - begun
        assert len(trackers.backends.actual) == _SERVICES * _BACKENDS
        return seconds


# -- sockets ----------------------------------------------------------------------------------------------------------


async def connect_v4() -> list[float]:
    return await _relative(socket.AF_INET, ("10.9.0.0/24", "10.8.0.1", "10.8.0.2"), "10.96.0.10")


async def connect_v6() -> list[float]:
    return await _relative(socket.AF_INET6, ("fd09::/112", "fd08::1", "fd08::2"), "fd96::10")


async def _relative(family: int, network: tuple[str, str, str], vip: str) -> list[float]:
    """One ratio for each round. One listener is behind all backends: whoever is asked, the way is the same."""
    with (
        own_datapath.datapath() as datapath,
        own_datapath.joined_cgroup("sockets") as cgroup,
        Node() as client,
        Node() as server,
    ):
        _join(client, server, *network)
        listener = server.socket(family, socket.SOCK_STREAM)
        listener.bind(("", 0))
        listener.listen(4096)
        port = listener.getsockname()[1]
        addresses = [nth(parse_prefix(network[0]), number) for number in range(1, 101)]
        group = Group(1, 100, (Backends(tuple(addresses), port),))
        trackers = own_datapath.trackers(datapath)
        frontend = Frontend(parse(vip), 80, Protocol.TCP)
        ServicePlanner(trackers).update(("n", "s"), [ServiceEntry(frontend, (group,))])
        await Reconciler(*trackers).flush()
        datapath.attach_sockets(cgroup)
        straight = [(text(address), port) for address in addresses]
        return [client.call(lambda: _ratio(family, (vip, 80), straight, listener)) for _ in range(_ROUNDS)]


def _join(client: Node, server: Node, hosts: str, here: str, there: str) -> None:
    """A veth pair, as between a pod and its node; all of `hosts` are the server's."""
    bits = "64" if ":" in here else "24"
    server_thread = server.call(lambda: f"/proc/self/task/{threading.get_native_id()}/ns/net")
    client.run("ip", "link", "add", "client", "type", "veth", "peer", "name", "server")
    fd = os.open(server_thread.replace("self", str(os.getpid())), os.O_RDONLY)
    client.run("ip", "link", "set", "server", "netns", f"/proc/{os.getpid()}/fd/{fd}")
    os.close(fd)
    for node, device, address in ((client, "client", here), (server, "server", there)):
        node.run("ip", "address", "add", f"{address}/{bits}", "dev", device, *(["nodad"] if ":" in here else []))
        node.run("ip", "link", "set", device, "up")
    server.run("ip", "route", "add", "local", hosts, "dev", "lo")
    client.run("ip", "route", "add", hosts, "via", there)


def _ratio(family: int, vip: tuple[str, int], backends: list[tuple[str, int]], listener: socket.socket) -> float:
    """Connections one by one, through the service and straight by turns: whatever disturbs them disturbs both."""
    through, straight = [], []
    for _ in range(_CONNECTS):
        through.append(_connect(family, vip, listener))
        straight.append(_connect(family, random.choice(backends), listener))
    return statistics.median(through) / statistics.median(straight)


def _connect(family: int, address: tuple[str, int], listener: socket.socket) -> int:
    """Nanoseconds of a connect and close, which is a reset: no port stays behind."""
    begun = time.perf_counter_ns()
    with socket.socket(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.connect(address)
    taken = time.perf_counter_ns() - begun
    listener.accept()[0].close()
    return taken


# -- versions ---------------------------------------------------------------------------------------------------------


async def exchange() -> dict[str, list[float]]:
    """Requests failed while a node goes back to the layout before and up again."""
    with tempfile.TemporaryDirectory() as older:
        older_version.build(Path(older))
        try:
            lab = await bring_up.up(make_plan(nodes=1, pods=1, folder=_FOLDER), lambda _line: None, bound=True)
            async with older_version.under_load(lab) as down:
                await older_version.downgrade(lab, "alpha-1", Path(older))
            async with older_version.under_load(lab) as up:
                await older_version.upgrade(lab, "alpha-1")
        finally:
            teardown.down(Path(_FOLDER))
    return {
        "downgrade_failed": [float(traffic.failed) for traffic in down],
        "upgrade_failed": [float(traffic.failed) for traffic in up],
    }


FIGURES = {
    "program_10000_s": program_10000,
    "connect_v4_relative": connect_v4,
    "connect_v6_relative": connect_v6,
    "versions": exchange,
}
