"""Services of every kind at the socket, by real sockets of a node's own namespace and of a pod's.

node: the namespace whose cookie the programs were loaded with: 127.0.0.1:nodeport is its node port
pod:  another one: its loopback is its own
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from bpf_maps import write
from bpf_node import Node

from agent.bpf.layouts import (
    MEANT_SETS,
    MEANT_WAYS,
    BackendValue,
    GroupsKey,
    LbGroup,
    Number,
    Reason,
    ServiceKey,
    ServiceValue,
    SlotsKey,
)
from agent.bpf.loader import Datapath
from agent.bpf.syscalls import map_lookup, map_update
from agent.domains.tables import open_map
from agent.eviction.copies import cookie_of
from agent.eviction.meaning import meaning_of, read_meant
from clustermesh.address import parse
from clustermesh.mesh.resolve import Kind
from clustermesh.model import Algorithm

pytestmark = pytest.mark.root

Peer = tuple[str, int]
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6 = socket.AF_INET, socket.AF_INET6
NODE_PORT = 30080
PROTOCOLS = {TCP: 6, UDP: 17}
OUTSIDE_KINDS = [Kind.NODE_PORT, Kind.LOAD_BALANCER, Kind.EXTERNAL_IP, Kind.HOST_PORT]


class Services:
    """One service of some backends, at whatever addresses a test says."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self._next = 1

    def serve(self, frontends: list[Peer], backends: list[Peer], transport: int = TCP, **rules: int) -> None:
        number, self._next = self._next, self._next + 1
        ids = [Number(100 * number + n) for n in range(1, len(backends) + 1)]
        values = [BackendValue(parse(host), port, PROTOCOLS[transport], 0, 1) for host, port in backends]
        head = ServiceValue(number, len(ids), groups=min(len(ids), 1))._replace(**rules)
        asyncio.run(write(self.datapath, "lb_backends", dict(zip(ids, values, strict=True))))
        if ids:
            slots = [*ids, *[ids[0]] * (16 - len(ids))]
            asyncio.run(write(self.datapath, "lb_slots", {SlotsKey(number): slots}))
            groups = [LbGroup(len(ids), 1, len(ids)), *[LbGroup(len(ids))] * 7]
            asyncio.run(write(self.datapath, "lb_groups", {GroupsKey(number): groups}))
        keys = [ServiceKey(parse(host), port, PROTOCOLS[transport]) for host, port in frontends]
        asyncio.run(write(self.datapath, "lb_services", dict.fromkeys(keys, head)))

    def counted(self, reason: Reason) -> int:
        return self.datapath.counters()[reason]


@pytest.fixture
def services(node: Node, bpf_object: Path, pin_dir: Path, cgroup: Path) -> Iterator[Services]:
    """Loaded in the node's namespace, as an agent is."""
    with closing(node.call(lambda: Datapath.open(bpf_object, pin_dir))) as datapath:
        datapath.attach_sockets(cgroup)
        yield Services(datapath)


@pytest.fixture
def pod(services: Services) -> Iterator[Node]:
    with Node() as made:
        yield made


def ask(node: Node, kind: int, where: Peer) -> int:
    """The port of whoever answers."""
    with closing(node.socket(V6 if ":" in where[0] else V4, kind)) as client:
        client.connect(where)
        client.sendall(b"hello")
        return int(client.recv(100).partition(b":")[0])


# -- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_service_is_called_from_inside_at_its_addresses_for_those_outside(
    node: Node, services: Services, kind: int
) -> None:
    for service_kind, host in itertools.product(OUTSIDE_KINDS, ("198.51.100.7", "2001:db8::7")):
        server = node.echo(kind, "::1" if ":" in host else "127.0.0.1")
        services.serve([(host, NODE_PORT)], [server.address], kind, kind=service_kind)
        with closing(node.socket(V6 if ":" in host else V4, kind)) as client:
            client.connect((host, NODE_PORT))
            client.sendall(b"hello")
            assert client.recv(100) == b"%d:hello" % server.port
            assert client.getpeername()[:2] == (host, NODE_PORT)
            name = client.getsockname()
            assert (name[0], name[1] != 0) == (server.address[0], True), "its own end is where its packets come from"


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_a_node_port_at_loopback_is_that_of_the_node_and_not_of_a_pod(
    node: Node, pod: Node, services: Services, loopback: str
) -> None:
    backend = node.echo(TCP, loopback)
    services.serve([(loopback, NODE_PORT)], [backend.address], kind=Kind.NODE_PORT)
    assert ask(node, TCP, (loopback, NODE_PORT)) == backend.port
    with closing(pod.socket(V6 if ":" in loopback else V4, TCP)) as own:
        own.bind((loopback, NODE_PORT))
        own.listen()
        with closing(pod.socket(own.family, TCP)) as client:
            client.connect((loopback, NODE_PORT))
            assert client.getpeername()[:2] == (loopback, NODE_PORT)
            own.accept()[0].close()
    with pytest.raises(ConnectionRefusedError):
        ask(pod, TCP, (loopback, NODE_PORT))
    assert services.counted(Reason.DROP_NO_BACKEND) == 0, "nobody listened there"


