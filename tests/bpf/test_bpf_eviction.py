"""Sockets whose backend went: found in every network namespace, ended, and nobody else. By programs and by netlink.

              lb_meant
namespace 1: client ──> server    What a client means is written by the test, as the socket programs do.
namespace 2: client ──> server
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from bpf_node import EchoServer, Node

from agent.bpf.layouts import MEANT_SETS, MEANT_WAYS, MeantValue, Reason, pack
from agent.bpf.loader import Datapath
from agent.bpf.syscalls import map_lookup, map_update
from agent.conntrack.tracked import Tracked
from agent.domains.tables import open_map
from agent.eviction.copies import cookie_of
from agent.eviction.diag import Diag, locate
from agent.eviction.evictor import Evicted, Evictor, Outcome, open_evictor
from agent.eviction.iterators import Ender
from agent.eviction.meaning import REMEMBERED, Meant, Remembered, meaning_of
from agent.eviction.sweeper import Sweeper
from agent.plan.services import ServicePlanner, ServiceTrackers
from clustermesh.address import parse
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler, Tracker

pytestmark = pytest.mark.root

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOL = {TCP: 6, UDP: 17}
VIP = "10.96.0.10"
V4, V6, MAPPED = "127.0.0.1", "::1", "::ffff:127.0.0.1"
EVERY = [(kind, host) for kind in (TCP, UDP) for host in (V4, V6, MAPPED)]


class Place:
    """A namespace with a server of each kind, and clients there that mean services."""

    def __init__(self, node: Node, datapath: Datapath) -> None:
        self.node, self._meant = node, datapath.maps["lb_meant"]
        self._servers: dict[tuple[int, int], socket.socket] = {}

    def server(self, family: int, kind: int) -> socket.socket:
        if (family, kind) not in self._servers:
            made = self._servers[family, kind] = self.node.socket(family, kind)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind(("" if family == socket.AF_INET else "::", 0))
            if kind == TCP:
                made.listen(4096)
        return self._servers[family, kind]

    def connected(self, kind: int, host: str = V4) -> socket.socket:
        """To the server itself."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = self.node.socket(family, kind)
        made.connect((host, self.server(family, kind).getsockname()[1]))
        return made

    def client(self, kind: int, backend_id: int, host: str = V4, vip: str = VIP) -> socket.socket:
        """Connected as if `vip` had been called and backend `backend_id` answered."""
        made = self.connected(kind, host)
        where, port = made.getpeername()[:2]
        backend = parse(where.removeprefix("::ffff:"))
        mean(self._meant, made, MeantValue(parse(vip), backend, 80, port, backend_id, PROTOCOL[kind]))
        return made

    def mean_another(self, made: socket.socket, backend_id: int) -> None:
        value = meaning_of(self._meant, cookie_of(made))
        assert value is not None
        mean(self._meant, made, value._replace(backend_id=backend_id))


def mean(meant: int, made: socket.socket, value: MeantValue) -> None:
    """As connect does, but for the races."""
    cookie, size = cookie_of(made), len(pack(value))
    key = (cookie % MEANT_SETS).to_bytes(4, sys.byteorder)
    found = bytearray(map_lookup(meant, key, MEANT_WAYS * (8 + size)) or b"")
    cookies = memoryview(found)[: 8 * MEANT_WAYS].cast("Q")
    way = next(way for way in range(MEANT_WAYS) if cookies[way] in (0, cookie))
    cookies[way] = cookie
    begin = 8 * MEANT_WAYS + way * size
    found[begin : begin + size] = pack(value)  # type: ignore[index]
    map_update(meant, key, bytes(found))


