"""A node's kernel as dictionaries, under the real trackers, planners and domains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_wireguard import FakeDevice, numbered_key

from agent.bpf.layouts import BackendValue, Number, ServiceKey, ServiceValue, SlotsKey, pack, unpack, unpack_each
from agent.domains.domains import Domains
from agent.domains.tables import Targets, ThisNode
from agent.options import Options
from agent.plan.services import ServiceTrackers
from agent.propagation import Propagation
from agent.state import AgentState
from agent.targets.wireguard import WireGuardTarget
from agent.underlay import Underlay
from agent.wireguard.peer import Peer, PeerState
from clustermesh.address import Address, parse, parse_prefix
from clustermesh.errors import ApplyError, ClusterMeshError, Unavailable
from clustermesh.mesh.authority import Authority
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import Session, State
from clustermesh.model import ClusterConfig, LocalService, Node, NodeAddress, Port, Protocol, Service

NODE = "n1"
TCP80 = {"http": Port(protocol=Protocol.TCP, port=80)}
VIP = parse("10.96.0.1")


class FakeTable:
    """A target that is a dictionary. `refuse` are keys it does not take; `full` is how many entries fit."""

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name, self.journal = name, journal
        self.held: dict[Any, Any] = {}
        self.refuse: set[Any] = set()
        self.full = 1 << 20

    async def dump(self) -> Mapping[Any, Any]:
        return dict(self.held)

    async def upsert(self, entries: Mapping[Any, Any]) -> None:
        self.journal.append(f"{self.name} +{len(entries)}")
        failed = {}
        for key, value in entries.items():
            if key in self.refuse or (key not in self.held and len(self.held) >= self.full):
                failed[key] = f"{self.name} does not take it"
            else:
                self.held[key] = value
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[Any]) -> None:
        self.journal.append(f"{self.name} -{len(keys)}")
        for key in keys:
            self.held.pop(key, None)


class MortalDevice(FakeDevice):
    """`die` makes it be gone, `ensure` makes it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = asyncio.Event()
        self.there = False
        self.fail: ClusterMeshError | None = None  # what looking after it raises, once
        self.asked = 0  # times for its peers
        self.on_question: Callable[[], object] = lambda: None
        self.hanging = 0  # calls that nothing will ever answer
        self._hangs = False

    def hang(self) -> None:
        """From now on no call ends."""
        self._hangs = True

    async def _answer(self) -> None:
        if self._hangs:
            self.hanging += 1
            await asyncio.Event().wait()

    def die(self) -> None:
        self.there = False
        self.states.clear()
        self.dead.set()

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        await self._answer()
        new, self.there = not self.there, True
        self.dead.clear()
        return new

    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        await self._answer()
        await super().set_peers(peers, extended)

    async def peers(self) -> dict[str, PeerState]:
        await self._answer()
        self.asked += 1
        self.on_question()
        if not self.there:
            raise Unavailable("there is no device")
        return await super().peers()

    async def died(self) -> None:
        if (fault := self.fail) is not None:
            self.fail = None
            raise fault
        await self.dead.wait()


class FakeUnderlay:
    """Stands for agent.underlay.UnderlaySetup. `elsewhere` is raised while it is set, since this machine is not the
    Node's, and `fault` where that is found; `during` runs inside `apply`."""

    def __init__(self, device: MortalDevice) -> None:
        self.current: Underlay | None = None
        self.on_found: Callable[[], None] = lambda: None
        self.elsewhere: ClusterMeshError | None = None
        self.fault: ClusterMeshError | None = None
        self.during: Callable[[], object] = lambda: None
        self.applied: list[Node] = []
        self._device = device

    async def apply(self, own: Node) -> bool:
        self.applied.append(own)
        self.during()
        if self.elsewhere is not None:
            raise self.elsewhere
        self.on_found()
        if self.fault is not None:
            raise self.fault
        new = await self._device.ensure(b"", 0, 0, 0)
        self.current = Underlay(interface="eth0", mtu=1420, strict="tcx")
        return new


