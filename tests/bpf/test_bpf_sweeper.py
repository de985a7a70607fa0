"""Sockets that the kernel has made itself, of whose end no program is told: what they meant is taken out of lb_meant,
and what all others mean stays.

client of Multipath TCP ── its first connection's socket, the kernel's own ──> service ──> server
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from bpf_maps import write
from bpf_node import Node

from agent.bpf.layouts import (
    MEANT_SETS,
    MEANT_WAYS,
    SWEEP_MOST,
    BackendValue,
    GroupsKey,
    LbGroup,
    Number,
    ServiceKey,
    ServiceValue,
    SlotsKey,
)
from agent.bpf.loader import Datapath
from agent.bpf.programs import program_run
from agent.bpf.syscalls import map_lookup, map_update
from agent.eviction import sweeper as sweeping
from agent.eviction.copies import cookie_of
from agent.eviction.meaning import Meant, read_meant
from agent.eviction.sweeper import Sweeper, frames
from clustermesh.address import parse

pytestmark = pytest.mark.root

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOLS = {TCP: 6, UDP: 17}
IPPROTO_MPTCP = 262
V4, V6 = socket.AF_INET, socket.AF_INET6
VIP = ("10.96.0.10", 80)


class Bed:
    """A service of each protocol at VIP, and a sweeper whose looks are as far apart as they must be."""

    def __init__(self, datapath: Datapath, node: Node) -> None:
        self.node, self.map, self.now, self.full = node, datapath.maps["lb_meant"], 0.0, 0
        self.program = datapath.program_fd("sweep_meant")
        self.sweeper = Sweeper(lambda: self.program, lambda: self.now)
        for number, kind in enumerate(PROTOCOLS, 1):
            server = node.echo(kind)
            backend = BackendValue(parse(server.address[0]), server.port, PROTOCOLS[kind], 0, 1)
            groups = [LbGroup(1, 1, 1), *[LbGroup(1)] * 7]
            key = ServiceKey(parse(VIP[0]), VIP[1], PROTOCOLS[kind])
            asyncio.run(write(datapath, "lb_backends", {Number(number): backend}))
            asyncio.run(write(datapath, "lb_slots", {SlotsKey(number): [Number(number)] * 16}))
            asyncio.run(write(datapath, "lb_groups", {GroupsKey(number): groups}))
            asyncio.run(write(datapath, "lb_services", {key: ServiceValue(number, 1, groups=1)}))

    def client(self, kind: int, family: int = V4, protocol: int = 0) -> socket.socket:
        """Connected to the service, which has answered."""
        made = self.node.socket(family, kind, protocol)
        made.connect(VIP if family == V4 else (f"::ffff:{VIP[0]}", VIP[1]))
        made.settimeout(5)
        made.sendall(b"hello")
        assert made.recv(100).endswith(b":hello")
        return made

    def multipath(self, count: int) -> list[socket.socket]:
        try:
            self.node.socket(V4, TCP, IPPROTO_MPTCP).close()
        except OSError as e:
            pytest.skip(f"MPTCP is missing: {e}")
        return [self.client(TCP, protocol=IPPROTO_MPTCP) for _ in range(count)]

    def known(self) -> Meant:
        return read_meant(self.map)

    def cookies(self) -> set[int]:
        return {cookie for cookies in self.known().values() for cookie in cookies}

    def look(self, known: Meant | None = None) -> int:
        self.now += 60
        return self.sweeper.sweep(self.known() if known is None else known, self.full)

    def take(self, number: int, way: int, cookie: int) -> None:
        """As a socket that is told of nowhere, and means nothing in particular, of UDP."""
        key = number.to_bytes(4, sys.byteorder)
        found = bytearray(map_lookup(self.map, key, MEANT_WAYS * 56) or b"")
        found[8 * way : 8 * way + 8] = cookie.to_bytes(8, sys.byteorder)
        found[8 * MEANT_WAYS + 48 * way + 40] = PROTOCOLS[UDP]
        map_update(self.map, key, bytes(found))


def disconnect(client: socket.socket) -> None:
    """As AF_UNSPEC does it, which Python does not say."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def bed(datapath: Datapath, cgroup: Path, node: Node) -> Bed:
    datapath.attach_sockets(cgroup)
    return Bed(datapath, node)


