"""Services at the socket, by real sockets: who is reached, who the peer seems to be, and what a service without
backends says. Every server answers with its own port, so a test knows which backend it reached."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from bpf_node import EchoServer, Node

from agent.bpf.layouts import Backend, BackendKey, BackendState, Reason, ServiceKey, ServiceValue, ipv4
from agent.bpf.loader import Datapath
from agent.targets import maps

pytestmark = pytest.mark.root

VIP = ("10.96.0.10", 80)
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOL = {TCP: 6, UDP: 17}


class Services:
    """One service at VIP, for TCP and UDP, written the way a test wants it: also half."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self._services, self._backends = maps.services(datapath), maps.backends(datapath)

    def set_slots(self, kind: int, slots: Sequence[int], count: int | None = None) -> None:
        """Slot i+1 points at backend slots[i]; 0 leaves the slot out. `count` is as many unless given."""
        entries = {self._key(kind, 0): ServiceValue(0, len(slots) if count is None else count)}
        entries |= {self._key(kind, i): ServiceValue(number) for i, number in enumerate(slots, 1) if number}
        asyncio.run(self._services.upsert(entries))

    def clear_slots(self, kind: int, *slots: int) -> None:
        asyncio.run(self._services.delete([self._key(kind, slot) for slot in slots]))

    def set_backend(self, number: int, server: EchoServer, state: int = BackendState.ACTIVE) -> None:
        backend = Backend(ipv4(server.address[0]), server.port, 0, state, 2)
        asyncio.run(self._backends.upsert({BackendKey(number): backend}))

    def remove_backend(self, number: int) -> None:
        asyncio.run(self._backends.delete([BackendKey(number)]))

    @staticmethod
    def _key(kind: int, slot: int) -> ServiceKey:
        return ServiceKey(ipv4(VIP[0]), VIP[1], slot, PROTOCOL[kind])

    def counted(self, reason: Reason) -> int:
        return self.datapath.counters()[reason]


@pytest.fixture
def services(datapath: Datapath, cgroup: Path, node: Node) -> Services:
    datapath.attach_sockets(cgroup)
    return Services(datapath)


def _serve(node: Node, services: Services, kind: int, count: int) -> list[EchoServer]:
    """`count` servers, each of them a backend of the service."""
    servers = [node.echo(kind) for _ in range(count)]
    for number, server in enumerate(servers, 1):
        services.set_backend(number, server)
    services.set_slots(kind, range(1, count + 1))
    return servers


def _ask(node: Node, kind: int, address: tuple[str, int] = VIP) -> int:
    """The port of whoever answers at `address`."""
    with closing(node.socket(socket.AF_INET, kind)) as client:
        client.connect(address)
        client.sendall(b"hello")
        return int(client.recv(100).partition(b":")[0])


def test_tcp_reaches_a_backend_and_the_peer_is_the_service(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, TCP, 1)
    client = node.socket(socket.AF_INET, TCP)
    client.connect(VIP)
    client.sendall(b"hello")
    assert client.recv(100) == b"%d:hello" % server.port
    assert client.getpeername() == VIP
    assert services.counted(Reason.CONNECT) == 1


def test_connected_udp_reaches_a_backend_and_the_peer_is_the_service(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, UDP, 1)
    client = node.socket(socket.AF_INET, UDP)
    client.connect(VIP)
    client.send(b"hello")
    assert client.recvfrom(100) == (b"%d:hello" % server.port, VIP)
    assert client.getpeername() == VIP


def test_an_unconnected_datagram_is_answered_by_the_service(node: Node, services: Services) -> None:
    (server,) = _serve(node, services, UDP, 1)
    client = node.socket(socket.AF_INET, UDP)
    for _ in range(3):
        client.sendto(b"hello", VIP)
        assert client.recvfrom(100) == (b"%d:hello" % server.port, VIP)
    assert services.counted(Reason.DATAGRAM) == services.counted(Reason.REPLY) == 3
    assert len(asyncio.run(maps.reverse_sockets(services.datapath).dump())) == 1


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


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_service_without_backends_refuses_and_counts(node: Node, services: Services, kind: int) -> None:
    services.set_slots(kind, [])
    client = node.socket(socket.AF_INET, kind)
    with pytest.raises(ConnectionRefusedError):
        client.connect(VIP)
    if kind == UDP:
        with pytest.raises(ConnectionRefusedError):
            node.socket(socket.AF_INET, UDP).sendto(b"hello", VIP)
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
        for turn in range(150):
            gone = turn % 3 + 1
            services.remove_backend(gone)
            services.set_slots(TCP, [number for number in (1, 2, 3) if number != gone])
            services.clear_slots(TCP, 3)
            services.set_slots(TCP, [0, 0, 0])
            services.set_backend(gone, servers[gone - 1])
            services.set_slots(TCP, [1, 2, 3])
    finally:
        done.set()
        client.join(30)
    assert failures == []
    assert set(reached) == {server.port for server in servers}
    assert services.counted(Reason.DROP_NO_BACKEND) == 0


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_sockets_are_spread_over_the_backends(node: Node, services: Services, kind: int) -> None:
    """100 sockets over 4 backends: 25 each on average; fewer than 5 for one has a chance below 1 in 10 million."""
    servers = _serve(node, services, kind, 4)
    reached = Counter(_ask(node, kind) for _ in range(100))
    assert set(reached) == {server.port for server in servers}
    assert min(reached.values()) >= 5, reached


def test_unconnected_datagrams_are_spread_by_socket_and_stay_with_their_backend(node: Node, services: Services) -> None:
    servers = _serve(node, services, UDP, 4)
    reached: Counter[bytes] = Counter()
    for _ in range(100):
        with closing(node.socket(socket.AF_INET, UDP)) as client:
            answers = set()
            for _ in range(3):
                client.sendto(b"hello", VIP)
                answers.add(client.recv(100))
            assert len(answers) == 1
            reached.update(answers)
    assert set(reached) == {b"%d:hello" % server.port for server in servers}
    assert min(reached.values()) >= 5, reached


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
