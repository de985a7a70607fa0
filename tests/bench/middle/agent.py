"""The agent's domains over real eBPF maps: how long a change takes, alone and while WireGuard hangs; start and memory.

The WireGuard device and the routes are dictionaries here, and the change comes as bytes of etcd: what is measured is
decoding, planning and applying. Start and memory are those of a whole agent in a lab, its maps full already.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.layouts import BackendValue, unpack
from agent.bpf.loader import Datapath
from agent.domains.domains import Domains
from agent.domains.tables import Targets, ThisNode, open_targets
from agent.options import Options
from agent.propagation import Propagation
from agent.state import AgentState
from agent.underlay import Underlay
from agent.wireguard.peer import Peer, PeerState
from clustermesh.address import Address, from_int, nth, parse, parse_prefix, to_int
from clustermesh.mesh.session import Session, State
from clustermesh.model import Cluster, LocalService, Node, NodeAddress, Port, Protocol, Service
from clustermesh.wire import entries, keys, local
from lab import bring_up, teardown
from lab.plan import make_plan
from tests.bench import bench_agent

_BPFFS = Path("/sys/fs/bpf")
_LAB = Path("/run/clustermesh-lab-bench")
_SERVICES, _BACKENDS, _NODES = 1000, 10, 5000
_ROUNDS, _CHANGES = 5, 200
_MOST_BACKENDS = 100_000  # of all services, in one generation
_TCP80 = {"http": Port(protocol=Protocol.TCP, port=80)}
_ALPHA = Cluster(name="alpha", id=1)


class _Device:
    """Peers in a dictionary. Once it hangs, no call ever ends."""

    name, kind, why, silent_since = "bench0", "dictionary", "for measuring", None

    def __init__(self) -> None:
        self.held: dict[str, PeerState] = {}
        self.hangs = False

    async def ensure(self, *_: object) -> bool:
        return await self._answer(False)

    async def peers(self) -> dict[str, PeerState]:
        return await self._answer(dict(self.held))

    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        await self._answer(None)
        for key, peer in peers.items():
            self.held[key] = PeerState(
                endpoint=(peer.endpoint, peer.port), allowed_ips=peer.allowed_ips, keepalive=peer.keepalive
            )

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None:
        for key in seconds.keys() & self.held.keys():
            self.held[key] = replace(self.held[key], keepalive=seconds[key])

    async def remove_peers(self, keys_: Collection[str]) -> None:
        await self._answer(None)
        for key in keys_:
            self.held.pop(key, None)

    async def died(self) -> None:
        await asyncio.Event().wait()

    async def _answer(self, answer: Any) -> Any:
        if self.hangs:
            await asyncio.Event().wait()
        return answer


class _Routes:
    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}

    async def dump(self) -> Mapping[Any, Any]:
        return dict(self.held)

    async def upsert(self, routes: Mapping[Any, Any]) -> None:
        self.held |= routes

    async def delete(self, keys_: Collection[Any]) -> None:
        for key in keys_:
            self.held.pop(key, None)


class _Underlay:
    current = Underlay(interface="bench0", mtu=1420, strict="")

    def __init__(self) -> None:
        self.on_found: Callable[[], None] = lambda: None

    async def apply(self, _own: Node) -> bool:
        return False


class _Reader:
    session = Session(state=State.FRESH)


class _Peers:
    def __init__(self) -> None:
        self.readers: dict[str, Any] = {}
        self.synced_once, self.newcomers = True, set[str]()
        self.looked = asyncio.Event()
        self.looked.set()


class Inside:
    """An agent's inside on maps of its own, attached to nothing."""

    def __init__(self, datapath: Datapath) -> None:
        self.state, self.device = AgentState("alpha", Propagation()), _Device()
        self.state.admit_peers()
        node: Any = ThisNode(_Detached(datapath), self.device, _Underlay(), _key(0))  # type: ignore[arg-type]
        real = open_targets(datapath, self.device, _key(0))  # type: ignore[arg-type]
        targets: Targets = real._replace(routes=_Routes())
        options = Options(context=Path("/nowhere"), node="n0")
        self.domains = Domains(options, self.state, node, targets)
        self.domains.network.take_part()

    async def run(self) -> None:
        await self.domains.run(_Reader(), _Peers())  # type: ignore[arg-type]

    async def settle(self) -> None:
        while self.domains.ready_at is None or not all(domain.settled for domain in self.domains.all):
            await asyncio.sleep(0.01)

    def take(self, key: bytes, value: bytes) -> None:
        """As the reader of the own cluster does."""
        name = keys.parse_local_service(key)
        self.state.put("alpha", "local_services", name, entries.decode_local_service(key, value, _ALPHA), 1)

    def add_node(self, number: int, generation: int = 0) -> None:
        node = Node(
            cluster="alpha" if number == 0 else "beta",
            cluster_id=1 if number == 0 else 2,
            name=f"n{number}",
            addresses=(NodeAddress(type="InternalIP", ip=_nth("172.16.0.1", number)),),
            pod_cidrs=(parse_prefix(f"10.{64 + number // 256}.{number % 256}.0/24"),),
            wireguard_public_key=_key(number + 10_000 * generation),
        )
        self.state.put(node.cluster, "nodes", node.name, node, 1)