@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("family", [V4, V6])
def test_a_service_of_outside_without_backends_refuses_at_once(
    node: Node, services: Services, kind: int, family: int
) -> None:
    where = ("2001:db8::7" if family == V6 else "198.51.100.7", NODE_PORT)
    services.serve([where], [], kind, kind=Kind.LOAD_BALANCER)
    with closing(node.socket(family, kind)) as client, pytest.raises(ConnectionRefusedError):
        client.connect(where)
    assert services.counted(Reason.DROP_NO_BACKEND) == 1


# -- bind -------------------------------------------------------------------------------------------------------------

ANY4, ANY6, MAPPED_ANY = "0.0.0.0", "::", "::ffff:0.0.0.0"


BINDS = [
    (["127.0.0.1", "192.0.2.1"], ANY4, True),
    (["127.0.0.1", "192.0.2.1"], ANY6, True),
    (["127.0.0.1", "192.0.2.1"], MAPPED_ANY, True),
    (["127.0.0.1", "192.0.2.1"], "127.0.0.1", True),
    (["127.0.0.1", "192.0.2.1"], "192.0.2.1", True),
    (["127.0.0.1", "192.0.2.1"], "::ffff:192.0.2.1", True),
    (["127.0.0.1", "192.0.2.1"], "192.0.2.2", False),
    (["127.0.0.1", "192.0.2.1"], "::1", False),
    (["::1"], ANY6, True),
    (["::1"], "::1", True),
    (["::1"], ANY4, False),
    (["::1"], MAPPED_ANY, False),
    (["198.51.100.7"], ANY4, False),
]


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_the_port_of_a_node_port_is_in_use(node: Node, services: Services, kind: int) -> None:
    """A port of its own for each line: (where it is served, where a socket is bound to it, whether that is refused)."""
    for address in ("192.0.2.1", "192.0.2.2"):
        node.run("ip", "address", "replace", f"{address}/32", "dev", "lo")
    for port, (served, at, refused) in enumerate(BINDS, NODE_PORT):
        before = services.counted(Reason.DROP_BIND)
        services.serve([(host, port) for host in served], [("127.0.0.1", 9)], kind, kind=Kind.NODE_PORT)
        with closing(node.socket(V6 if ":" in at else V4, kind)) as bound:
            failed = 0
            try:
                bound.bind((at, port))
            except OSError as e:
                failed = e.errno or 0
        assert failed == (errno.EADDRINUSE if refused else 0), (served, at)
        assert services.counted(Reason.DROP_BIND) - before == refused, (served, at)


def test_what_else_is_bound_is_none_of_its_business(node: Node, pod: Node, services: Services) -> None:
    """Another port, none, the other protocol, a cluster IP's port, and what a pod does in its own namespace."""
    services.serve([("127.0.0.1", NODE_PORT)], [("127.0.0.1", 9)], kind=Kind.NODE_PORT)
    services.serve([("127.0.0.1", 80)], [("127.0.0.1", 9)], kind=Kind.CLUSTER_IP)
    for where, kind, port in ((node, TCP, NODE_PORT + 1), (node, TCP, 0), (node, UDP, NODE_PORT), (node, TCP, 80)):
        where.socket(V4, kind).bind((ANY4, port))
    pod.socket(V4, TCP).bind((ANY4, NODE_PORT))
    pod.socket(V6, TCP).bind(("::1", NODE_PORT))
    assert services.counted(Reason.DROP_BIND) == 0


# -- affinity and Maglev ----------------------------------------------------------------------------------------------


def test_all_sockets_of_a_namespace_stay_with_one_backend(node: Node, pod: Node, services: Services) -> None:
    """One of twelve by chance 30 times in a row: 1 of 10^31."""
    vip = ("10.96.0.10", 80)
    servers = [node.echo(UDP) for _ in range(12)]
    services.serve([vip], [each.address for each in servers], UDP, affinity_seconds=60)
    assert len({ask(node, UDP, vip) for _ in range(30)}) == 1
    with closing(node.socket(V4, UDP)) as unconnected:
        unconnected.sendto(b"hello", vip)
        answer, peer = unconnected.recvfrom(100)
        assert (answer, peer) == (b"%d:hello" % ask(node, UDP, vip), vip)
    peers = set()
    for _ in range(30):
        with closing(pod.socket(V4, UDP)) as client:
            client.connect(vip)
            value = meaning_of(services.datapath.maps["lb_meant"], cookie_of(client))
            assert value is not None
            peers.add(value.backend_port)
    assert len(peers) == 1
    assert len(asyncio.run(open_map(services.datapath, "lb_affinity").dump())) == 2, "each namespace is a client"