class Bed:
    """The domains with everything around them faked. `own` is the cluster alpha, this node is its n1."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.now = 1000.0
        names = (
            "ipcache",
            "cidrs",
            "routes",
            *ServiceTrackers._fields,
            "clusters",
            "evicted",
            "config",
            "sources",
            "pods",
            "devices",
            "frames",
        )
        self.tables = {name: FakeTable(name, self.journal) for name in names}
        self.options = Options(context=Path("/nowhere"), node=NODE)
        self.propagation = Propagation()
        self.state = self.sink = AgentState("alpha", self.propagation)
        self.state.admit_peers()
        self.state.authorize(Authority(name="beta"))
        self.device = MortalDevice()
        self.underlay = FakeUnderlay(self.device)
        self.attached: list[Path] = []  # the cgroups whose sockets have the programs
        self.datapath = SimpleNamespace(
            loader="libbpf",
            hooks={},
            devices=SimpleNamespace(hooks={}),
            frames=SimpleNamespace(hooks={}),
            pin_dir=Path("/sys/fs/bpf/x"),
            counters=dict,
            attach_sockets=self.attached.append,
            has_sockets=lambda: True,
            has_links_folder=lambda: True,
            pin_lost=list,
            has_predecessor=False,
            maps={"ct": -1, "ct_direct": -1},
        )
        self.own = self.reader("alpha")
        self.peers = SimpleNamespace(
            readers={},
            synced_once=True,
            problems=[],
            newcomers=set(),
            lost=set(),
            lost_files=[],
            looked=asyncio.Event(),
        )
        self.peers.looked.set()
        self.restart()

    def restart(self) -> None:
        """Another agent: the kernel keeps what it holds."""
        self.state.on_dirty.clear()
        self.node = ThisNode(self.datapath, self.device, self.underlay, numbered_key(1))  # type: ignore[arg-type]
        targets = Targets(peers=WireGuardTarget(self.device, numbered_key(1)), **self.tables)
        self.domains = Domains(self.options, self.state, self.node, targets, lambda: self.now)
        if self.underlay.elsewhere is None:
            self.domains.network.take_part()
        self._pruning = False

    async def adopt(self) -> None:
        for domain in self.domains.all:
            await domain.adopt()

    def reader(self, name: str, state: State = State.FRESH, cluster_id: int = 1) -> ClusterReader:
        reader = ClusterReader(name, self.sink, lambda: pytest.fail("unused"), lambda _n, _c: [], lambda _n, _c: None)
        reader.brain.session = Session(state=state)
        reader.brain.config = ClusterConfig(id=cluster_id)
        return reader

    def connect(self, name: str, state: State = State.FRESH) -> ClusterReader:
        self.peers.readers[name] = self.reader(name, state, 2)
        return self.peers.readers[name]

    async def step(self) -> None:
        """One step of every domain, with what is due later tried now, and what the agent decides before and after."""
        self.domains.greet(self.own, self.peers)  # type: ignore[arg-type]
        for tracker in self.domains.trackers:
            tracker.hurry()
        if self.domains.tunnels.error or self.domains.tunnels.own is None:
            self.domains.tunnels.look_after()
        self.domains.wake()
        if self.own.session.complete and self.domains.knows_all():
            self.domains.allow_deletes()
        for domain in self.domains.all:
            await domain.step()
        while busy := [domain for domain in self.domains.all if not domain.idle.is_set()]:
            for domain in busy:
                await domain.step()
        self.domains.note_ready()
        if not self._pruning and self.domains.may_prune():
            self._pruning = True
            for domain in self.domains.all:
                domain.allow_pruning()
            await self.step()

    def spend(self, seconds: float) -> None:
        """It is that much later."""
        self.now += seconds

    async def running(self) -> asyncio.Task[None]:
        """All of it as in an agent."""
        return asyncio.create_task(self.domains.run(self.own, self.peers))  # type: ignore[arg-type]

    def say(self, cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        self.sink.put(cluster, kind, name, value, revision)

    def add_node(self, cluster: str, number: int, **changes: Any) -> Node:
        node = make_node(cluster, number, **changes)
        self.say(cluster, "nodes", node.name, node)
        return node

    def add_web(self, *addresses: str, name: str = "web", vip: Address = VIP) -> None:
        """The own cluster's global service n/`name`, n/web at VIP."""
        service = Service(
            cluster="alpha",
            cluster_id=1,
            namespace="n",
            name=name,
            frontends={vip: TCP80},
            backends=dict.fromkeys(map(parse, addresses), TCP80),
        )
        self.say("alpha", "local_services", ("n", name), LocalService(service=service, is_global=True))

    def add_remote_web(self, cluster: str, *addresses: str, revision: int = 0) -> None:
        service = Service(
            cluster=cluster,
            cluster_id=2,
            namespace="n",
            name="web",
            backends=dict.fromkeys(map(parse, addresses), TCP80),
        )
        self.say(cluster, "services", ("n", "web"), service, revision)

    def served(self) -> list[str]:
        """The backends that a lookup of VIP in the fake kernel ends at."""
        services, slots, backends = (self.tables[name].held for name in ("services", "slots", "backends"))
        held = services.get(pack(ServiceKey(VIP, 80, 6)))
        if held is None:
            return []
        head = unpack(ServiceValue, held)
        blocks = [slots[pack(SlotsKey(head.service_id, group))] for group in range(head.groups)]
        ids = {each for block in blocks for each in unpack_each(Number, block)}
        return sorted(str(unpack(BackendValue, backends[pack(each)]).address[-1]) for each in ids)


def make_node(cluster: str, number: int, **changes: Any) -> Node:
    fields: dict[str, Any] = {
        "cluster": cluster,
        "cluster_id": 1 if cluster == "alpha" else 2,
        "name": f"n{number}",
        "addresses": (NodeAddress(type="InternalIP", ip=parse(f"192.0.2.{number}")),),
        "pod_cidrs": (parse_prefix(f"10.{1 if cluster == 'alpha' else 2}.{number}.0/24"),),
        "wireguard_public_key": numbered_key(number),
    }
    return Node(**(fields | changes))
