"""The datapath outlives its loader: killed and started again, resized, left by another version, removed."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from bpf_maps import write
from bpf_node import TIMEOUT, EchoServer, Node

from agent.bpf import probe
from agent.bpf.hooks import SOCKET_PROGRAMS, UNDERLAY_PROGRAMS
from agent.bpf.layouts import (
    NO_ADDRESS,
    BackendValue,
    CtEntry,
    CtKey,
    GroupsKey,
    IpcacheValue,
    LbGroup,
    Number,
    Reason,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    pack,
    pack_cidr,
)
from agent.bpf.links import Mechanism, Outcome, Point, attach_beside
from agent.bpf.loader import Datapath
from agent.bpf.programs import link_info
from agent.bpf.syscalls import NO_PREALLOC, AttachType, MapType, map_create, map_update, object_pin
from agent.domains.tables import open_map
from agent.older import layout_v1
from agent.outdated import Outdated
from clustermesh.address import from_int, parse, parse_prefix
from clustermesh.errors import Invalid, Refused

pytestmark = pytest.mark.root

VIP = ("10.96.0.10", 80)
_LOADER = """
import sys, time
from pathlib import Path
from agent.bpf.loader import Datapath
datapath = Datapath.open(Path(sys.argv[1]), Path(sys.argv[2]))
datapath.attach_sockets(Path(sys.argv[3]))
print(*(hook.link_id for hook in datapath.hooks.values()), flush=True)
time.sleep(600)
"""


@contextmanager
def _opened(bpf_object: Path, pin_dir: Path, cgroup: Path | None, **sizes: int) -> Iterator[Datapath]:
    """Attached at once where a cgroup is given."""
    with closing(Datapath.open(bpf_object, pin_dir, sizes)) as datapath:
        if cgroup is not None:
            datapath.attach_sockets(cgroup)
        yield datapath


def _fill(datapath: Datapath, server: EchoServer, protocol: int = 6) -> None:
    """One service with one backend, and 100 addresses."""
    backend = BackendValue(parse(server.address[0]), server.port, protocol)

    async def fill() -> None:
        await write(datapath, "lb_backends", {Number(1): backend})
        await write(datapath, "lb_slots", {SlotsKey(1): [Number(1)] * 16})
        await write(datapath, "lb_groups", {GroupsKey(1): [LbGroup(1, 1, 1), *[LbGroup(1)] * 7]})
        await write(datapath, "lb_services", {_key(protocol): ServiceValue(1, 1, groups=1)})
        await write(datapath, "ipcache", {from_int(n): IpcacheValue(n) for n in range(100)})

    asyncio.run(fill())


def _key(protocol: int) -> ServiceKey:
    return ServiceKey(parse(VIP[0]), VIP[1], protocol)


def _content(datapath: Datapath) -> list[object]:
    names = ("lb_services", "lb_groups", "lb_slots", "lb_backends", "ipcache", "lb_reverse_sk")
    return [asyncio.run(open_map(datapath, name).dump()) for name in names]


def _outcomes(datapath: Datapath) -> set[Outcome]:
    return {hook.outcome for hook in datapath.hooks.values()}


def _links(datapath: Datapath) -> dict[str, int]:
    return {name: hook.link_id for name, hook in datapath.hooks.items()}


@contextmanager
def _traffic(node: Node) -> Iterator[list[str]]:
    """Connects to the service again and again, and yields what went wrong; fails where nothing went at all."""
    wrong: list[str] = []
    served = threading.Semaphore(0)
    done = threading.Event()

    def connect() -> None:
        while not done.is_set():
            try:
                with closing(node.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
                    client.connect(VIP)
                    if client.getpeername() != VIP:
                        wrong.append(f"the peer is {client.getpeername()}")
                served.release()
            except OSError as e:
                wrong.append(str(e))
                served.release()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        assert served.acquire(timeout=TIMEOUT)
        yield wrong
        for _ in range(3):
            assert served.acquire(timeout=TIMEOUT)
    finally:
        done.set()
        thread.join(TIMEOUT)


def test_a_killed_loader_leaves_everything_and_the_next_one_adopts_it(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    command = [sys.executable, "-c", _LOADER, str(bpf_object), str(pin_dir), str(cgroup)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loader:
        assert loader.stdout is not None
        links = [int(number) for number in loader.stdout.readline().split()]
        loader.kill()
    assert len(links) == len(SOCKET_PROGRAMS)
    server = node.echo(socket.SOCK_STREAM)
    with _opened(bpf_object, pin_dir, cgroup) as first:
        assert _outcomes(first) == {Outcome.ADOPTED}
        assert list(_links(first).values()) == links
        _fill(first, server)
        content, ids = _content(first), first.map_ids
    with _traffic(node) as wrong:
        for _ in range(5):
            with _opened(bpf_object, pin_dir, cgroup) as again:
                assert _outcomes(again) == {Outcome.ADOPTED}
                assert again.map_ids == ids
                assert _content(again)[:5] == content[:5]
    assert wrong == []


def test_no_connect_fails_while_programs_are_exchanged_and_maps_resized(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    server = node.echo(socket.SOCK_STREAM)
    with _opened(bpf_object, pin_dir, cgroup) as first:
        _fill(first, server)
        links, content, size = _links(first), _content(first), first.sizes["lb_services"]
    with _traffic(node) as wrong:
        for number in range(1, 9):
            with _opened(bpf_object, pin_dir, cgroup, lb_services=size + number) as again:
                assert again.hooks["connect4"].outcome is Outcome.REPLACED
                assert again.sizes["lb_services"] == size + number
                assert _links(again) == links
                assert _content(again)[:5] == content[:5]
    assert wrong == []
    with _opened(bpf_object, pin_dir, cgroup, lb_services=size) as last:
        asyncio.run(write(last, "lb_services", {_key(6): ServiceValue(1)}))
        with pytest.raises(ConnectionRefusedError):  # the new programs read the new maps
            node.socket(socket.AF_INET, socket.SOCK_STREAM).connect(VIP)


def test_open_sockets_keep_their_service_through_a_resize(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    server = node.echo(socket.SOCK_STREAM)
    with _opened(bpf_object, pin_dir, cgroup) as first:
        _fill(first, server)
        clients = [node.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(20)]
        for client in clients[:10]:
            client.connect(VIP)
        deferred = Datapath.open(bpf_object, pin_dir, {"lb_reverse_sk": 512})
        for client in clients[10:]:
            client.connect(VIP)  # the old programs still run, and write to the old map
    with closing(deferred):
        deferred.attach_sockets(cgroup)
        assert {client.getpeername() for client in clients} == {VIP}


def test_connections_of_packets_that_begin_while_conntrack_is_resized_are_known_to_the_next_programs(
    cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    def key(number: int) -> CtKey:
        return CtKey(from_int(number), from_int(1), 40_000, 80, 6)

    def entry(service_id: int) -> CtEntry:
        return CtEntry(from_int(1), from_int(2), 40_000, 8080, service_id)

    with _opened(bpf_object, pin_dir, cgroup) as first:
        asyncio.run(write(first, "ct", {key(1): entry(1), key(2): entry(1)}))
        with closing(Datapath.open(bpf_object, pin_dir, {"ct": 4096})) as following:
            asyncio.run(write(first, "ct", {key(3): entry(1)}))  # the old programs still run, at devices, too
            following.attach_sockets(cgroup)
            asyncio.run(write(first, "ct", {key(2): entry(1), key(4): entry(1)}))
            asyncio.run(write(following, "ct", {key(2): entry(2)}))
            assert following.program_fd("from_pod")
            held = asyncio.run(open_map(following, "ct").dump())
    assert held == {pack(key(n)): pack(entry(2 if n == 2 else 1)) for n in (1, 2, 3, 4)}


def test_counters_survive_a_restart(node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path) -> None:
    server = node.echo(socket.SOCK_STREAM)
    with _opened(bpf_object, pin_dir, cgroup) as first:
        _fill(first, server)
        node.socket(socket.AF_INET, socket.SOCK_STREAM).connect(VIP)
    with _opened(bpf_object, pin_dir, cgroup) as again:
        assert again.counters()[Reason.CONNECT] == 1


def test_a_map_cannot_shrink_below_what_it_holds(bpf_object: Path, pin_dir: Path) -> None:
    with _opened(bpf_object, pin_dir, None) as first:
        asyncio.run(write(first, "ipcache", {from_int(n): IpcacheValue(n) for n in range(100)}))
        ids, content = first.map_ids, _content(first)
    with pytest.raises(Refused, match="ipcache holds more entries"):
        Datapath.open(bpf_object, pin_dir, {"ipcache": 99})
    with _opened(bpf_object, pin_dir, None) as again:
        assert again.map_ids == ids
        assert _content(again) == content
    with _opened(bpf_object, pin_dir, None, ipcache=100) as smaller:
        assert _content(smaller) == content


def test_what_programs_fill_has_the_memory_it_was_given_and_keeps_what_it_held(bpf_object: Path, pin_dir: Path) -> None:
    held = {ReverseKey(number, NO_ADDRESS, 80): ReverseValue(NO_ADDRESS, number) for number in range(1000)}
    with _opened(bpf_object, pin_dir, None) as first:
        asyncio.run(write(first, "lb_reverse_sk", held))
        usual = dict(first.sizes)
    for memory, ipcache in ((1 << 20, 600_000), (1 << 25, 700_000)):
        again = Datapath.open(bpf_object, pin_dir, {"ipcache": ipcache}, memory)
        changed = {name: size for name, size in again.sizes.items() if size != usual[name]}
        assert {"lb_reverse_sk", "ipcache"} <= changed.keys()
        assert changed["ipcache"] == ipcache
        kept = asyncio.run(open_map(again, "lb_reverse_sk").dump())
        again.close()
        assert kept == {pack(key): pack(value) for key, value in held.items()}


def test_a_map_of_another_layout_is_refused_and_left_alone(bpf_object: Path, pin_dir: Path) -> None:
    (pin_dir / "v2").mkdir(parents=True)
    foreign = map_create(MapType.HASH, 4, 16, 8, NO_PREALLOC)
    object_pin(foreign, pin_dir / "v2" / "ipcache")
    os.close(foreign)
    with pytest.raises(Refused, match="another layout"):
        Datapath.open(bpf_object, pin_dir)
    assert [path.name for path in (pin_dir / "v2").iterdir()] == ["ipcache"]


def test_the_maps_of_an_older_version_go_when_the_new_programs_run(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    (pin_dir / "v1").mkdir(parents=True)
    old = map_create(MapType.HASH, 4, 16, 8, NO_PREALLOC)
    object_pin(old, pin_dir / "v1" / "ipcache")
    os.close(old)
    with _opened(bpf_object, pin_dir, None) as datapath:
        assert (pin_dir / "v1").exists()
        datapath.attach_sockets(cgroup)
        assert not (pin_dir / "v1").exists()


def test_another_cgroup_takes_the_place_of_the_first(node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path) -> None:
    inner = cgroup / "inner"
    inner.mkdir()
    try:
        with _opened(bpf_object, pin_dir, inner) as first:
            inner_links = _links(first)
        with _opened(bpf_object, pin_dir, cgroup) as second:
            assert _outcomes(second) == {Outcome.ATTACHED}
            assert not set(_links(second).values()) & set(inner_links.values())
            _fill(second, node.echo(socket.SOCK_STREAM))
        with _traffic(node) as wrong:
            pass
        assert wrong == []
    finally:
        inner.rmdir()


def test_a_cgroup_deleted_under_its_links_is_attached_to_again(cgroup: Path, bpf_object: Path, pin_dir: Path) -> None:
    inner = cgroup / "inner"
    for _ in range(2):
        inner.mkdir()
        with _opened(bpf_object, pin_dir, inner) as datapath:
            assert _outcomes(datapath) == {Outcome.ATTACHED}
        inner.rmdir()


def test_programs_that_only_another_version_has_are_taken_away(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    with ExitStack() as closing, _opened(bpf_object, pin_dir, None) as newer:
        opened = os.open(cgroup, os.O_RDONLY)
        closing.callback(os.close, opened)
        device = node.call(lambda: socket.if_nametoindex("lo"))
        sockets = Point(opened, 0, AttachType.CGROUP_INET4_CONNECT)
        packets = Point(device, device, AttachType.TCX_INGRESS)
        surplus = {
            "connect7": attach_beside(newer.program_fd("connect4"), sockets),
            "service_ingress_lo": node.call(lambda: attach_beside(newer.program_fd("strict_ingress"), packets)),
        }
        for name, link in surplus.items():
            closing.callback(os.close, link)
            object_pin(link, pin_dir / "links" / name)
        with _opened(bpf_object, pin_dir, None) as older:
            node.call(lambda: older.devices.attach("lo", UNDERLAY_PROGRAMS, Mechanism.TCX))
            older.attach_sockets(cgroup)
            assert {pin.name for pin in (pin_dir / "links").iterdir()} == {*older.hooks, *older.devices.hooks}
        assert [link_info(link).target for link in surplus.values()] == [0, 0]


def test_removing_leaves_sockets_without_services_and_no_pin(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    with _opened(bpf_object, pin_dir, cgroup) as datapath:
        node.call(lambda: datapath.devices.attach("lo", UNDERLAY_PROGRAMS, Mechanism.TCX))
        asyncio.run(write(datapath, "lb_services", {_key(17): ServiceValue(1)}))
        node.run("ip", "route", "add", "default", "dev", "lo")
        with pytest.raises(ConnectionRefusedError):
            node.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(VIP)
        Datapath.remove(pin_dir)
        node.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(VIP)
        assert not pin_dir.exists()
        Datapath.remove(pin_dir)


def test_a_cgroup_that_is_not_there_is_refused_and_no_descriptor_stays_open(bpf_object: Path, pin_dir: Path) -> None:
    Datapath.open(bpf_object, pin_dir).close()
    gc.collect()  # what others left open may be closed at any moment
    before = os.listdir("/proc/self/fd")
    for sizes in ({}, {"ipcache": 100}):
        with pytest.raises(Refused, match="nosuch"), _opened(bpf_object, pin_dir, Path("/nosuch"), **sizes):
            pass
    assert os.listdir("/proc/self/fd") == before


def test_a_place_outside_any_bpf_filesystem_is_refused(bpf_object: Path, bpffs: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no bpf filesystem"):
        Datapath.open(bpf_object, tmp_path / "pins")


def test_a_place_with_a_dot_in_its_name_is_refused(bpf_object: Path, bpffs: Path) -> None:
    with pytest.raises(Refused, match="no dots"):
        Datapath.open(bpf_object, bpffs / "cluster.mesh")


def test_a_pin_left_by_an_attempt_that_was_cut_off_goes(bpf_object: Path, pin_dir: Path) -> None:
    Datapath.open(bpf_object, pin_dir).close()
    left = map_create(MapType.HASH, 4, 16, 8, NO_PREALLOC)
    object_pin(left, pin_dir / "v2" / "ipcache_new")
    os.close(left)
    with _opened(bpf_object, pin_dir, None) as datapath:
        assert {path.name for path in (pin_dir / "v2").iterdir()} == set(datapath.maps)


def test_a_kernel_that_cannot_name_the_error_refuses_with_eperm(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "has_set_retval", lambda: False)
    with _opened(bpf_object, pin_dir, cgroup) as datapath:
        asyncio.run(write(datapath, "lb_services", {_key(6): ServiceValue(1)}))
        with pytest.raises(PermissionError):
            node.socket(socket.AF_INET, socket.SOCK_STREAM).connect(VIP)


def test_an_unknown_map_has_no_size(bpf_object: Path, pin_dir: Path) -> None:
    with pytest.raises(Invalid, match="nosuchmap"):
        Datapath.open(bpf_object, pin_dir, {"nosuchmap": 1})


def test_a_program_the_kernel_rejects_carries_the_verifier_s_reason(pin_dir: Path, tmp_path: Path) -> None:
    """The same programs with one read too many: strict mode looks at a field behind the packet's header."""
    sources = Path(__file__).parents[2] / "bpf"
    copy = tmp_path / "bpf"
    subprocess.run(["cp", "-r", str(sources), str(copy)], check=True, timeout=60)
    text = (copy / "strict.h").read_text()
    broken = text.replace("struct iphdr ip;", "struct iphdr ip; if (*(__u8 *)(long)skb->data == 1) return NEXT;")
    assert broken != text
    (copy / "strict.h").write_text(broken)
    subprocess.run(["make", "-s", "-C", str(copy)], check=True, timeout=60)
    with pytest.raises(Refused, match=r"invalid access to packet|invalid mem access"):
        Datapath.open(tmp_path / "build" / "clustermesh.bpf.o", pin_dir)
    assert list((pin_dir / "v2").iterdir()) == []


