"""Pods of two nodes through WireGuard, and what happens to their packets while it is gone.

      node 1 (net + mount namespace)                        node 2
    +--------------------------------+                    +--------------------------------+
    |  pod a          cm-wg0 -- wireguard-go        wireguard-go -- cm-wg0          pod b  |
    |  10.1.0.2       10.2.0.0/24    |                    |    10.1.0.0/24       10.2.0.2  |
    |  fd00:10:1::2   fd00:10:2::/64 |                    |    fd00:10:1::/64 fd00:10:2::2 |
    |   eth0             ^           |      underlay      |           ^            eth0    |
    |     |              |           |                    |           |              |     |
    |  lxc... --- lo 10.1.0.1 --- eth0 ==================== eth0 --- lo 10.2.0.1 --- lxc...|
    |             fd00:10:1::1       |                    |        fd00:10:2::1            |
    +--------192.0.2.1, 2001:db8::1--+      (tap)         +--192.0.2.2, 2001:db8::2--------+

Each node's default gateway is the other node: a packet for a pod that is not encrypted is seen by the tap.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from netns_mesh import MTU, SIZE, MeshNode
from netns_node import TIMEOUT, Tap, is_clear, is_wireguard

from agent.plan.routes import RouteKey, best_metric
from agent.wireguard import keys
from agent.wireguard.device import OVERHEAD
from agent.wireguard.peer import Peer, PeerKey
from agent.wireguard.userspace import SOCKETS
from clustermesh.address import parse, parse_prefix, prefix_text

Mesh = tuple[MeshNode, MeshNode]
RESULT = {"ips": [{"address": "10.1.0.2/32"}, {"address": "fd00:10:1::2/128"}]}


@pytest.fixture
def tap(mesh: Mesh) -> Iterator[Tap]:
    opened = Tap(mesh[0])
    yield opened
    opened.close()


def send_clear_attempts(node: MeshNode, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with node.pod_socket("a", family, socket.SOCK_DGRAM) as client:
        for _ in range(20):
            with suppress(OSError):  # what came back from the node for one before
                client.sendto(b"for nobody else", (address, 9))


def leaves_in_clear(node: MeshNode, address: str, tap: Tap) -> bool:
    send_clear_attempts(node, address)
    time.sleep(0.1)
    return bool(clear(tap.packets()))


def received(server: socket.socket, send: Callable[[], object]) -> bytes:
    """What comes of `send`, which is done again: a datagram may be lost where a session between two nodes begins."""
    for _ in range(100):
        send()
        if select.select([server], [], [], TIMEOUT / 100)[0]:
            return server.recv(1 << 16)
    raise AssertionError("nothing arrives")


def clear(packets: list[bytes]) -> list[bytes]:
    return [packet for packet in packets if is_clear(packet)]


@pytest.mark.parametrize("outside", [4, 6])
def test_pods_talk_through_the_tunnel_and_only_through_it(mesh: Mesh, tap: Tap, outside: int) -> None:
    """Both families inside of each."""
    one, two = mesh
    pods_a, pods_b = one.make_dual_pod("a"), two.make_dual_pod("b")
    assert (pods_a, pods_b) == (("10.1.0.2", "fd00:10:1::2"), ("10.2.0.2", "fd00:10:2::2"))
    tap.packets()
    for a, b in zip(pods_a, pods_b, strict=True):
        with two.tcp_server("b") as server:
            assert one.talk("a", server, b) == a
        with one.tcp_server("a") as server:
            assert two.talk("b", server, a) == b
    packets = tap.packets()
    encrypted = [packet for packet in packets if is_wireguard(packet)]
    assert sum(map(len, encrypted)) > 4 * SIZE
    assert {packet[0] >> 4 for packet in encrypted} == {outside}
    assert clear(packets) == []


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize(("family", "headers"), [(socket.AF_INET, 28), (socket.AF_INET6, 48)])
def test_packet_of_full_size_crosses_the_underlay_in_one_piece(
    mesh: Mesh, tap: Tap, outside: int, family: socket.AddressFamily, headers: int
) -> None:
    one, two = mesh
    one.make_pod("a")
    b = two.make_dual_pod("b")[family == socket.AF_INET6]
    with (
        two.pod_socket("b", family, socket.SOCK_DGRAM) as server,
        one.pod_socket("a", family, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 9000))
        payload = bytes(MTU - headers)
        assert received(server, lambda: client.sendto(payload, (b, 9000))) == payload
    packets = tap.packets()
    longest = max(len(packet) for packet in packets if is_wireguard(packet))
    # WireGuard pads to 16 bytes, but not beyond the MTU; OVERHEAD is for an outer IPv6, an outer IPv4 takes 20 less
    assert longest == MTU + (OVERHEAD if outside == 6 else OVERHEAD - 20)
    assert clear(packets) == []  # a fragment counts as clear


@pytest.mark.parametrize(("family", "source"), [(0, "10.1.0.1"), (1, "fd00:10:1::1")])
def test_node_reaches_pods_of_other_nodes_from_its_router_address(mesh: Mesh, family: int, source: str) -> None:
    one, two = mesh
    b = two.make_dual_pod("b")[family]
    with two.tcp_server("b") as server:
        client = one.call(lambda: socket.create_connection((b, 8080), TIMEOUT))
        with client, server.accept()[0]:
            assert client.getsockname()[0] == source


def test_packet_from_outside_of_the_senders_allowed_ips_is_dropped(mesh: Mesh) -> None:
    one, two = mesh
    one.make_pod("a")
    b = two.make_pod("b")
    with (
        two.pod_socket("b", socket.AF_INET, socket.SOCK_DGRAM) as server,
        one.pod_socket("a", socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("0.0.0.0", 9000))
        one.run("ip netns exec a ip addr add 10.77.0.1/32 dev lo")
        with one.pod_socket("a", socket.AF_INET, socket.SOCK_DGRAM) as liar:
            liar.bind(("10.77.0.1", 0))

            def send_both() -> None:
                liar.sendto(b"spoofed", (b, 9000))
                client.sendto(b"honest", (b, 9000))

            for _ in range(3):
                assert received(server, send_both) == b"honest"


def test_allowed_ips_moved_to_another_peer_and_back(mesh: Mesh) -> None:
    """A node is replaced by one with another key; the old one comes back."""
    one, two = mesh
    one.make_pod("a")
    b = two.make_pod("b")
    wanted = dict(one.peers.desired)
    third, key = PeerKey("mesh", "third"), keys.public_key(keys.generate())
    elsewhere = parse("192.0.2.9")
    moved = Peer(public_key=key, endpoint=elsewhere, port=51871, allowed_ips=two.cidrs)

    one.peers.replace({third: moved})
    one.flush()
    assert one.do(one.peers.target.dump()) == {third: moved}

    other = Peer(public_key=key, endpoint=elsewhere, port=51871, allowed_ips=(parse_prefix("10.9.0.0/24"),))
    one.peers.replace({**wanted, third: other})
    one.flush()
    assert one.audit() == 0
    with two.tcp_server("b") as server:
        one.talk("a", server, b)


def test_killed_wireguard_leaks_nothing_and_comes_back_with_its_key(mesh: Mesh, tap: Tap) -> None:
    one, two = mesh
    one.make_pod("a")
    b, b6 = two.make_dual_pod("b")
    with two.tcp_server("b") as server:
        one.talk("a", server, b)
        one.talk("a", server, b6)
        one.kill_wireguard()
        one.do(one.device.died())
        tap.packets()
        send_clear_attempts(one, b)
        send_clear_attempts(one, b6)
        assert clear(tap.packets()) == []
        assert one.call((SOCKETS / "cm-wg0.sock").exists)  # stale: `ensure` has to cope

        assert one.ensure() is True
        assert one.audit() > 0  # its peers are gone; its routes are not
        assert one.routes.drift == 0
        one.talk("a", server, b)
        one.talk("a", server, b6)
    assert clear(tap.packets()) == []


@pytest.mark.parametrize("family", [0, 1])
def test_blackhole_holds_when_the_device_itself_is_gone(mesh: Mesh, tap: Tap, family: int) -> None:
    one, two = mesh
    one.make_pod("a")
    b, cidr = two.make_dual_pod("b")[family], two.cidrs[family]
    if family:
        one.connect(two, two.address6)  # so that it knows its gateway's MAC, and nothing waits for it
    with two.tcp_server("b") as server:
        one.talk("a", server, b)
        one.kill_wireguard()
        one.run("ip link del cm-wg0")
        tap.packets()
        send_clear_attempts(one, b)
        assert clear(tap.packets()) == []

        # The tap does see what leaves in clear: without the blackhole it would be this.
        one.run(f"ip route del blackhole {prefix_text(cidr)} metric 4096")
        assert any(leaves_in_clear(one, b, tap) for _ in range(50))  # once its gateway answers whose MAC is whose

        assert one.ensure() is True
        one.audit()
        assert RouteKey(cidr, best_metric(cidr)) in one.do(one.routes.target.dump())
        one.talk("a", server, b)


_AGENT = """
import asyncio, sys
from pathlib import Path
from agent.wireguard import keys
from agent.wireguard.device import FWMARK, LISTEN_PORT, open_device

