"""Services at the socket, by real sockets: who is reached, who the peer seems to be, and what a service without
backends says. Every server answers with its own port, so a test knows which backend it reached."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from bpf_maps import delete, set_factors, write
from bpf_node import TIMEOUT, EchoServer, Node

from agent.bpf.layouts import BackendValue, GroupsKey, LbGroup, Number, Reason, ServiceKey, ServiceValue, SlotsKey
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map
from clustermesh.address import parse
from clustermesh.model import BackendState

pytestmark = pytest.mark.root

Peer = tuple[str, int]
VIP: Peer = ("10.96.0.10", 80)
VIP6: Peer = ("fd96::10", 80)
VIPS = {socket.AF_INET: VIP, socket.AF_INET6: VIP6}
HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOL = {TCP: 6, UDP: 17}


class Services:
    """One service at VIP and at VIP6, for TCP and UDP, written the way a test wants it: also half.

    It is of one group, of cluster 2. Backend `number` is of the family of its server."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath

    def set_slots(self, kind: int, slots: Sequence[int], vip: Peer = VIP) -> None:
        """Slot i points at backend slots[i]; a block in which all are 0 is left out."""
        number = _service_id(kind, vip)
        blocks = {
            block: (*slots[block * 16 : block * 16 + 16], *[0] * 16)[:16] for block in range(-(-len(slots) // 16))
        }
        entries = {SlotsKey(number, 0, block): [*map(Number, ids)] for block, ids in blocks.items() if any(ids)}
        asyncio.run(write(self.datapath, "lb_slots", entries))
        group = LbGroup(len(slots), 2, len(slots))
        groups = [group, *[LbGroup(len(slots))] * 7]
        asyncio.run(write(self.datapath, "lb_groups", {GroupsKey(number): groups}))
        head = ServiceValue(number, len(slots), groups=min(len(slots), 1))
        key = ServiceKey(parse(vip[0]), vip[1], PROTOCOL[kind])
        asyncio.run(write(self.datapath, "lb_services", {key: head}))

    def set_backend(self, number: int, server: EchoServer, state: int = BackendState.ACTIVE) -> None:
        backend = BackendValue(parse(server.address[0]), server.port, 0, state, 2)
        asyncio.run(write(self.datapath, "lb_backends", {Number(number): backend}))

    def remove_backend(self, number: int) -> None:
        asyncio.run(delete(self.datapath, "lb_backends", [Number(number)]))

    def counted(self, reason: Reason) -> int:
        return self.datapath.counters()[reason]


def _service_id(kind: int, vip: Peer) -> int:
    return kind + 10 * (vip == VIP6)


@pytest.fixture
def services(datapath: Datapath, cgroup: Path, node: Node) -> Services:
    datapath.attach_sockets(cgroup)
    return Services(datapath)


def _serve(
    node: Node, services: Services, kind: int, count: int, family: int = socket.AF_INET, first: int = 1
) -> list[EchoServer]:
    """`count` servers, each of them a backend of the service, numbered from `first` on."""
    servers = [node.echo(kind, HOSTS[family]) for _ in range(count)]
    for number, server in enumerate(servers, first):
        services.set_backend(number, server)
    services.set_slots(kind, range(first, first + count), VIPS[family])
    return servers


def _ask(node: Node, kind: int, address: Peer = VIP) -> int:
    """The port of whoever answers at `address`."""
    with closing(node.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind)) as client:
        client.connect(address)
        client.sendall(b"hello")
        return int(client.recv(100).partition(b":")[0])


by_family = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


@pytest.mark.both_loaders
@by_family
def test_tcp_reaches_a_backend_and_the_peer_is_the_service(node: Node, services: Services, family: int) -> None:
    (server,) = _serve(node, services, TCP, 1, family)
    client = node.socket(family, TCP)
    client.connect(VIPS[family])
    client.sendall(b"hello")
    assert client.recv(100) == b"%d:hello" % server.port
    assert client.getpeername()[:2] == VIPS[family]
    assert services.counted(Reason.CONNECT) == 1


@by_family
def test_connected_udp_reaches_a_backend_and_the_peer_is_the_service(
    node: Node, services: Services, family: int
) -> None:
    (server,) = _serve(node, services, UDP, 1, family)
    client = node.socket(family, UDP)
    client.connect(VIPS[family])
    client.send(b"hello")
    data, peer = client.recvfrom(100)
    assert (data, peer[:2]) == (b"%d:hello" % server.port, VIPS[family])
    assert client.getpeername()[:2] == VIPS[family]


@pytest.mark.both_loaders
def test_both_ends_that_a_socket_is_shown_make_sense_also_where_it_was_bound(node: Node, services: Services) -> None:
    """Its own is what the backend sees of it; its peer is who it called."""
    node.add_address("fd00::9")
    own = {socket.AF_INET: "127.0.0.9", socket.AF_INET6: "fd00::9"}
    for family, kind, is_bound in itertools.product(VIPS, (TCP, UDP), (False, True)):
        server, client = node.socket(family, kind), node.socket(family, kind)
        server.bind((HOSTS[family], 0))
        backend = BackendValue(parse(HOSTS[family]), server.getsockname()[1], 0, BackendState.ACTIVE, 2)
        asyncio.run(write(services.datapath, "lb_backends", {Number(1): backend}))
        services.set_slots(kind, [1], VIPS[family])
        if kind == TCP:
            server.listen()
        if is_bound:
            client.bind((own[family], 0))
        client.connect(VIPS[family])
        client.sendall(b"hello")
        with server.accept()[0] if kind == TCP else server as backends:
            seen = backends.getpeername() if kind == TCP else backends.recvfrom(100)[1]
            assert client.getsockname()[:2] == seen[:2]
            assert client.getpeername()[:2] == VIPS[family]
        assert (seen[0] == own[family]) is is_bound


@pytest.mark.both_loaders
@by_family
def test_an_unconnected_datagram_is_answered_by_the_service(node: Node, services: Services, family: int) -> None:
    (server,) = _serve(node, services, UDP, 1, family)
    client = node.socket(family, UDP)
    for _ in range(3):
        client.sendto(b"hello", VIPS[family])
        data, peer = client.recvfrom(100)
        assert (data, peer[:2]) == (b"%d:hello" % server.port, VIPS[family])
    assert services.counted(Reason.DATAGRAM) == services.counted(Reason.REPLY) == 3
    assert len(asyncio.run(open_map(services.datapath, "lb_reverse_sk").dump())) == 1


def test_one_ipv6_socket_asks_services_of_both_families(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, UDP, 1)
    (other,) = _serve(node, services, UDP, 1, socket.AF_INET6, first=2)
    client = node.socket(socket.AF_INET6, UDP)
    client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for _ in range(2):
        for vip, answerer in (((f"::ffff:{VIP[0]}", VIP[1]), server), (VIP6, other)):
            client.sendto(b"hello", vip)
            data, peer = client.recvfrom(100)
            assert (data, peer[:2]) == (b"%d:hello" % answerer.port, vip)


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_an_ipv6_socket_speaking_ipv4_is_served_alike(node: Node, services: Services, kind: int) -> None:
    (server,) = _serve(node, services, kind, 1)
    client = node.socket(socket.AF_INET6, kind)
    client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    mapped = (f"::ffff:{VIP[0]}", VIP[1], 0, 0)
    client.connect(mapped)
    client.sendall(b"hello")
    assert client.recv(100) == b"%d:hello" % server.port
    assert client.getpeername() == mapped
    if kind == UDP:
        unconnected = node.socket(socket.AF_INET6, UDP)
        unconnected.sendto(b"hello", mapped)
        assert unconnected.recvfrom(100) == (b"%d:hello" % server.port, mapped)


def test_a_multipath_tcp_socket_is_served_as_tcp(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, TCP, 1)
    try:
        client = node.socket(socket.AF_INET, TCP, 262)  # IPPROTO_MPTCP
    except OSError as e:
        pytest.skip(f"MPTCP is missing: {e}")
    client.connect(VIP)
    client.sendall(b"hello")
    assert client.recv(100) == b"%d:hello" % server.port


def test_an_ipv6_address_passes_untouched(node: Node, services: Services) -> None:
    """Its last four bytes are the service's address, and it is no IPv4 address for that."""
    _serve(node, services, TCP, 1)
    client = node.socket(socket.AF_INET6, TCP)
    with pytest.raises(OSError, match="Network is unreachable"):
        client.connect(("64:ff9b::10.96.0.10", VIP[1], 0, 0))
    assert services.counted(Reason.CONNECT) == 0


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_what_is_no_service_passes_untouched(node: Node, services: Services, kind: int) -> None:
    """Another port of the service's address, and its own port over the other protocol, are not the service."""
    server = node.echo(kind, VIP[0])
    services.set_backend(1, node.echo(kind))
    services.set_slots(TCP if kind == UDP else UDP, [1])
    assert _ask(node, kind, server.address) == server.port
    client = node.socket(socket.AF_INET, UDP)
    client.connect((VIP[0], VIP[1] + 1))
    assert client.getpeername() == (VIP[0], VIP[1] + 1)
    assert services.counted(Reason.CONNECT) == 0


@by_family
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_service_without_backends_refuses_and_counts(node: Node, services: Services, kind: int, family: int) -> None:
    services.set_slots(kind, [], VIPS[family])
    client = node.socket(family, kind)
    with pytest.raises(ConnectionRefusedError):
        client.connect(VIPS[family])
    if kind == UDP:
        with pytest.raises(ConnectionRefusedError):
            node.socket(family, UDP).sendto(b"hello", VIPS[family])
    assert services.counted(Reason.DROP_NO_BACKEND) == (2 if kind == UDP else 1)


def test_a_service_whose_slots_all_lead_nowhere_refuses(node: Node, services: Services) -> None:
    services.set_slots(TCP, [7, 8, 9])
    with pytest.raises(ConnectionRefusedError):
        _ask(node, TCP)


@pytest.mark.parametrize("valid", [1, 2, 32, 63, 64])
def test_one_valid_backend_among_many_missing_ones_is_always_found(node: Node, services: Services, valid: int) -> None:
    """As during an update: slots that are not written yet, and slots whose backend is gone already."""
    server = node.echo(TCP)
    services.set_backend(1, server)
    services.set_slots(TCP, [1 if slot == valid else (0 if slot % 2 else 999) for slot in range(1, 65)])
    assert {_ask(node, TCP) for _ in range(20)} == {server.port}
    assert services.counted(Reason.DROP_NO_BACKEND) == 0
    assert services.counted(Reason.PICK_RETRIED) > 0


def test_only_active_backends_are_given_out(node: Node, services: Services) -> None:
    active, *others = _serve(node, services, TCP, 4)
    states = [BackendState.TERMINATING, BackendState.QUARANTINED, BackendState.MAINTENANCE]
    for number, (server, state) in enumerate(zip(others, states, strict=True), 2):
        services.set_backend(number, server, state)
    assert {_ask(node, TCP) for _ in range(20)} == {active.port}


def test_no_connect_fails_while_backends_come_and_go(node: Node, services: Services) -> None:
    """Slots, counts and backends are changed in every order for as long as a client connects again and again."""
    servers = _serve(node, services, TCP, 3)
    failures: list[OSError] = []
    reached: Counter[int] = Counter()
    done = threading.Event()

    def connect() -> None:
        while not done.is_set():
            try:
                reached[_ask(node, TCP)] += 1
            except OSError as e:
                failures.append(e)

    client = threading.Thread(target=connect)
    client.start()
    try:
        for turn in itertools.count():
            if turn >= 150 and len(reached) == len(servers):
                break
            gone = turn % 3 + 1
            services.remove_backend(gone)
            services.set_slots(TCP, [number for number in (1, 2, 3) if number != gone])
            services.set_slots(TCP, [gone % 3 + 1, gone, *range(1, 18)])
            services.set_slots(TCP, [999, gone % 3 + 1, 0])
            services.set_backend(gone, servers[gone - 1])
            services.set_slots(TCP, [1, 2, 3])
    finally:
        done.set()
        client.join(TIMEOUT)
    assert failures == []
    assert set(reached) == {server.port for server in servers}
    assert services.counted(Reason.DROP_NO_BACKEND) == 0


@by_family
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_sockets_are_spread_over_the_backends(node: Node, services: Services, kind: int, family: int) -> None:
    """100 sockets over 4 backends: 25 each on average; fewer than 5 for one has a chance below 1 in 10 million."""
    servers = _serve(node, services, kind, 4, family)
    reached = Counter(_ask(node, kind, VIPS[family]) for _ in range(100))
    assert set(reached) == {server.port for server in servers}
    assert min(reached.values()) >= 5, reached


@by_family
def test_unconnected_datagrams_are_spread_by_socket_and_stay_with_their_backend(
    node: Node, services: Services, family: int
) -> None:
    servers = _serve(node, services, UDP, 4, family)
    reached: Counter[bytes] = Counter()
    for _ in range(100):
        with closing(node.socket(family, UDP)) as client:
            answers = set()
            for _ in range(3):
                client.sendto(b"hello", VIPS[family])
                answers.add(client.recv(100))
            assert len(answers) == 1
            reached.update(answers)
    assert set(reached) == {b"%d:hello" % server.port for server in servers}
    assert min(reached.values()) >= 5, reached


def test_a_cluster_that_is_out_refuses_and_one_that_is_back_answers(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, TCP, 1)
    asyncio.run(set_factors(services.datapath, {2: 0}))
    with pytest.raises(ConnectionRefusedError):
        _ask(node, TCP)
    asyncio.run(set_factors(services.datapath, {2: 1}))
    assert _ask(node, TCP) == server.port


def test_a_socket_that_turns_to_the_backend_itself_sees_the_backend(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, UDP, 1)
    client = node.socket(socket.AF_INET, UDP)
    client.connect(VIP)
    assert client.getpeername() == VIP
    client.connect(server.address)
    assert client.getpeername() == server.address


def test_sockets_outside_the_cgroup_are_left_alone(datapath: Datapath, cgroup: Path, node: Node, bpffs: Path) -> None:
    inner = cgroup / "inner"
    inner.mkdir()
    try:
        datapath.attach_sockets(inner)
        services = Services(datapath)
        services.set_slots(UDP, [])
        node.run("ip", "address", "add", f"{VIP[0]}/32", "dev", "lo")
        node.socket(socket.AF_INET, UDP).connect(VIP)
        assert services.counted(Reason.DROP_NO_BACKEND) == 0
        Datapath.remove(datapath.pin_dir)
    finally:
        inner.rmdir()


def test_an_answer_that_comes_too_late_is_shown_to_the_next_socket_of_the_port_as_its_senders(
    node: Node, services: Services
) -> None:
    """It was no answer to that socket, which never meant the service there; its own answers are the service's."""
    slow = node.socket(socket.AF_INET, UDP)
    slow.bind(("127.0.0.1", 0))
    late = BackendValue(parse("127.0.0.1"), slow.getsockname()[1], 0, BackendState.ACTIVE, 2)
    asyncio.run(write(services.datapath, "lb_backends", {Number(2): late}))
    services.set_slots(UDP, [2])
    first = node.socket(socket.AF_INET, UDP)
    first.sendto(b"hello", VIP)
    port = first.getsockname()[1]
    _, asked_by = slow.recvfrom(100)
    first.close()
    (server,) = _serve(node, services, UDP, 1)
    second = node.socket(socket.AF_INET, UDP)
    second.bind(("", port))
    second.sendto(b"hello", VIP)
    assert second.recvfrom(100) == (b"%d:hello" % server.port, VIP)
    slow.sendto(b"late", asked_by)
    assert second.recvfrom(100) == (b"late", slow.getsockname())
