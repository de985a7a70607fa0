"""A call from outside whose backend is behind the tunnel, a device without link layer, with real devices.

test  <--peer0 | eth0-->  from_outside  <-- node -->  from_tunnel  <--tun0-->  test
                                         |
                          from_pod, to_pod  <--lxc0 | pod0-->  test
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from functools import partial
from socket import if_nametoindex

import pytest
from bpf_flows import ACK, MACS, SYN, TCP, UDP, Packet, read
from bpf_node import Node
from bpf_services import FAMILIES, LENT, PORTS, Bed, bare, config

from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.layouts import NO_ADDRESS, ConfigFlag, Number, PodDevice, PodSource, Reason
from clustermesh.address import parse
from clustermesh.mesh.resolve import Kind as ServiceKind

pytestmark = pytest.mark.root

_TUNSETIFF = 0x400454CA
_TUN, _NO_PACKET_INFORMATION = 1, 0x1000
NODE_PORT, REMOTE = 30080, 9
PEER = "02:00:00:00:00:fe"


class Tunnel:
    """A node between a client's wire and a tunnel; both ends are the test's."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.tunnel = node.call(self._open_tunnel)
        node.run("ip", "link", "add", "eth0", "address", "02:02:02:02:02:02", "type", "veth", "peer", "name", "peer0")
        for device in ("eth0", "peer0", "tun0"):
            node.run(
                "sysctl",
                "-qw",
                f"net.ipv6.conf.{device}.accept_dad=0",
                f"net.ipv6.conf.{device}.router_solicitations=0",
            )
            node.run("ip", "link", "set", device, "addrgenmode", "none", "up")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for bits, address, gateway, remote in (
            (24, "192.168.0.1", "192.168.0.254", "10.2.0.7"),
            (64, "fd92::1", "fd92::fe", "fd10:2::7"),
        ):
            node.run("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", *(["nodad"] if bits == 64 else []))
            node.run("ip", "route", "add", "default", "via", gateway, "dev", "eth0")
            node.run("ip", "neigh", "add", gateway, "lladdr", PEER, "dev", "eth0")
            node.run("ip", "route", "add", remote, "dev", "tun0")
        self.wire = self.at("peer0")

    def _open_tunnel(self) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _TUN | _NO_PACKET_INFORMATION))
        return fd

    def at(self, device: str) -> socket.socket:
        """All that comes by it, and what is sent out of it."""
        made = self._node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((device, 0))
        made.settimeout(5)
        return made

    def close(self) -> None:
        os.close(self.tunnel)

    def into_tunnel(self, sent: Packet) -> Packet:
        """What comes out of the tunnel of a frame on the wire."""
        self.wire.send(sent.frame())
        return self.from_tunnel()

    def from_tunnel(self) -> Packet:
        while True:
            assert select.select([self.tunnel], [], [], 5)[0], "nothing came out of the tunnel"
            data = os.read(self.tunnel, 2000)
            found = read(MACS + (b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\x00") + data)
            if not _is_neighbours(found):
                return found

    def out_of_tunnel(self, sent: Packet) -> Packet:
        """What comes onto the wire of a packet from the tunnel."""
        os.write(self.tunnel, sent.network())
        return received(self.wire)


def received(by: socket.socket) -> Packet:
    while True:
        frame, (_, _, kind, *_) = by.recvfrom(2000)
        if kind != socket.PACKET_OUTGOING and frame[12:14] != b"\x08\x06" and not _is_neighbours(read(frame)):
            assert frame[:6] == bytes.fromhex(PEER.replace(":", ""))
            return read(frame)


def _is_neighbours(packet: Packet) -> bool:
    """What the kernel says by itself."""
    return packet.destination.startswith(("ff02:", "224."))


@pytest.fixture(scope="module")
def net() -> Iterator[Node]:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("/dev/net/tun is missing: there can be no tunnel")
    with Node() as made:
        yield made


@pytest.fixture(scope="module")
def tunnel(net: Node) -> Iterator[Tunnel]:
    made = Tunnel(net)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pod(net: Node, tunnel: Tunnel) -> socket.socket:
    """The pod's end, of whatever address the family has."""
    net.run("ip", "link", "add", "lxc0", "address", "02:02:02:02:02:02", "type", "veth", "peer", "name", "pod0")
    for device in ("lxc0", "pod0"):
        net.run("ip", "link", "set", device, "addrgenmode", "none", "up")
    for each in FAMILIES.values():
        net.run("ip", "route", "add", each.backend, "dev", "lxc0")
        net.run("ip", "neigh", "add", each.backend, "lladdr", PEER, "dev", "lxc0")
    return tunnel.at("pod0")


def prepared(bed: Bed, net: Node, protocol: int) -> tuple[str, str]:
    """A backend behind the tunnel, and this node's address there."""
    remote, through = ("fd10:2::7", "fd99::1") if bed.is_ipv6() else ("10.2.0.7", "10.99.0.1")
    made = config(bed, tunnel_device=net.call(lambda: if_nametoindex("tun0")), flags=ConfigFlag.REDIRECT)
    bed.put("node_config", {Number(0): made._replace(**{"tunnel6" if bed.is_ipv6() else "tunnel4": parse(through)})})
    bed.back(REMOTE, remote, PORTS[protocol][1], protocol)
    bed.serve(bed.node, NODE_PORT, protocol, 200, REMOTE, kind=ServiceKind.NODE_PORT)
    for device, kind in (("eth0", Kind.OUTSIDE), ("tun0", Kind.TUNNEL)):
        attach(bed, net, device, kind)
    return remote, through


def attach(bed: Bed, net: Node, device: str, kind: Kind) -> None:
    programs = [program for program in PROGRAMS if program.kind is kind]
    net.call(partial(bed.datapath.devices.attach, device, programs))


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_call_goes_through_the_tunnel_and_its_answer_comes_back(
    bed: Bed, net: Node, tunnel: Tunnel, protocol: int
) -> None:
    remote, through = prepared(bed, net, protocol)
    sent = Packet(bed.stranger, 50000, bed.node, NODE_PORT, protocol, payload=b"" if protocol == TCP else b"hello")
    arrived = tunnel.into_tunnel(sent)
    assert arrived.source_port in LENT
    expected = sent.to(source=through, destination=remote, destination_port=PORTS[protocol][1])
    assert arrived == expected.to(source_port=arrived.source_port)
    answer = arrived.back().to(flags=SYN | ACK)
    assert tunnel.out_of_tunnel(answer) == sent.back().to(flags=SYN | ACK)
    more = sent.to(flags=ACK, payload=b"more of it")
    assert tunnel.into_tunnel(more) == arrived.to(flags=ACK, payload=b"more of it")
    error = bed.error(bed.router, through, arrived)
    assert tunnel.out_of_tunnel(error) == bed.error(bed.router, bed.stranger, bare(sent))


def test_what_comes_by_the_tunnel_for_a_pod_is_translated_once(
    bed: Bed, net: Node, tunnel: Tunnel, pod: socket.socket
) -> None:
    """The pod has called a service, whose backend now calls the pod's: from the port that it answers by, the port that
    the pod has called from. What it sends is its own, and no answer in the other service's name."""
    client, _ = prepared(bed, net, UDP)
    device = net.call(lambda: if_nametoindex("lxc0"))
    own = parse(bed.backend)
    bed.put("pod_devices", {bytes(own): PodDevice(device)})
    bed.put("pod_sources", {Number(device): PodSource(*((NO_ADDRESS, own) if bed.is_ipv6() else (own, NO_ADDRESS)))})
    attach(bed, net, "lxc0", Kind.POD)
    bed.back(REMOTE, client, 50000, UDP)
    bed.serve(bed.vip, 53, UDP, 200, REMOTE)
    bed.serve(bed.node, NODE_PORT, UDP, 201, 7 + 10, kind=ServiceKind.NODE_PORT)
    asked = Packet(bed.backend, PORTS[UDP][1], bed.vip, 53, UDP, payload=b"asked")
    pod.send(asked.frame())
    told = tunnel.from_tunnel()
    assert told == asked.to(destination=client, destination_port=50000)
    sent = Packet(client, 50000, bed.node, NODE_PORT, UDP, payload=b"called")
    arrived = sent.to(destination=bed.backend, destination_port=PORTS[UDP][1])
    os.write(tunnel.tunnel, sent.network())
    assert received(pod) == arrived
    error = bed.error(bed.router, bed.node, sent.back())
    os.write(tunnel.tunnel, error.network())
    assert received(pod) == bed.error(bed.router, bed.backend, bare(arrived.back()))


def test_what_cannot_be_given_a_frame_is_dropped_and_counted(bed: Bed, net: Node, tunnel: Tunnel) -> None:
    """The kernel makes no frame of more than four pages."""
    for device in ("eth0", "peer0", "tun0"):
        net.run("ip", "link", "set", device, "mtu", "65535")
    prepared(bed, net, UDP)
    sent = Packet(bed.stranger, 50000, bed.node, NODE_PORT, UDP, payload=b"hello")
    answer = tunnel.into_tunnel(sent).back()
    os.write(tunnel.tunnel, answer.to(payload=bytes(20000)).network())
    assert tunnel.out_of_tunnel(answer) == sent.back()
    assert bed.count(Reason.DROP_BROKEN) == 1