async def main(state):
    device = await open_device(log=state / "wireguard-go.log")
    await device.ensure(keys.load_or_create(state / "wireguard" / "cm-wg0.key"), LISTEN_PORT, FWMARK, 1420)
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(Path(sys.argv[1])))
"""


def test_wireguard_outlives_a_killed_agent_and_is_adopted_as_it_is(wireguard_go: None, node: MeshNode) -> None:
    agent = node.call(
        lambda: subprocess.Popen([sys.executable, "-c", _AGENT, str(node.state)], stdout=subprocess.PIPE, text=True)
    )
    with agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        before = node.wireguard_pid()
        agent.send_signal(signal.SIGKILL)
        agent.wait(TIMEOUT)
    node.start_agent()
    try:
        assert node.wireguard_pid() == before
        assert node.ensure() is False
        assert Path(f"/proc/{before}/fd/0").readlink() == Path("/dev/null")
        assert sorted(Path(f"/proc/{before}/fd").glob("[12]"))[0].readlink() == node.state / "wireguard-go.log"
    finally:
        node.stop_agent()


def test_session_goes_on_over_an_agents_restart(mesh: Mesh) -> None:
    one, two = mesh
    one.make_pod("a")
    b = two.make_pod("b")
    with two.tcp_server("b") as server:
        one.talk("a", server, b)
        before = one.do(one.device.peers())[two.public_key]
        one.stop_agent()
        one.start_agent()  # with empty trackers, as a new process has
        one.connect(two)
        one.talk("a", server, b)
        after = one.do(one.device.peers())[two.public_key]
        assert before.last_handshake == after.last_handshake > 0
        assert time.time() - after.last_handshake < 120
        assert one.cni("CHECK", "a", prevResult=RESULT) == (0, None)
