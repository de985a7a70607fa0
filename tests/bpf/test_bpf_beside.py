"""What stands beside ours: programs of somebody else on the same hook of sockets, and maps that are full."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from bpf_choice import CONTINUE, VIP, Chooser, opened_chooser
from bpf_node import Node
from test_bpf_eviction import Web

from agent.bpf.loader import Datapath
from agent.bpf.programs import EXIT, link_info, program_load, set_result
from agent.bpf.syscalls import AttachType, ProgramType, link_create
from clustermesh.address import Address, Prefix, from_int, parse, to_int
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry, ServiceFlag
from clustermesh.model import Algorithm, Protocol

pytestmark = pytest.mark.root

HOOK = AttachType.CGROUP_INET4_CONNECT
OTHER_VIP = parse("10.96.0.11")


@contextmanager
def somebody_else(cgroup: Path, result: int) -> Iterator[int]:
    """A program of another one that says `result` to each connect of IPv4; its link."""
    program = program_load(ProgramType.CGROUP_SOCK_ADDR, (set_result(result), EXIT), HOOK)
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        link = link_create(program, folder, HOOK)
    finally:
        os.close(folder)
        os.close(program)
    try:
        yield link
    finally:
        os.close(link)


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
async def test_a_program_of_somebody_else_at_the_same_hook_runs_too_and_stays(
    datapath: Datapath, cgroup: Path, node: Node, first: bool
) -> None:
    web, server = Web(datapath, Protocol.TCP), node.echo(socket.SOCK_STREAM)
    await web.serve(server)

    def called() -> tuple[str, int]:
        with closing(node.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.connect(("10.96.0.10", 80))
            client.send(b"hello")
            assert client.recv(100) == b"%d:hello" % server.port
            peer: tuple[str, int] = client.getpeername()
            return peer

    if not first:
        datapath.attach_sockets(cgroup)
    with somebody_else(cgroup, 1) as link:
        datapath.attach_sockets(cgroup)
        assert called() == ("10.96.0.10", 80)
        with somebody_else(cgroup, 0), pytest.raises(PermissionError):
            called()
        assert called() == ("10.96.0.10", 80)
        Datapath.remove(datapath.pin_dir)
        assert link_info(link).target == cgroup.stat().st_ino


def entry(vip: Address, cluster: int, backends: int = 1, *, maglev: bool = False, ranges: int = 0) -> ServiceEntry:
    addresses = tuple(from_int((0xFFFF << 32) + (cluster << 16) + n) for n in range(backends))
    return ServiceEntry(
        Frontend(vip, 80, Protocol.TCP),
        (Group(cluster, backends, (Backends(addresses, 8080),)),),
        algorithm=Algorithm.MAGLEV if maglev else Algorithm.RANDOM,
        flags=ServiceFlag.SOURCE_RANGES if ranges else 0,
        source_ranges=tuple(Prefix(from_int((0xFFFF << 32) + (n << 8)), 120) for n in range(1, ranges + 1)),
    )


@pytest.mark.parametrize(("full", "room"), [("lb_maglev", 1), ("lb_source_ranges", 3)])
async def test_what_a_full_map_has_no_room_for_is_left_out_whole_and_what_is_there_stays(
    bpf_object: Path, pin_dir: Path, choose_object: Path, full: str, room: int
) -> None:
    with (
        closing(Datapath.open(bpf_object, pin_dir, {full: room})) as datapath,
        opened_chooser(datapath, choose_object) as chooser,
    ):
        chooser.planner.update(("n", "first"), [entry(VIP, 1, maglev=True, ranges=3)])
        with pytest.raises(Unavailable, match=full):
            chooser.planner.update(("n", "second"), [entry(OTHER_VIP, 2, maglev=True, ranges=2)])
        await chooser.reconciler.flush()
        assert chooser.reconciler.settled
        assert reached(chooser, VIP) == {1}
        assert chooser.choose(1, OTHER_VIP)[0] == CONTINUE, "it is no service here, in no part"
        chooser.planner.update(("n", "first"), [])
        await chooser.reconciler.flush()
        chooser.planner.update(("n", "second"), [entry(OTHER_VIP, 2, maglev=True, ranges=2)])
        await chooser.reconciler.flush()
        assert reached(chooser, OTHER_VIP) == {2}


def reached(chooser: Chooser, vip: Address) -> set[int]:
    return {to_int(chooser.choose(seed, vip)[1]) >> 16 & 0xFFFF for seed in range(50)}