def is_ended(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionAbortedError:
        return True


def meant_by(found: Meant, *backend_ids: int) -> Meant:
    return {value: each for value, each in found.items() if value.backend_id in backend_ids}


def count(found: Meant) -> int:
    return sum(map(len, found.values()))


def sweeper_of(datapath: Datapath) -> Sweeper:
    return Sweeper(lambda: datapath.program_fd("sweep_meant"))


@pytest.fixture
def place(datapath: Datapath) -> Iterator[Place]:
    with Node() as node:
        yield Place(node, datapath)


@pytest.fixture(params=["programs", "netlink"])
def evictor(request: pytest.FixtureRequest, bpf_object: Path, datapath: Datapath) -> Iterator[Evictor]:
    """Each way of ending."""
    ending = Diag() if request.param == "netlink" else Ender(bpf_object.parent, datapath.maps)
    remembered = Remembered(datapath.maps["lb_reverse_sk"], datapath.maps["metrics"])
    tracked = Tracked(datapath.maps["ct"])
    with closing(Evictor(ending, datapath.maps["lb_meant"], remembered, tracked, sweeper_of(datapath))) as made:
        yield made


def test_what_means_a_backend_that_went_is_found_and_ended_and_nothing_else(place: Place, evictor: Evictor) -> None:
    going = {(kind, host): place.client(kind, 7, host) for kind, host in EVERY}
    staying = [place.client(kind, 8, host) for kind, host in EVERY]
    direct = [place.connected(kind, host) for kind, host in EVERY]
    found = evictor.find()
    assert count(found) == 2 * len(EVERY)
    assert {value.protocol for value in found} == {6, 17}
    gone = meant_by(found, 7)
    assert sorted(itertools.chain(*gone.values())) == sorted(map(cookie_of, going.values()))
    for sockets in place.node.call(lambda: locate({cookie: v for v, each in gone.items() for cookie in each})).values():
        for each in sockets:
            client = next(made for made in going.values() if os.fstat(made.fileno()).st_ino == each.inode)
            host, port = client.getsockname()[:2]
            assert (each.source, each.source_port) == (parse(host.removeprefix("::ffff:")), port)
            assert (each.cookie, each.family) == (cookie_of(client), client.family)
    assert evictor.evict(gone) == Evicted({Outcome.RESET: len(EVERY)})
    assert [case for case, client in going.items() if not is_ended(client)] == []
    assert not any(map(is_ended, [*staying, *direct]))
    assert count(meant_by(evictor.find(), 8)) == len(EVERY)
    assert evictor.evict(meant_by(evictor.find(), 7)) == Evicted({})


def test_a_server_hears_of_the_reset_at_once(place: Place, evictor: Evictor) -> None:
    client = place.client(TCP, 7)
    with closing(place.server(socket.AF_INET, TCP).accept()[0]) as accepted:
        evictor.evict(evictor.find())
        assert is_ended(client)
        accepted.settimeout(5)
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)


def test_what_is_connected_to_somewhere_else_by_now_means_nothing(place: Place, evictor: Evictor) -> None:
    moved = place.client(UDP, 7)
    elsewhere = place.node.echo(UDP)
    moved.connect(elsewhere.address)
    left = place.client(UDP, 7)
    left.connect(("", 0))  # AF_UNSPEC, as Python says it for IPv4
    assert evictor.evict(evictor.find()) == Evicted({})
    assert moved.send(b"hello") == 5


def test_the_socket_of_a_found_one_that_means_another_backend_by_now_is_left(
    place: Place, bpf_object: Path, datapath: Datapath
) -> None:
    with closing(open_evictor(datapath.maps, sweeper_of(datapath), bpf_object.parent)) as evictor:
        client = place.client(TCP, 7)
        found = evictor.find()
        place.mean_another(client, 8)
        assert evictor.evict(found) == Evicted({Outcome.FAILED: 1})
        assert not is_ended(client)


def test_sockets_in_many_namespaces_are_ended(evictor: Evictor, datapath: Datapath) -> None:
    with ExitStack() as stack:
        places = [Place(stack.enter_context(Node()), datapath) for _ in range(4)]
        clients = [each.client(kind, 7) for each in places for kind in (TCP, UDP) for _ in range(50)]
        found = evictor.find()
        assert count(found) == len(clients)
        assert evictor.evict(found) == Evicted({Outcome.RESET: len(clients)})
        assert all(map(is_ended, clients))