def test_what_the_layout_before_knew_is_there_before_the_new_programs_run(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    """Who is behind an address from the start, which service a socket meant from the exchange of the programs on."""
    server = node.echo(socket.SOCK_STREAM)
    client = node.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.connect(server.address)
    cookie = struct.unpack("=Q", client.getsockopt(socket.SOL_SOCKET, 57, 8))[0]  # SO_COOKIE
    (pin_dir / "v1").mkdir(parents=True)
    for name, shape in layout_v1.SHAPES.items():
        fd = map_create(MapType(shape.type), shape.key_size, shape.value_size, shape.max_entries, shape.flags)
        object_pin(fd, pin_dir / "v1" / name)
        if name == "lb4_reverse_sk":
            key = struct.pack("=Q4sH2x", cookie, socket.inet_aton(server.address[0]), socket.htons(server.port))
            map_update(fd, key, struct.pack("=4sH2x", socket.inet_aton(VIP[0]), socket.htons(VIP[1])))
        if name == "ipcache4":
            map_update(fd, bytes([10, 1, 0, 5]), struct.pack("=I4sB3x", 70000, bytes([192, 0, 2, 1]), 255))
        if name == "ipcache4_cidr":
            map_update(fd, struct.pack("=I4s", 24, bytes([10, 1, 0, 0])), struct.pack("=I4sB3x", 2, bytes(4), 255))
        os.close(fd)
    with _opened(bpf_object, pin_dir, None) as datapath:
        assert datapath.has_predecessor
        address, cidr = parse("10.1.0.5"), pack_cidr(parse_prefix("10.1.0.0/24"))
        assert asyncio.run(open_map(datapath, "ipcache").dump()) == {
            address: pack(IpcacheValue(70000, parse("192.0.2.1"), 255))
        }
        assert asyncio.run(open_map(datapath, "ipcache_cidr").dump()) == {cidr: pack(IpcacheValue(2, key=255))}
        datapath.attach_sockets(cgroup)
        assert not datapath.has_predecessor
        assert client.getpeername() == VIP


def test_readers_of_two_generations_side_by_side_show_what_either_has_written_down(
    node: Node, cgroup: Path, bpf_object: Path, pin_dir: Path
) -> None:
    """The map of what sockets meant moves again and again while datagrams are asked and answered."""
    server = node.echo(socket.SOCK_DGRAM)
    with _opened(bpf_object, pin_dir, cgroup) as first:
        _fill(first, server, 17)
        size = first.sizes["lb_reverse_sk"]
    wrong: list[object] = []
    answered, done = threading.Semaphore(0), threading.Event()

    def ask() -> None:
        while not done.is_set():
            with closing(node.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
                client.sendto(b"hello", VIP)
                peer = client.recvfrom(100)[1]
                if peer != VIP:
                    wrong.append(peer)
            answered.release()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(1, 9):
            with _opened(bpf_object, pin_dir, cgroup, lb_reverse_sk=size + 64 * number):
                assert answered.acquire(timeout=TIMEOUT)
    finally:
        done.set()
        asking.join(TIMEOUT)
    assert wrong == []


def test_that_a_state_is_old_is_noted_beside_the_maps_and_goes_with_them(bpf_object: Path, pin_dir: Path) -> None:
    outdated = Outdated(pin_dir / "outdated")
    for _ in range(2):
        with _opened(bpf_object, pin_dir, None):
            outdated.add("beta")
            outdated.add("gamma")
            outdated.discard("gamma")
            outdated.discard("gamma")
        assert outdated.clusters() == {"beta"}
    Datapath.remove(pin_dir)
    assert outdated.clusters() == set()
