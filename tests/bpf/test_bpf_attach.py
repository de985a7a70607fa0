"""Strict mode on real devices without a link-layer header, by both ways of attaching.

node namespace:  pod 10.1.0.5 on lo  ──  tun0  ──  this test, holding the other end
                 routes to 10.2.0.0/24 and 198.51.100.0/24 lead into tun0
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from bpf_maps import delete, write
from bpf_node import TIMEOUT, Node
from bpf_packets import ipv4, ipv6

from agent.bpf import clsact, probe
from agent.bpf.hooks import UNDERLAY_PROGRAMS, Kind, Program
from agent.bpf.layouts import IpcacheValue, Reason, pack_cidr
from agent.bpf.links import Mechanism, Outcome
from agent.bpf.loader import Datapath
from agent.bpf.programs import EXIT, program_load, set_result
from agent.bpf.syscalls import AttachType, ProgramType, link_create, object_pin
from clustermesh.address import parse_prefix
from clustermesh.errors import Invalid

pytestmark = pytest.mark.root

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_DROP_ALL = (set_result(2), EXIT)
POD, PEER, WORLD = "10.1.0.5", "10.2.0.7", "198.51.100.1"
POD_CIDRS = ("10.1.0.0/24", "10.2.0.0/24", "fd10:1::/64", "fd10:2::/64")
POD6, PEER6 = "fd10:1::5", "fd10:2::7"
by_each_mechanism = pytest.mark.parametrize("mechanism", [Mechanism.TCX, Mechanism.CLSACT])


class Tun:
    """The far end of a tun device: what it writes comes in, what goes out it reads."""

    def __init__(self, node: Node, name: str) -> None:
        self.name = name
        try:
            # A device is made in the namespace that /dev/net/tun was opened in.
            self._fd = node.call(lambda: os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
        except OSError as e:
            pytest.skip(f"/dev/net/tun is missing: {e}")
        request = struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(self._fd, _TUNSETIFF, request)
        node.run("ip", "link", "set", name, "up")
        for network in ("10.2.0.0/24", "198.51.100.0/24"):
            node.run("ip", "route", "add", network, "dev", name, "src", POD)

    def write(self, packet: bytes) -> None:
        os.write(self._fd, packet)

    def read(self) -> bytes:
        """The next IPv4 packet that leaves; IPv6's own noise is passed over."""
        while True:
            ready, _, _ = select.select([self._fd], [], [], TIMEOUT)
            assert ready, "nothing left the device"
            packet = os.read(self._fd, 2000)
            if packet[0] >> 4 == 4:
                return packet

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def _tun(node: Node, name: str = "tun0") -> Iterator[Tun]:
    tun = Tun(node, name)
    try:
        yield tun
    finally:
        tun.close()


@pytest.fixture
def network(node: Node) -> Node:
    node.run("ip", "address", "add", f"{POD}/32", "dev", "lo")
    return node


@pytest.fixture
def tun(network: Node) -> Iterator[Tun]:
    with _tun(network) as made:
        yield made


@pytest.fixture
def mesh(datapath: Datapath) -> Datapath:
    cidrs = {pack_cidr(parse_prefix(cidr)): IpcacheValue(70000) for cidr in POD_CIDRS}
    asyncio.run(write(datapath, "ipcache_cidr", cidrs))
    return datapath


def _send(node: Node, destination: str, data: bytes) -> None:
    sender = node.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((POD, 0))
    sender.sendto(data, (destination, 9))


def _dropped(datapath: Datapath) -> tuple[int, int]:
    counters = datapath.counters()
    return counters[Reason.DROP_CLEAR_INGRESS], counters[Reason.DROP_CLEAR_EGRESS]


def _assert_protected(node: Node, tun: Tun, mesh: Datapath) -> None:
    """One packet to a pod and one to the world go out, one of each comes in; only the world's pass."""
    before = _dropped(mesh)
    _send(node, PEER, b"secret")
    _send(node, WORLD, b"public")
    assert tun.read().endswith(b"public")
    receiver = node.socket(socket.AF_INET, socket.SOCK_RAW, 253)
    for source in (PEER, WORLD):
        tun.write(ipv4(source, POD, 253))
    assert receiver.recvfrom(100)[1][0] == WORLD
    assert _dropped(mesh) == (before[0] + 1, before[1] + 1)