def test_a_namespace_whose_last_process_ended_is_no_failure(evictor: Evictor, datapath: Datapath) -> None:
    with Node() as node:
        client = Place(node, datapath).client(TCP, 7)
        found = evictor.find()
        assert count(found) == 1
        client.detach()
    assert evictor.evict(found).error == ""


def test_a_file_where_no_namespace_is_mounted_is_no_failure(place: Place, evictor: Evictor) -> None:
    """As a CNI plugin that was killed leaves one."""
    folder = Path("/run/netns")
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="test-stale-"):
        client = place.client(UDP, 7)
        found = evictor.find()
        client.close()
        assert evictor.evict(found) == Evicted({}), "it is looked for in all namespaces"


def test_without_compiled_programs_netlink_does_it_all(place: Place, datapath: Datapath, tmp_path: Path) -> None:
    with closing(open_evictor(datapath.maps, sweeper_of(datapath), tmp_path)) as evictor:
        client = place.client(TCP, 7)
        assert evictor.evict(evictor.find()) == Evicted({Outcome.RESET: 1})
        assert is_ended(client)


class Web:
    """A service at VIP whose backends are echo servers of one namespace, kept by a real planner."""

    def __init__(self, datapath: Datapath, protocol: Protocol) -> None:
        tables = ServiceTrackers(*(Tracker(n, open_map(datapath, f"lb_{n}")) for n in ServiceTrackers._fields))
        self._planner, self._reconciler = ServicePlanner(tables), Reconciler(*tables)
        self._reconciler.may_delete, self._protocol = True, protocol

    async def serve(self, *servers: EchoServer, vip: str = VIP) -> None:
        alike = tuple(Backends((parse(each.address[0]),), each.port) for each in servers)
        groups = (Group(1, len(servers), alike),) if servers else ()
        self._planner.update(("n", vip), [ServiceEntry(Frontend(parse(vip), 80, self._protocol), groups)])
        await self._reconciler.flush()

    async def remove(self, vip: str) -> None:
        self._planner.update(("n", vip), [])
        await self._reconciler.flush()


def answerer(client: socket.socket) -> int:
    client.settimeout(5)
    client.send(b"hello")
    return int(client.recv(100).partition(b":")[0])


@pytest.mark.parametrize("host", [V4, V6, MAPPED])
async def test_connected_udp_sockets_move_to_another_backend_and_are_ended_where_there_is_none(
    datapath: Datapath, cgroup: Path, node: Node, bpf_object: Path, host: str
) -> None:
    datapath.attach_sockets(cgroup)
    home, vip = (V6, "fd96::10") if host == V6 else (V4, VIP)
    family = socket.AF_INET if host == V4 else socket.AF_INET6
    web, going, other = Web(datapath, Protocol.UDP), node.echo(UDP, home), node.echo(UDP, home)
    await web.serve(going, vip=vip)
    clients = [node.socket(family, UDP) for _ in range(5)]
    called = (f"::ffff:{vip}" if host == MAPPED else vip, 80)
    for client in clients:
        client.connect(called)
        assert answerer(client) == going.port
    with closing(open_evictor(datapath.maps, sweeper_of(datapath), bpf_object.parent)) as evictor:
        found = evictor.find()
        assert count(found) == len(clients)
        await web.serve(other, vip=vip)
        assert evictor.evict(found) == Evicted({Outcome.MOVED: len(clients)})
        assert [answerer(client) for client in clients] == [other.port] * len(clients)
        assert {client.getpeername()[:2] for client in clients} == {called}
        found = evictor.find()
        assert {value.backend_port for value in found} == {other.port}
        await web.serve(vip=vip)
        assert evictor.evict(found) == Evicted({Outcome.RESET: len(clients)})
        assert all(map(is_ended, clients))