class _Detached:
    """A datapath whose programs are attached to no socket of this machine."""

    has_predecessor = False

    def __init__(self, datapath: Datapath) -> None:
        self.maps, self.sizes, self.pin_dir = datapath.maps, datapath.sizes, datapath.pin_dir

    def attach_sockets(self, _cgroup: Path) -> None:
        """Nobody's connections are to go through these maps."""

    def pin_lost(self) -> list[str]:
        """Nobody takes a pin away, nor what there are no programs of."""
        return []

    def has_links_folder(self) -> bool:
        return True

    def has_sockets(self) -> bool:
        return True


@asynccontextmanager
async def inside() -> AsyncIterator[Inside]:
    ensure_bpffs(_BPFFS)
    pins = _BPFFS / f"clustermesh-bench-{os.getpid()}"
    datapath = Datapath.open(None, pins, None)
    try:
        bench = Inside(datapath)
        bench.add_node(0)
        async with asyncio.TaskGroup() as tasks:  # what ends the inside ends the measurement
            running = tasks.create_task(bench.run())
            yield bench
            running.cancel()
    finally:
        datapath.close()
        Datapath.remove(pins)


async def services() -> dict[str, list[float]]:
    """p99 of each round, in ms: one of 1,000 services of 10 backends has another backend, in the map."""
    async with inside() as bench:
        for number in range(_SERVICES):
            bench.take(*own_service(number, 0))
        for number in range(1, 100):
            bench.add_node(number)
        await bench.settle()
        well = [_p99(await changes(bench, round_)) for round_ in range(_ROUNDS)]
        bench.device.hangs = True

        def disturb(number: int) -> None:
            if number % 10 == 0:
                bench.add_node(1 + number % 90, generation=1 + number)

        hanging = [_p99(await changes(bench, _ROUNDS + round_, disturb)) for round_ in range(_ROUNDS)]
        return {"event_to_map_ms": well, "hang_event_to_map_ms": hanging}


async def changes(bench: Inside, round_: int, before: Callable[[int], None] = lambda _number: None) -> list[float]:
    """Milliseconds from the bytes that say another backend of a service until that is in the map, of each of 200."""
    table = bench.domains.services.tables.backends
    took = []
    for number in range(_CHANGES):
        before(number)
        key, value = own_service(number, 1 + round_)
        wanted = _address(number, 0, 1 + round_)
        done = asyncio.Event()
        bench.domains.services.on_step = done.set
        began = time.perf_counter()
        bench.take(key, value)
        while not any(unpack(BackendValue, entry).address == wanted for entry in _last(table.actual)):
            done.clear()
            await done.wait()
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.001)
    return took


def _p99(took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[98]


def _last(actual: Mapping[Any, Any]) -> list[Any]:
    return [actual[key] for key in islice(reversed(actual), _BACKENDS)]  # type: ignore[call-overload]  # of a dictionary


async def nodes() -> list[float]:
    """p99 of each round, in ms: one Node of 5,000 gets another key, planned and applied; peers and routes in memory."""
    async with inside() as bench:
        for number in range(1, _NODES):
            bench.add_node(number)
        await bench.settle()
        return [await _node_round(bench, 1 + round_) for round_ in range(_ROUNDS)]


async def _node_round(bench: Inside, round_: int) -> float:
    took = []
    for number in range(1, _CHANGES):
        bench.device.held.pop(_key(number + 10_000 * round_), None)
        began = time.perf_counter()
        bench.add_node(number, generation=round_)
        while _key(number + 10_000 * round_) not in bench.device.held:
            await asyncio.sleep(0)
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.001)
    return _p99(took)


async def start() -> dict[str, list[float]]:
    """Seconds from the start of an agent's process until it is ready, and its memory three seconds later."""
    try:
        lab = await bring_up.up(
            make_plan(clusters=1, nodes=1, pods=1, folder=str(_LAB)), lambda _said: None, bound=True
        )
        return await bench_agent.starts(lab)
    finally:
        teardown.down(_LAB)


FIGURES = {"event_to_map_ms": services, "node_event_5000_ms": nodes, "agent_start": start}


def own_service(number: int, generation: int) -> tuple[bytes, bytes]:
    """Key and value of a service; with another generation its first backend is another."""
    backends = [_address(number, each, generation if each == 0 else 0) for each in range(_BACKENDS)]
    service = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="bench",
        name=f"s{number}",
        frontends={_nth("10.96.0.1", number): _TCP80},
        backends=dict.fromkeys(backends, _TCP80),
    )
    value = local.encode_service(LocalService(service=service, is_global=True))
    return keys.local_service_key("bench", service.name), value


def _address(number: int, each: int, generation: int) -> Address:
    return nth(parse_prefix("10.0.0.0/10"), 1 + number * _BACKENDS + each + generation * _MOST_BACKENDS)


def _nth(first: str, number: int) -> Address:
    return from_int(to_int(parse(first)) + number)


def _key(number: int) -> str:
    import base64

    return base64.b64encode((number + 1).to_bytes(32, "big")).decode()