@by_each_mechanism
def test_strict_protects_a_device_in_both_directions_until_it_is_removed(
    network: Node, tun: Tun, mesh: Datapath, mechanism: Mechanism
) -> None:
    hooks = network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
    assert [(hook.mechanism, hook.outcome) for hook in hooks] == [(mechanism, Outcome.ATTACHED)] * 2
    _assert_protected(network, tun, mesh)
    network.call(lambda: Datapath.remove(mesh.pin_dir))
    network.call(lambda: Datapath.remove(mesh.pin_dir))
    _send(network, PEER, b"in clear")
    assert tun.read().endswith(b"in clear")
    assert "clsact" not in network.run("tc", "qdisc", "show", "dev", tun.name)
    assert not mesh.pin_dir.exists()


@by_each_mechanism
def test_packets_too_short_for_two_addresses_pass_uncounted(
    network: Node, tun: Tun, mesh: Datapath, mechanism: Mechanism
) -> None:
    network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
    for length in (1, 12, 19):
        tun.write(ipv4(PEER, POD)[:length])
    for length in (1, 20, 39):
        tun.write(ipv6(PEER6, POD6)[:length])
    assert _dropped(mesh) == (0, 0)
    tun.write(ipv4(PEER, POD)[:20])
    tun.write(ipv6(PEER6, POD6)[:40])
    assert _dropped(mesh) == (2, 0)


@by_each_mechanism
def test_attaching_again_adopts_and_new_maps_replace_in_place(
    network: Node, tun: Tun, mesh: Datapath, mechanism: Mechanism, bpf_object: Path
) -> None:
    first = network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
    again = network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
    assert [hook.outcome for hook in again] == [Outcome.ADOPTED] * 2
    assert [hook.link_id for hook in again] == [hook.link_id for hook in first]
    grown = Datapath.open(bpf_object, mesh.pin_dir, {"ipcache_cidr": 64})
    try:
        replaced = network.call(lambda: grown.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
        assert [hook.outcome for hook in replaced] == [Outcome.REPLACED] * 2
        assert [hook.link_id for hook in replaced] == [hook.link_id for hook in first]
        _assert_protected(network, tun, grown)
        asyncio.run(delete(grown, "ipcache_cidr", [pack_cidr(parse_prefix("10.2.0.0/24"))]))
        _send(network, PEER, b"no longer a pod")
        assert tun.read().endswith(b"no longer a pod")
    finally:
        grown.close()


@by_each_mechanism
def test_a_device_made_anew_under_its_old_name_is_protected_again(
    network: Node, mesh: Datapath, mechanism: Mechanism
) -> None:
    for _ in range(2):
        with _tun(network, "tun0.100") as tun:
            hooks = network.call(lambda: mesh.devices.attach("tun0.100", UNDERLAY_PROGRAMS, mechanism))
            assert [hook.outcome for hook in hooks] == [Outcome.ATTACHED] * 2
            _assert_protected(network, tun, mesh)


def test_changing_the_mechanism_leaves_no_double(network: Node, tun: Tun, mesh: Datapath) -> None:
    for mechanism in (Mechanism.TCX, Mechanism.CLSACT, Mechanism.TCX):
        network.call(lambda chosen=mechanism: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, chosen))  # type: ignore[misc]
        has_clsact = "clsact" in network.run("tc", "qdisc", "show", "dev", tun.name)
        has_links = bool(list((mesh.pin_dir / "links").iterdir()))
        assert (has_clsact, has_links) == (mechanism is Mechanism.CLSACT, mechanism is Mechanism.TCX)
        _assert_protected(network, tun, mesh)


def test_only_the_first_attaching_looks_for_filters_of_a_kernel_without_tcx(
    network: Node, tun: Tun, mesh: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = list[str]()

    class Counting(ThreadPoolExecutor):
        def __init__(self, **given: int) -> None:
            looked.append(tun.name)
            super().__init__(**given)

    monkeypatch.setattr(clsact, "ThreadPoolExecutor", Counting)
    for _ in range(3):
        network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, Mechanism.TCX))
    assert looked == [tun.name]


def test_the_kernel_chooses_tcx_where_it_has_it(network: Node, tun: Tun, mesh: Datapath) -> None:
    hooks = network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS))
    assert {hook.mechanism for hook in hooks} == {Mechanism.TCX}


def test_a_kernel_without_tcx_gets_filters(
    network: Node, tun: Tun, mesh: Datapath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "has_tcx", lambda: False)
    hooks = network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS))
    assert {hook.mechanism for hook in hooks} == {Mechanism.CLSACT}
    _assert_protected(network, tun, mesh)