async def test_connected_udp_sockets_of_a_service_that_went_are_ended(
    datapath: Datapath, cgroup: Path, node: Node, evictor: Evictor
) -> None:
    datapath.attach_sockets(cgroup)
    web, server, client = Web(datapath, Protocol.UDP), node.echo(UDP), node.socket(socket.AF_INET, UDP)
    await web.serve(server)
    client.connect((VIP, 80))
    assert answerer(client) == server.port
    await web.remove(VIP)
    assert evictor.evict(evictor.find(), may_move=False) == Evicted({Outcome.RESET: 1})
    assert is_ended(client)


async def test_a_connection_through_a_service_is_found_by_what_the_programs_wrote(
    datapath: Datapath, cgroup: Path, node: Node, evictor: Evictor
) -> None:
    datapath.attach_sockets(cgroup)
    web, server = Web(datapath, Protocol.TCP), node.echo(TCP)
    await web.serve(server)
    clients = [node.socket(family, TCP) for family in (socket.AF_INET, socket.AF_INET6)]
    for client in clients:
        client.connect((VIP if client.family == socket.AF_INET else f"::ffff:{VIP}", 80))
    found = evictor.find()
    assert evictor.evict(found) == Evicted({Outcome.RESET: len(clients)})
    assert all(map(is_ended, clients))


def fill(meant: int, *sockets: socket.socket) -> None:
    """No room for any of these in lb_meant."""
    size = MEANT_WAYS * (8 + len(pack(MeantValue(parse(VIP), parse(VIP), 0, 0, 0, 0))))
    for made in sockets:
        others = b"".join((1 << 60 | way + 1).to_bytes(8, sys.byteorder) for way in range(MEANT_WAYS))
        map_update(meant, (cookie_of(made) % MEANT_SETS).to_bytes(4, sys.byteorder), others.ljust(size, b"\0"))


@pytest.mark.parametrize("kind", [TCP, UDP])
async def test_connected_sockets_for_which_there_was_no_room_are_counted_and_ended(
    datapath: Datapath, cgroup: Path, node: Node, evictor: Evictor, kind: int
) -> None:
    datapath.attach_sockets(cgroup)
    web, server = Web(datapath, Protocol.TCP if kind == TCP else Protocol.UDP), node.echo(kind)
    await web.serve(server)
    clients = [node.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6)]
    direct, asking = node.socket(socket.AF_INET, kind), node.socket(socket.AF_INET, UDP)
    fill(datapath.maps["lb_meant"], *clients, direct)
    for client in clients:
        client.connect((VIP if client.family == socket.AF_INET else f"::ffff:{VIP}", 80))
    direct.connect(server.address)
    if kind == UDP:
        asking.sendto(b"hello", (VIP, 80))
    assert datapath.counters()[Reason.MEANT_FULL] == len(clients)
    found = {value: each for value, each in evictor.find().items() if value.port == 80}
    assert sorted(itertools.chain(*found.values())) == sorted(map(cookie_of, clients))
    assert {(value.backend_id, value.protocol, value.backend_port) for value in found} == {
        (REMEMBERED, PROTOCOL[kind], server.port)
    }
    assert evictor.evict(found) == Evicted({Outcome.RESET: len(clients)})
    assert all(map(is_ended, clients))
    assert not is_ended(direct)
    assert evictor.evict(evictor.find()) == Evicted({}), "they are not looked for again"


async def test_multipath_tcp_sockets_are_ended(datapath: Datapath, cgroup: Path, node: Node, evictor: Evictor) -> None:
    datapath.attach_sockets(cgroup)
    web, server = Web(datapath, Protocol.TCP), node.echo(TCP)
    await web.serve(server)
    try:
        client = node.socket(socket.AF_INET, TCP, 262)  # IPPROTO_MPTCP
    except OSError as e:
        pytest.skip(f"MPTCP is missing: {e}")
    client.connect((VIP, 80))
    assert answerer(client) == server.port
    assert evictor.evict(evictor.find()) == Evicted({Outcome.RESET: 1})
    assert is_ended(client)
