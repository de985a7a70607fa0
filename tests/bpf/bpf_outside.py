"""A node that is called from outside: its network, its services, and its programs run over packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from socket import if_nametoindex

from bpf_flows import SCTP, TCP, Packet
from bpf_node import Node
from bpf_services import BACKEND, PORTS, Bed

from agent.bpf.layouts import Number, PodDevice, SlotsKey
from clustermesh.address import parse
from clustermesh.mesh.resolve import Kind

NODE_PORT, REMOTE = 30080, 9


class Outside(Bed):
    """A node whose device `eth0` leads to everybody; its program runs as if packets came by that."""

    net: Node
    device: int

    @property
    def remote(self) -> str:
        return "fd10:2::7" if self.is_ipv6() else "10.2.0.7"

    @property
    def gateway(self) -> str:
        return "fd92::fe" if self.is_ipv6() else "192.168.0.254"

    def run(self, program: str, packet: Packet | bytes, device: int | None = None) -> tuple[int, Packet | None]:
        at = self.device if device is None else device
        fd = self.datapath.program_fd(program)  # loaded where the rest of the programs was
        return self.net.call(lambda: self.ran(fd, packet, at))

    def from_outside(self, packet: Packet | bytes) -> tuple[int, Packet | None]:
        return self.run("from_outside", packet)

    def to_outside(self, packet: Packet | bytes) -> tuple[int, Packet | None]:
        return self.run("to_outside", packet)

    def is_local(self, address: str) -> None:
        self.put("pod_devices", {bytes(parse(address)): PodDevice(self.device)})


@contextmanager
def outside_net() -> Iterator[Node]:
    with Node() as made:
        made.run("ip", "link", "add", "eth0", "address", "02:02:02:02:02:02", "type", "veth", "peer", "name", "peer0")
        made.run("ip", "link", "add", "mesh0", "type", "veth", "peer", "name", "peer1")
        for device in ("eth0", "peer0", "mesh0", "peer1"):
            made.run("ip", "link", "set", device, "up")
        made.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for address, gateway in (("192.168.0.1/24", "192.168.0.254"), ("fd92::1/64", "fd92::fe")):
            made.run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
            made.run("ip", "route", "add", "default", "via", gateway, "dev", "eth0")
            made.run("ip", "neigh", "add", gateway, "lladdr", "02:00:00:00:00:fe", "dev", "eth0")
        yield made


def outside_of(bed: Bed, net: Node) -> Outside:
    made = Outside(*bed)
    made.net, made.device = net, net.call(lambda: if_nametoindex("eth0"))
    made.reset(bed.datapath)
    for number, (protocol, (_, target)) in enumerate(PORTS.items()):
        made.back(REMOTE + 10 * number, made.remote, target, protocol)
        port = target if protocol == SCTP else NODE_PORT
        made.serve(made.node, port, protocol, 200 + number, REMOTE + 10 * number, kind=Kind.NODE_PORT)
    return made


def call(outside: Outside, protocol: int = TCP, port: int = 50000) -> Packet:
    at = PORTS[SCTP][1] if protocol == SCTP else NODE_PORT
    return Packet(outside.stranger, port, outside.node, at, protocol, payload=b"" if protocol == TCP else b"hello")


def locally(outside: Outside) -> None:
    """The backends are on this node."""
    outside.is_local(outside.backend)
    for number in range(3):
        outside.put("lb_slots", {SlotsKey(200 + number): [Number(BACKEND + 10 * number)] * 16})
