"""The choice of bpf/lb.h over services that the real planner has written into the real maps."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpf_run import program_test_run

from agent.bpf.layouts import NO_ADDRESS, ServiceKey, pack
from agent.bpf.libbpf import Object
from agent.bpf.loader import Datapath
from agent.domains.tables import most_of, open_map
from agent.plan.services import ServicePlanner, ServiceTrackers
from clustermesh.address import Address, from_int, parse, to_int
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler, Tracker

CONTINUE, TRANSLATED, REJECT = 0, 1, 2
VIP, VIP6 = parse("10.96.0.10"), parse("fd96::10")
Shares = dict[int, float]


class Chooser:
    """The real choice over the real maps, which a real planner fills."""

    def __init__(self, datapath: Datapath, program: int) -> None:
        self.datapath, self.program = datapath, program
        names = ServiceTrackers._fields
        self.trackers = ServiceTrackers(*(Tracker(name, open_map(datapath, f"lb_{name}")) for name in names))
        self.planner = ServicePlanner(self.trackers, [most_of(each.target) for each in self.trackers])
        self.reconciler = Reconciler(*self.trackers)
        self.reconciler.may_delete = True

    async def serve(self, *groups: Group, vip: Address = VIP, **rules: Any) -> None:
        """One service at `vip`; `rules` are fields of its entry."""
        await self.serve_entries(vip, ServiceEntry(Frontend(vip, 80, Protocol.TCP), groups, **rules))

    async def serve_entries(self, vip: Address, *entries: ServiceEntry) -> None:
        self.planner.update(("n", str(vip)), entries)
        await self.reconciler.flush()

    def choose(
        self, seed: int, vip: Address = VIP, client: Address = NO_ADDRESS, outside: bool = False, head: bytes = b""
    ) -> tuple[int, Address, int]:
        """The verdict, and where it leads; by a `head` of the service that was read before."""
        packet = bytes(14) + pack(ServiceKey(vip, 80, 6)) + struct.pack("=I16sI20s10x", seed, client, outside, head)
        result = program_test_run(self.program, packet)
        address, port = struct.unpack_from("!16sH", result.data, 14)
        return result.verdict, Address(address), port

    def shares(self, seeds: int = 4000, vip: Address = VIP) -> Shares:
        """The part of the choices each cluster has: its id is in its backends' addresses."""
        reached = Counter(self.choose(seed * 0x9E3779B1 & 0xFFFFFFFF, vip)[:2] for seed in range(seeds))
        assert {verdict for verdict, _ in reached} == {TRANSLATED}
        clusters: Counter[int] = Counter()
        for (_, address), count in reached.items():
            clusters[to_int(address) >> 16 & 0xFFFF] += count
        return {cluster: count / seeds for cluster, count in sorted(clusters.items())}


@contextmanager
def opened_chooser(datapath: Datapath, choose_object: Path) -> Iterator[Chooser]:
    with Object(choose_object) as elf:
        for name in elf.maps:
            elf.reuse(name, datapath.maps[name])
        elf.load()
        yield Chooser(datapath, elf.program_fd("choose"))


def group(cluster: int, backends: int, weight: int | None = None) -> Group:
    """The backends have the cluster's id in the first two bytes of their IPv4 addresses."""
    first = to_int(parse("0.0.0.0")) + (cluster << 16)
    made = tuple(from_int(first + n) for n in range(backends))
    return Group(cluster, backends if weight is None else weight, (Backends(made, 8080),))


def expected(weights: Mapping[int, int], factors: Mapping[int, float]) -> Shares:
    parts = {cluster: weight * factors.get(cluster, 1.0) for cluster, weight in weights.items()}
    return {cluster: part / sum(parts.values()) for cluster, part in parts.items() if part}


def assert_near(found: Shares, wanted: Shares, seeds: int = 4000) -> None:
    """Within five standard deviations, and nobody else at all."""
    assert found.keys() <= wanted.keys()
    for cluster, share in wanted.items():
        assert abs(found.get(cluster, 0.0) - share) <= 5 * (share * (1 - share) / seeds) ** 0.5 + 1e-9, cluster