@pytest.mark.both_loaders
def test_what_closed_sockets_of_the_kernel_meant_goes_and_what_lives_keeps_its_own(bed: Bed) -> None:
    closed = bed.multipath(100)
    of_processes = [bed.client(kind, family) for kind in PROTOCOLS for family in (V4, V6)]
    of_kernel = bed.multipath(3)
    staying = len([*of_processes, *of_kernel])
    for client in closed:
        client.close()
    assert len(bed.cookies()) == len(closed) + staying, "no program was asked"
    bed.look()
    assert len(bed.cookies()) == len(closed) + staying, "they may have been connecting just then"
    end = time.monotonic() + 20
    while len(bed.cookies()) > staying and time.monotonic() < end:  # the kernel takes its time to close them
        bed.sweeper.want()
        bed.look()
        time.sleep(0.01)
    assert len(bed.cookies()) == staying
    assert bed.cookies() >= {cookie_of(client) for client in of_processes}
    for client in of_processes:
        assert client.getpeername()[0].removeprefix("::ffff:") == VIP[0]


def test_who_took_a_place_or_was_connected_anew_between_a_look_and_its_end_keeps_it(bed: Bed) -> None:
    """The kernel tells of no TCP socket that is not connected: it is found nowhere."""
    anew = bed.client(TCP)
    number, way, cookie = 7, 2, 7 + 5 * MEANT_SETS
    bed.take(number, way, cookie)
    gone = {value._replace(backend_id=99): [cookie_of(anew), cookie] for value in bed.known() if value.protocol == 6}
    disconnect(anew)
    assert bed.look(gone) == 0
    anew.connect(VIP)
    disconnect(anew)
    bed.take(number, way, other := cookie + MEANT_SETS)
    assert bed.look(gone) == 0
    assert bed.cookies() == {cookie_of(anew), other}


def test_what_is_found_again_at_the_second_look_was_only_connecting(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bed.client(TCP)
    living = sweeping._living
    monkeypatch.setattr(sweeping, "_living", lambda: {6: set()})
    assert bed.look() == 0
    monkeypatch.setattr(sweeping, "_living", living)
    assert bed.look() == 0
    monkeypatch.setattr(sweeping, "_living", lambda: {6: set()})
    bed.sweeper.want()
    assert bed.look() == 0, "it was not found twice, but not one after the other"
    assert bed.look() == 1, "twice: it is taken for closed"
    assert bed.cookies() == set()
    client.close()


def test_of_what_the_kernel_does_not_tell_nothing_is_taken(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.take(0, 0, MEANT_SETS)
    bed.take(0, 1, 2 * MEANT_SETS)
    monkeypatch.setattr(sweeping, "_living", lambda: {6: set()})
    assert [bed.look() for _ in range(4)] == [0] * 4
    assert bed.cookies() == {MEANT_SETS, 2 * MEANT_SETS}


def test_thousands_are_freed_at_once(bed: Bed) -> None:
    count = 10 * SWEEP_MOST + 1
    for number in range(count):
        bed.take(number, number % MEANT_WAYS, number + MEANT_SETS)
    assert (bed.look(), bed.look(), bed.cookies()) == (0, count, set())


def test_only_who_is_suspected_is_freed(bed: Bed) -> None:
    bed.take(3, 0, 3 + MEANT_SETS)
    asked = [3, 3 + MEANT_SETS, 3 + 2 * MEANT_SETS]
    assert [program_run(bed.program, frame) for frame in frames(True, asked)] == [0]
    assert [program_run(bed.program, frame) for frame in frames(False, asked)] == [0]
    assert [program_run(bed.program, frame) for frame in frames(True, asked)] == [1]
    assert [program_run(bed.program, frame) for frame in frames(True, asked)] == [0]


def test_sockets_are_looked_for_where_there_is_need_and_not_all_the_time(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(sweeping, "_living", lambda: looks.append(bed.now) or {})  # type: ignore[func-returns-value]
    bed.take(0, 0, MEANT_SETS)
    (value,) = bed.known()

    def look(taken: int, after: float = 60) -> bool:
        bed.now += after
        before = len(looks)
        bed.sweeper.sweep({value: [*range(1, taken + 1)]}, bed.full)
        return len(looks) > before

    many = MEANT_SETS * MEANT_WAYS // 8
    assert look(1), "at the start"
    assert not look(1)
    assert not look(many)
    assert look(many + 1), "they have become many more"
    assert not look(many + 1), "which is looked at once"
    assert not look(1)
    assert look(many + 1), "from the least there were since"
    bed.full += 1
    assert not look(1, after=1), "not all the time"
    assert look(1), "there was no room"
    bed.sweeper.want()
    assert look(1), "some were found nowhere"
    assert not look(1)
