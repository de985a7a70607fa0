"""3,000 TCP sockets in four network namespaces, connected to one service whose backend goes: until all are ended."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from agent.bpf.loader import Datapath
from agent.eviction.evictor import Evicted, Outcome, open_evictor
from agent.eviction.sweeper import Sweeper
from agent.plan.services import ServicePlanner
from clustermesh.address import parse
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler
from tests.bench import own_datapath
from tests.bpf.bpf_node import Node

_SOCKETS, _NAMESPACES, _ROUNDS = 3_000, 4, 5
_VIP: Final = ("10.96.0.1", 80)
_BACKEND: Final = ("10.64.0.1", 8080)


def measure() -> list[float]:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with own_datapath.datapath() as datapath, own_datapath.joined_cgroup("eviction") as cgroup:
            asyncio.run(_fill(datapath))
            datapath.attach_sockets(cgroup)
            return [_round(datapath) for _ in range(_ROUNDS)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


async def _fill(datapath: Datapath) -> None:
    tables = own_datapath.trackers(datapath)
    group = Group(1, 1, (Backends((parse(_BACKEND[0]),), _BACKEND[1]),))
    entry = ServiceEntry(Frontend(parse(_VIP[0]), _VIP[1], Protocol.TCP), (group,))
    ServicePlanner(tables).update(("default", "web"), [entry])
    await Reconciler(*tables).flush()


def _round(datapath: Datapath) -> float:
    sweeper = Sweeper(lambda: datapath.program_fd("sweep_meant"))
    with _connected(), closing(open_evictor(datapath.maps, sweeper)) as evictor:
        began = time.monotonic()
        evicted = evictor.evict(evictor.find())
        took = time.monotonic() - began
    if evicted != Evicted({Outcome.RESET: _SOCKETS}):
        raise RuntimeError(f"not all of {_SOCKETS} sockets were ended: {evicted}")
    return took


@contextmanager
def _connected() -> Iterator[None]:
    with ExitStack() as undo:
        for _ in range(_NAMESPACES):
            node = undo.enter_context(Node())
            node.run("ip", "address", "add", f"{_BACKEND[0]}/32", "dev", "lo")
            listening = undo.enter_context(node.socket(socket.AF_INET, socket.SOCK_STREAM))
            listening.bind(_BACKEND)
            listening.listen(_SOCKETS)
            for _ in range(_SOCKETS // _NAMESPACES):
                undo.enter_context(node.socket(socket.AF_INET, socket.SOCK_STREAM)).connect(_VIP)
        yield


FIGURES = {f"evict_{_SOCKETS}_s": measure}