def test_the_next_tcx_program_decides_what_strict_lets_pass(network: Node, tun: Tun, mesh: Datapath) -> None:
    program = program_load(ProgramType.SCHED_CLS, _DROP_ALL)
    index = network.call(lambda: socket.if_nametoindex(tun.name))
    other = network.call(lambda: link_create(program, index, AttachType.TCX_EGRESS))
    try:
        network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS))
        _send(network, PEER, b"secret")  # strict runs first, although it came second
        assert _dropped(mesh) == (0, 1)
        _send(network, WORLD, b"dropped by the other program")
    finally:
        os.close(other)
        os.close(program)
    _send(network, WORLD, b"public")
    assert tun.read().endswith(b"public")


@pytest.fixture
def drop_all() -> Iterator[int]:
    program = program_load(ProgramType.SCHED_CLS, _DROP_ALL)
    yield program
    os.close(program)


@by_each_mechanism
@pytest.mark.parametrize("first", [True, False], ids=["before strict mode", "after strict mode"])
@pytest.mark.parametrize("later", [True, False], ids=["added", "from the start"])
def test_of_several_programs_on_one_hook_the_first_of_the_table_runs_first(
    network: Node, tun: Tun, mesh: Datapath, drop_all: int, mechanism: Mechanism, first: bool, later: bool
) -> None:
    own = {program.name: mesh.program_fd(program.name) for program in UNDERLAY_PROGRAMS}
    another = Program("drop_all", Kind.UNDERLAY, AttachType.TCX_EGRESS)
    table = (another, *UNDERLAY_PROGRAMS) if first else (*UNDERLAY_PROGRAMS, another)
    # Its descriptors stay those of others.
    grown = Datapath(mesh.pin_dir, mesh.maps, own | {"drop_all": drop_all}, table)
    if later:
        network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism))
    for _ in range(2):
        hooks = network.call(lambda: grown.devices.attach(tun.name, table, mechanism))
        assert [hook.name for hook in hooks] == [program.name for program in table]
    assert {hook.outcome for hook in hooks} == {Outcome.ADOPTED}
    for _ in range(2):
        _send(network, PEER, b"secret")
    assert _dropped(mesh) == (0, 0 if first else 2)
    _send(network, WORLD, b"dropped by the other program")
    tun.write(ipv4(PEER, POD, 253))
    assert _dropped(mesh) == (1, 0 if first else 2)
    network.call(lambda: Datapath.remove(mesh.pin_dir))
    _send(network, WORLD, b"public")
    assert tun.read().endswith(b"public")


def test_a_filter_of_somebody_else_decides_next_and_stays(network: Node, tun: Tun, mesh: Datapath, bpffs: Path) -> None:
    pin = bpffs / "somebody_else"
    program = program_load(ProgramType.SCHED_CLS, _DROP_ALL)
    object_pin(program, pin)
    os.close(program)
    try:
        network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, Mechanism.CLSACT))
        place = ("dev", tun.name, "egress", "prio", "2", "protocol", "all")
        network.run("tc", "filter", "add", *place, "bpf", "direct-action", "object-pinned", str(pin))
    finally:
        pin.unlink()
    _send(network, WORLD, b"dropped by the other filter")
    network.call(lambda: Datapath.remove(mesh.pin_dir))
    assert "somebody_else" in network.run("tc", "filter", "show", "dev", tun.name, "egress")
    network.run("tc", "filter", "del", *place)
    _send(network, WORLD, b"public")
    assert tun.read().endswith(b"public")


@by_each_mechanism
def test_attaching_works_inside_an_event_loop(network: Node, tun: Tun, mesh: Datapath, mechanism: Mechanism) -> None:
    async def attach() -> None:
        mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, mechanism)

    network.call(lambda: asyncio.run(attach()))
    _assert_protected(network, tun, mesh)


def test_removing_everything_leaves_the_device_as_it_was(network: Node, tun: Tun, mesh: Datapath) -> None:
    network.call(lambda: mesh.devices.attach(tun.name, UNDERLAY_PROGRAMS, Mechanism.CLSACT))
    network.call(lambda: Datapath.remove(mesh.pin_dir))
    assert "clsact" not in network.run("tc", "qdisc", "show", "dev", tun.name)
    assert not mesh.pin_dir.exists()


def test_an_unknown_device_is_refused_by_name(network: Node, mesh: Datapath) -> None:
    with pytest.raises(Invalid, match="nosuch0"):
        network.call(lambda: mesh.devices.attach("nosuch0", UNDERLAY_PROGRAMS))
