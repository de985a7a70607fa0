"""What stands between a client and the backends: each variant set up in a row of pods of its own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.layouts import NO_ADDRESS, AddressKey, ConfigFlag, NodeConfig, Number, PodDevice, PodSource, pack
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map
from agent.plan.services import ServicePlanner
from clustermesh.address import parse
from clustermesh.mesh.resolve import resolve
from clustermesh.model import LocalService, Port, Protocol, Service
from clustermesh.reconcile import Reconciler
from tests.bench import own_datapath
from tests.bench.datapath._kube_proxy_rules import for_iptables, for_nft
from tests.bench.datapath._load import Load
from tests.bench.datapath._network import BACKENDS, DEVICES, NODE, Pods, pods
from tests.bench.datapath._services import PORT, Made, services

Prepare = Callable[[ExitStack, Pods, Sequence[Made]], "Path | None"]
"""Sets a variant up; what it returns is the cgroup its client belongs to, if any."""

_PATIENCE: Final = 150.0
_POD_PROGRAMS: Final = tuple(program for program in PROGRAMS if program.kind is Kind.POD)


@contextmanager
def standing(program: Path, variant: str, count: int) -> Iterator[Load]:
    """A client of so many services, by way of `variant`."""
    made = list(services(count))
    with ExitStack() as stack:
        row = stack.enter_context(pods())
        cgroup = _PREPARE[variant](stack, row, made)
        targets = [(each.vip, PORT) for each in made]
        if variant == "direct":
            targets = [target for each in made for target in each.backends]
        load = stack.enter_context(Load(program, row, targets, count))
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(load.client_pid))
        yield load


def _direct(_stack: ExitStack, _pods: Pods, _services: Sequence[Made]) -> None:
    """Nothing."""


def _iptables(program: str) -> Prepare:
    def prepare(_stack: ExitStack, row: Pods, made: Sequence[Made]) -> None:
        feed(row, [program], [for_iptables(made)])

    return prepare


def _nftables(_stack: ExitStack, row: Pods, made: Sequence[Made]) -> None:
    feed(row, ["nft", "-f", "-"], for_nft(made))


def feed(row: Pods, command: Sequence[str], pieces: Iterable[str]) -> None:
    """Give each piece to a run of `command` on the node."""
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"no {command[0]} here: apt-get install iptables nftables")
    for piece in pieces:
        row.node.call_long(
            lambda piece=piece: subprocess.run(command, input=piece, text=True, check=True, timeout=_PATIENCE)
        )


def _socket(stack: ExitStack, _pods: Pods, made: Sequence[Made]) -> Path:
    datapath = stack.enter_context(own_datapath.datapath())
    _fill(datapath, made)
    cgroup = stack.enter_context(own_datapath.cgroup("client"))
    datapath.attach_sockets(cgroup)
    return cgroup


def _packets(redirect: bool) -> Prepare:
    """Our programs at the pods' devices, the client's sockets left alone. `redirect`: past the node's own network."""

    def prepare(stack: ExitStack, row: Pods, made: Sequence[Made]) -> None:
        datapath = stack.enter_context(own_datapath.datapath())
        _fill(datapath, made)
        asyncio.run(
            _describe_node(datapath, row.node.call(_indexes), ConfigFlag.REDIRECT if redirect else ConfigFlag(0))
        )
        for device in DEVICES.values():
            row.node.call(partial(datapath.devices.attach, device, _POD_PROGRAMS))

    return prepare


def attach_to_pods(datapath: Datapath, row: Pods, *, redirect: bool) -> None:
    """The programs at the backend pods' devices, and what all of them are to know of the node."""
    asyncio.run(_describe_node(datapath, row.node.call(_indexes), ConfigFlag.REDIRECT if redirect else ConfigFlag(0)))
    for address in BACKENDS:
        row.node.call(partial(datapath.devices.attach, DEVICES[address], _POD_PROGRAMS))


def _indexes() -> dict[str, int]:
    """Of the pods' devices on this node, by the pods' addresses."""
    return {address: socket.if_nametoindex(device) for address, device in DEVICES.items()}


async def _describe_node(datapath: Datapath, indexes: Mapping[str, int], flags: ConfigFlag) -> None:
    """What the programs are to know of this node and its pods."""
    await describe_node(datapath, flags)
    devices = {pack(AddressKey(parse(each))): pack(PodDevice(index)) for each, index in indexes.items()}
    await open_map(datapath, "pod_devices").upsert(devices)
    sources = {pack(Number(index)): pack(PodSource(parse(each))) for each, index in indexes.items()}
    await open_map(datapath, "pod_sources").upsert(sources)


async def describe_node(datapath: Datapath, flags: ConfigFlag = ConfigFlag.REDIRECT) -> None:
    """What the programs are to know of this node alone."""
    node = NodeConfig(parse(NODE), NO_ADDRESS, NO_ADDRESS, NO_ADDRESS, port_first=61_000, port_last=65_535, flags=flags)
    await open_map(datapath, "node_config").upsert({pack(Number(0)): pack(node)})


def _fill(datapath: Datapath, made: Sequence[Made]) -> None:
    """As the agent does."""
    tables = own_datapath.trackers(datapath)
    planner = ServicePlanner(tables)
    for each in made:
        planner.update(("default", each.name), resolve(_local(each), ()))
    asyncio.run(Reconciler(*tables).flush())


def _local(made: Made) -> LocalService:
    port = made.backends[0][1]
    service = Service(
        cluster="a",
        cluster_id=1,
        namespace="default",
        name=made.name,
        frontends={parse(made.vip): {"http": Port(protocol=Protocol.TCP, port=PORT)}},
        backends={parse(address): {"http": Port(protocol=Protocol.TCP, port=port)} for address, _ in made.backends},
    )
    return LocalService(service=service, is_global=False)


_PREPARE: Final[Mapping[str, Prepare]] = {
    "direct": _direct,
    "socket": _socket,
    "tc": _packets(redirect=False),
    "tc_redirect": _packets(redirect=True),
    "iptables": _iptables("iptables-legacy-restore"),
    "iptables_nft": _iptables("iptables-nft-restore"),
    "nftables": _nftables,
}
