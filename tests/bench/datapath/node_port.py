"""Datagrams of 64 bytes that a client outside sends to a node port, and that arrive at the backends: how many a second.

One CPU sends and does all that the kernel does on the way; another one takes them in. `direct` ones go to the backends
themselves. All variants have turns, as in `compare`.

To `tc`, `tc_redirect` and `iptables` the backends are this node's pods. To `far_tc`, `xdp` and `xdp_generic` they are
elsewhere, and see this node instead of the client, as with iptables: by tc, or by XDP in the driver or the kernel.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ethtool import GATHER, SUM_WHAT_IS_SENT, switch

from agent.bpf.hooks import PROGRAMS, Accelerated, Kind
from agent.bpf.layouts import XdpMode
from agent.bpf.loader import Datapath
from agent.domains.devices import ethernet_of
from agent.plan.services import ServicePlanner
from clustermesh.address import parse
from clustermesh.mesh import resolve
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler
from tests.bench import own_datapath
from tests.bench.datapath._kube_proxy_rules import node_port_for_iptables
from tests.bench.datapath._load import FIRST_PORT, Flood, compiled
from tests.bench.datapath._network import BACKENDS, CLIENT, DEVICES, NODE, Pods, pods
from tests.bench.datapath._variants import attach_to_pods, describe_node, feed
from tests.bench.frame import Together

_VARIANTS: Final = ("direct", "tc", "tc_redirect", "far_tc", "xdp", "xdp_generic", "iptables")
_MODES: Final = {"xdp": XdpMode.NATIVE, "xdp_generic": XdpMode.GENERIC}
_PORT: Final = 30_000
_TARGETS: Final = [(address, FIRST_PORT) for address in BACKENDS]
_ROUNDS, _TURNS, _SECONDS = 11, 4, 0.1
_OUTSIDE: Final = tuple(program for program in PROGRAMS if program.kind is Kind.OUTSIDE)


def compare(wanted: Sequence[str]) -> dict[str, list[float]]:
    """A sample of each from each round."""
    names = {name.removeprefix("node_port_").removesuffix("_pps"): name for name in wanted}
    with ExitStack() as stack:
        program = stack.enter_context(compiled())
        floods = {each: stack.enter_context(_standing(program, each)) for each in names}
        rounds = [_round(floods, number) for number in range(_ROUNDS + 1)][1:]
    return {name: [each[variant] for each in rounds] for variant, name in names.items()}


def _round(floods: dict[str, Flood], number: int) -> dict[str, float]:
    draw, arrived = random.Random(number), dict.fromkeys(floods, 0)
    for turn in range(_TURNS):
        for variant in draw.sample(list(floods), len(floods)):
            arrived[variant] += floods[variant].run(_SECONDS, number * _TURNS + turn)
    return {variant: many / (_TURNS * _SECONDS) for variant, many in arrived.items()}


@contextmanager
def _standing(program: Path, variant: str) -> Iterator[Flood]:
    with ExitStack() as stack:
        row = stack.enter_context(pods())
        if variant == "iptables":
            feed(row, ["iptables-legacy-restore"], [node_port_for_iptables(_PORT, _TARGETS)])
        elif variant != "direct":
            _set_up(stack, row, variant)
        row.client.call(lambda: switch("eth0", SUM_WHAT_IS_SENT, on=False))  # as what comes by a wire
        targets = _TARGETS if variant == "direct" else [(NODE, _PORT)]
        yield stack.enter_context(Flood(program, row, targets))


def _set_up(stack: ExitStack, row: Pods, variant: str) -> None:
    """The client's device leads outside, for our programs."""
    datapath = stack.enter_context(own_datapath.datapath())
    tables = own_datapath.trackers(datapath)
    group = Group(1, len(BACKENDS), (Backends(tuple(sorted(map(parse, BACKENDS))), FIRST_PORT),))
    frontend = Frontend(parse(NODE), _PORT, Protocol.UDP)
    entry = ServiceEntry(frontend, (group,), kind=resolve.Kind.NODE_PORT)
    ServicePlanner(tables).update(("default", "node"), [entry])
    asyncio.run(Reconciler(*tables).flush())
    if variant in ("tc", "tc_redirect"):
        attach_to_pods(datapath, row, redirect=variant == "tc_redirect")
    else:
        asyncio.run(describe_node(datapath))
    row.node.call(partial(datapath.devices.attach, DEVICES[CLIENT], _OUTSIDE))
    if variant in _MODES:
        for number, device in enumerate(DEVICES.values()):
            if DEVICES[CLIENT] != device:
                row.backends.call(partial(switch, f"eth{number}", GATHER, on=True))
            row.node.call(partial(_accelerate, datapath, device, _MODES[variant]))


def _accelerate(datapath: Datapath, device: str, mode: XdpMode) -> None:
    datapath.frames.attach(device, Accelerated(socket.if_nametoindex(device), ethernet_of(device)), [mode])


FIGURES = dict.fromkeys((f"node_port_{variant}_pps" for variant in _VARIANTS), Together(compare))