def test_sockets_are_spread_by_a_table_too(node: Node, services: Services) -> None:
    """100 by a table of four: fewer than 5 for one has a chance below 1 in 10 million."""
    vip = ("10.96.0.10", 80)
    servers = [node.echo(TCP) for _ in range(4)]
    services.serve([vip], [each.address for each in servers], algorithm=Algorithm.MAGLEV)
    table = [Number(101 + place % 4) for place in range(1021)]
    asyncio.run(write(services.datapath, "lb_maglev", {Number(1): table}))
    reached = [ask(node, TCP, vip) for _ in range(100)]
    assert min(reached.count(each.port) for each in servers) >= 5


# -- what sockets mean ------------------------------------------------------------------------------------------------


@pytest.fixture
def meant(services: Services) -> int:
    return services.datapath.maps["lb_meant"]


def test_what_a_socket_means_goes_when_it_is_closed(node: Node, services: Services, meant: int) -> None:
    server = node.echo(UDP)
    services.serve([("10.96.0.10", 80)], [server.address], UDP)
    clients = [node.socket(V4, UDP) for _ in range(50)]
    for client in clients:
        client.connect(("10.96.0.10", 80))
    ((value, cookies),) = read_meant(meant).items()
    assert (value.address, value.port) == (parse("10.96.0.10"), 80)
    assert (value.backend, value.backend_port) == (parse("127.0.0.1"), server.port)
    assert (value.backend_id, value.protocol) == (101, 17)
    assert sorted(cookies) == sorted(map(cookie_of, clients))
    for client in clients[:-1]:
        client.close()
    assert read_meant(meant) == {value: [cookie_of(clients[-1])]}


def test_a_socket_that_is_connected_anew_means_what_it_was_connected_to_last(
    node: Node, services: Services, meant: int
) -> None:
    server, other = node.echo(UDP), node.echo(UDP)
    services.serve([("10.96.0.10", 80)], [server.address], UDP)
    services.serve([("10.96.0.11", 81)], [server.address], UDP)
    with closing(node.socket(V4, UDP)) as client:
        for vip in (("10.96.0.10", 80), ("10.96.0.11", 81), ("10.96.0.10", 80)):
            client.connect(vip)
            assert client.getpeername() == vip
            assert sum(map(len, read_meant(meant).values())) == 1
        client.connect(other.address)
        assert client.getpeername() == other.address
        assert read_meant(meant) == {}


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_where_a_set_is_full_what_is_meant_is_kept_where_datagrams_have_it(
    node: Node, services: Services, meant: int, kind: int
) -> None:
    server = node.echo(kind)
    services.serve([("10.96.0.10", 80)], [server.address], kind)
    size = len(map_lookup(meant, bytes(4), 4096) or b"")
    full = b"".join((1 << 60 | way + 1).to_bytes(8, "little") for way in range(MEANT_WAYS)).ljust(size, b"\0")
    for number in range(MEANT_SETS):
        map_update(meant, number.to_bytes(4, "little"), full)
    with closing(node.socket(V4, kind)) as client:
        client.connect(("10.96.0.10", 80))
        client.sendall(b"hello")
        assert client.recv(100) == b"%d:hello" % server.port
        assert client.getpeername() == ("10.96.0.10", 80)
    assert len(asyncio.run(open_map(services.datapath, "lb_reverse_sk").dump())) == 1


def test_a_datagram_to_another_place_leaves_the_connection_what_it_means(node: Node, services: Services) -> None:
    server, other = node.echo(UDP), node.echo(UDP)
    services.serve([("10.96.0.10", 80)], [server.address], UDP)
    services.serve([("10.96.0.11", 81)], [other.address], UDP)
    with closing(node.socket(V4, UDP)) as client:
        client.connect(("10.96.0.10", 80))
        client.sendto(b"hello", ("10.96.0.11", 81))
        assert client.getpeername() == ("10.96.0.10", 80)
        client.send(b"hello")
        assert client.recvfrom(100) == (b"%d:hello" % server.port, ("10.96.0.10", 80))
    with closing(node.socket(V4, UDP)) as client:
        for vip, answerer in ((("10.96.0.11", 81), other), (("10.96.0.10", 80), server), (("10.96.0.11", 81), other)):
            client.sendto(b"hello", vip)
            assert client.recvfrom(100) == (b"%d:hello" % answerer.port, vip)


def test_sctp_sockets_are_not_seen(node: Node, services: Services) -> None:
    """The kernel asks no program when one connects: services over SCTP are for packets."""
    try:
        client = node.socket(V4, TCP, 132)
    except OSError as e:
        pytest.skip(f"SCTP is missing: {e}")
    services.serve([("127.0.0.1", NODE_PORT)], [], kind=Kind.NODE_PORT)
    with pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", NODE_PORT))
    assert services.counted(Reason.DROP_NO_BACKEND) == 0
