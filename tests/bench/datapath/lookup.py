"""What choosing a backend costs, by the number of services: nanoseconds that connect4 runs for, as the kernel counts.

A connected UDP socket sends nothing: only the program is measured, and each time for a service drawn anew.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from agent.bpf.loader import Datapath
from agent.plan.services import ServicePlanner
from clustermesh.address import nth, parse_prefix, text
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler
from tests.bench import own_datapath
from tests.bpf.bpf_node import Node

_SIZES: Final = (10, 1_000, 10_000, 60_000)
_ROUNDS, _CONNECTS = 15, 4_000
_VIPS, _BACKENDS = parse_prefix("10.96.0.0/12"), parse_prefix("10.64.0.0/12")
_PORT: Final = 53
_COUNTING: Final = Path("/proc/sys/kernel/bpf_stats_enabled")


def connect4_ns(services: int) -> list[float]:
    """Of one run, in each round."""
    with own_datapath.datapath() as datapath, own_datapath.joined_cgroup("lookup") as cgroup, Node() as node:
        asyncio.run(_fill(datapath, services))
        datapath.attach_sockets(cgroup)
        node.run("ip", "route", "add", "default", "dev", "lo")
        draw = random.Random(services)
        with _counted():
            return [node.call(lambda: _round(datapath, services, draw)) for _ in range(_ROUNDS)]


async def _fill(datapath: Datapath, services: int) -> None:
    """Each has a backend of its own."""
    tables = own_datapath.trackers(datapath)
    planner = ServicePlanner(tables)
    for number in range(services):
        group = Group(1, 1, (Backends((nth(_BACKENDS, number),), _PORT),))
        entry = ServiceEntry(Frontend(nth(_VIPS, number), _PORT, Protocol.UDP), (group,))
        planner.update(("default", f"s{number}"), [entry])
    await Reconciler(*tables).flush()


def _round(datapath: Datapath, services: int, draw: random.Random) -> float:
    called = [(text(nth(_VIPS, draw.randrange(services))), _PORT) for _ in range(_CONNECTS)]
    nanoseconds, runs = _ran(datapath)
    for each in called:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(each)
    after, more = _ran(datapath)
    if more - runs != _CONNECTS:
        raise RuntimeError(f"connect4 ran {more - runs} times for {_CONNECTS} connections")
    return (after - nanoseconds) / _CONNECTS


def _ran(datapath: Datapath) -> tuple[int, int]:
    """Nanoseconds that connect4 has run so far, and how often."""
    lines = Path(f"/proc/self/fdinfo/{datapath.program_fd('connect4')}").read_text().splitlines()
    said = dict(line.split(":") for line in lines)
    return int(said["run_time_ns"]), int(said["run_cnt"])


@contextmanager
def _counted() -> Iterator[None]:
    """While the kernel counts what programs take."""
    before = _COUNTING.read_text()
    _COUNTING.write_text("1")
    try:
        yield
    finally:
        _COUNTING.write_text(before)


def _all() -> dict[str, Callable[[], Any]]:
    return {f"connect4_{services}_ns": partial(connect4_ns, services) for services in _SIZES}


FIGURES = _all()
