"""Sockets whose backend went: found in every network namespace, ended, and nobody else. By programs and by netlink.

              lb_meant
namespace 1: client ──> server    What a client means is written by the test, as the socket programs do.
namespace 2: client ──> server
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from bpf_node import Node

from agent.bpf.layouts import MeantValue, pack
from agent.bpf.loader import Datapath
from agent.bpf.syscalls import map_update
from agent.eviction.diag import Diag
from agent.eviction.evictor import Evicted, Evictor, Outcome, open_evictor
from agent.eviction.iterators import Ender, Finder
from agent.eviction.meaning import Meant
from clustermesh.address import parse

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
        self.inode = node.call(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
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
        self.mean(made, MeantValue(parse(vip), parse(where.removeprefix("::ffff:")), 80, port, backend_id))
        return made

    def mean(self, made: socket.socket, value: MeantValue) -> None:
        map_update(self._meant, made.fileno().to_bytes(4, sys.byteorder), pack(value))


def is_ended(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionAbortedError:
        return True


def meant_by(found: Meant, *backend_ids: int) -> Meant:
    return {meaning: each for meaning, each in found.items() if meaning.value.backend_id in backend_ids}


def count(found: Meant) -> int:
    return sum(map(len, found.values()))


@pytest.fixture
def place(datapath: Datapath) -> Iterator[Place]:
    with Node() as node:
        yield Place(node, datapath)


@pytest.fixture(params=["programs", "netlink", "found by netlink", "ended by netlink"])
def evictor(request: pytest.FixtureRequest, bpf_object: Path, datapath: Datapath) -> Iterator[Evictor]:
    """Each way of finding, and each way of ending."""
    maps = datapath.maps
    diag = Diag(maps["lb_meant"])
    finding = diag if request.param in ("netlink", "found by netlink") else Finder(bpf_object.parent, maps)
    ending = diag if request.param in ("netlink", "ended by netlink") else Ender(bpf_object.parent, maps)
    with closing(Evictor(finding, ending, maps["lb_meant"])) as made:
        yield made


def test_what_means_a_backend_that_went_is_found_and_ended_and_nothing_else(place: Place, evictor: Evictor) -> None:
    going = {(kind, host): place.client(kind, 7, host) for kind, host in EVERY}
    staying = [place.client(kind, 8, host) for kind, host in EVERY]
    direct = [place.connected(kind, host) for kind, host in EVERY]
    found = evictor.find()
    assert count(found) == 2 * len(EVERY)
    assert {meaning.protocol for meaning in found} == {6, 17}
    gone = meant_by(found, 7)
    for meaning, sockets in gone.items():
        assert meaning.value.address == parse(VIP)
        for each in sockets:
            client = next(made for made in going.values() if os.fstat(made.fileno()).st_ino == each.inode)
            host, port = client.getsockname()[:2]
            assert (each.source, each.source_port) == (parse(host.removeprefix("::ffff:")), port)
            assert (each.network, each.family) == (place.inode, client.family)
    assert evictor.evict(gone) == Evicted({Outcome.RESET: len(EVERY)})
    assert [case for case, client in going.items() if not is_ended(client)] == []
    assert not any(map(is_ended, [*staying, *direct]))
    assert count(evictor.find()) == len(EVERY)
    assert evictor.evict(gone) == Evicted({Outcome.FAILED: len(EVERY)})


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
    assert evictor.find() == {}


def test_the_socket_of_a_found_one_that_means_another_backend_by_now_is_left(
    place: Place, bpf_object: Path, datapath: Datapath
) -> None:
    with closing(open_evictor(datapath.maps, bpf_object.parent)) as evictor:
        client = place.client(TCP, 7)
        found = evictor.find()
        ((meaning, _),) = found.items()
        place.mean(client, meaning.value._replace(backend_id=8))
        assert evictor.evict(found) == Evicted({Outcome.FAILED: 1})
        assert not is_ended(client)


def test_sockets_in_many_namespaces_and_of_closed_clients_are_ended(evictor: Evictor, datapath: Datapath) -> None:
    """Also what still sends the rest of what a client that is closed has left."""
    with ExitStack() as stack:
        places = [Place(stack.enter_context(Node()), datapath) for _ in range(4)]
        clients = [each.client(kind, 7) for each in places for kind in (TCP, UDP) for _ in range(50)]
        closed = places[0].client(TCP, 7)
        accepted = stack.enter_context(closing(places[0].server(socket.AF_INET, TCP).accept()[0]))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        closed.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                closed.send(bytes(65536))
        closed.close()
        found = evictor.find()
        assert count(found) == len(clients) + 1
        assert evictor.evict(found) == Evicted({Outcome.RESET: len(clients) + 1})
        assert all(map(is_ended, clients))


def test_a_namespace_whose_last_process_ended_is_no_failure(evictor: Evictor, datapath: Datapath) -> None:
    with Node() as node:
        client = Place(node, datapath).client(TCP, 7)
        found = evictor.find()
        assert count(found) == 1
        client.detach()
    assert evictor.evict(found).error == ""


def test_without_compiled_programs_netlink_does_it_all(place: Place, datapath: Datapath, tmp_path: Path) -> None:
    with closing(open_evictor(datapath.maps, tmp_path)) as evictor:
        client = place.client(TCP, 7)
        assert evictor.evict(evictor.find()) == Evicted({Outcome.RESET: 1})
        assert is_ended(client)
