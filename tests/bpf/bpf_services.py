"""Services in real maps, and packets to and from them: what tests of programs of packets share."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from bpf_flows import ACK, ICMP, ICMP6, RST, SCTP, SYN, TCP, UDP, Packet, read
from bpf_maps import delete, packed, write
from bpf_run import RunResult, WrongSum, program_test_run

from agent.bpf.layouts import (
    NO_ADDRESS,
    BackendValue,
    CtDirect,
    CtEntry,
    CtKey,
    GroupsKey,
    LbGroup,
    NodeConfig,
    Number,
    PodSource,
    Reason,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    pack_evicted,
    pack_factors,
    unpack,
)
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map
from clustermesh.address import parse
from clustermesh.mesh.resolve import BackendState

NEXT, DROP, REDIRECT = -1, 2, 7
LENT = range(61000, 65536)


class Addresses(NamedTuple):
    pod: str
    other: str  # another pod of this node
    backend: str
    vip: str
    second_vip: str  # of the same backend
    empty: str  # of none
    own: str  # of `pod` itself
    node: str
    router: str
    stranger: str


FAMILIES = {
    "IPv4": Addresses(
        "10.1.0.5",
        "10.1.0.6",
        "10.1.0.7",
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
        "10.96.0.4",
        "192.168.0.1",
        "172.16.0.1",
        "198.51.100.9",
    ),
    "IPv6": Addresses(
        "fd10:1::5",
        "fd10:1::6",
        "fd10:1::7",
        "fd96::1",
        "fd96::2",
        "fd96::3",
        "fd96::4",
        "fd92::1",
        "fd72::1",
        "2001:db8::9",
    ),
}
BACKEND, OWN = 7, 8  # ids
_WRITTEN = (
    "ct",
    "ct_direct",
    "ct_fragments",
    "lb_services",
    "lb_backends",
    "lb_source_ranges",
    "pod_devices",
    "pod_sources",
)
PORTS = {TCP: (80, 8080), UDP: (53, 5353), SCTP: (38412, 38412)}


class Bed(Addresses):
    """Services in real maps, and programs to send packets through."""

    datapath: Datapath
    counted: Mapping[Reason, int]
    is_summed = True  # by a device, what is sent: not where a refusal is remembered, as that is done twice

    def reset(self, datapath: Datapath) -> None:
        """As if nothing had been sent yet."""
        self.datapath = datapath
        for name in _WRITTEN:
            self.drop(name, *asyncio.run(open_map(datapath, name).dump()))
        self.counted = datapath.counters()
        for number, (protocol, (port, target)) in enumerate(PORTS.items()):
            self.back(BACKEND + 10 * number, self.backend, target, protocol)
            self.back(OWN + 10 * number, self.pod, target, protocol)
            for place, address in enumerate((self.vip, self.second_vip)):
                self.serve(address, port, protocol, 100 + 10 * number + place, BACKEND + 10 * number)
            self.serve(self.empty, port, protocol, 102 + 10 * number, None)
            self.serve(self.own, port, protocol, 103 + 10 * number, OWN + 10 * number)
        self.put("node_config", {Number(0): config(self)})
        self.take_out()

    def put(self, name: str, entries: Mapping[Any, Any]) -> None:
        asyncio.run(write(self.datapath, name, entries))

    def drop(self, name: str, *keys: Any) -> None:
        asyncio.run(delete(self.datapath, name, [packed(key) for key in keys]))

    def serve(
        self,
        address: str,
        port: int,
        protocol: int,
        service_id: int,
        backend: int | None,
        scope: int = 0,
        **more: int,
    ) -> None:
        groups = int(backend is not None)
        value = ServiceValue(service_id, weight=groups, groups=groups, **more)
        if backend is not None:
            self.put("lb_slots", {SlotsKey(service_id): [Number(backend)] * 16})
            self.put("lb_groups", {GroupsKey(service_id): [LbGroup(1, 0, 1)] + [LbGroup(1)] * 7})
        self.put("lb_services", {ServiceKey(parse(address), port, protocol, scope): value})

    def back(
        self, number: int, address: str, port: int, protocol: int, state: int = BackendState.ACTIVE, cluster: int = 0
    ) -> None:
        self.put("lb_backends", {Number(number): BackendValue(parse(address), port, protocol, state, cluster)})

    def take_out(self, *drained: int, evicted: Collection[int] = ()) -> None:
        """These clusters, and no others; `evicted` may be any."""
        self.put("lb_clusters", {Number(0): pack_factors(dict.fromkeys(drained, 0.0))})
        self.put("lb_evicted", {Number(0): pack_evicted(evicted)})

    def send(self, program: str, packet: Packet | bytes, device: int = 1) -> tuple[int, Packet | None]:
        """The verdict, and the packet after it."""
        return self.ran(self.datapath.program_fd(program), packet, device)

    def ran(self, program: int, packet: Packet | bytes, device: int) -> tuple[int, Packet | None]:
        """What a device has summed up is right after all programs but those that cut it: into a refusal, which changes
        nothing else, so that it is done once more without."""
        frame = packet if isinstance(packet, bytes) else packet.frame()
        try:
            result = program_test_run(program, frame, device, summed=self.is_summed)
        except WrongSum:
            before = self.datapath.counters()
            result = program_test_run(program, frame, device)
            assert is_refusal(result), "the device's sum is wrong"
            after = self.datapath.counters()
            self.counted = {reason: self.counted[reason] + after[reason] - before[reason] for reason in after}
        return result.verdict, None if result.verdict == DROP else read(result.data)

    def from_pod(self, packet: Packet | bytes) -> tuple[int, Packet | None]:
        """From the pod whose address the packet has; what is given as bytes, from `pod`."""
        source = parse(packet.source if isinstance(packet, Packet) else self.pod)
        own = PodSource(NO_ADDRESS, source) if self.is_ipv6() else PodSource(source, NO_ADDRESS)
        self.put("pod_sources", {Number(1): own})
        return self.send("from_pod", packet)

    def to_pod(self, packet: Packet | bytes) -> tuple[int, Packet | None]:
        return self.send("to_pod", packet)

    def by_stack(self, packet: Packet) -> tuple[int, Packet | None]:
        """From one pod to another by the kernel's way, which only routes."""
        verdict, found = self.from_pod(packet)
        return (verdict, found) if found is None or verdict != NEXT else self.to_pod(found)

    def count(self, reason: Reason) -> int:
        return self.datapath.counters()[reason] - self.counted[reason]

    def entries(self) -> dict[CtKey, CtEntry]:
        found = asyncio.run(open_map(self.datapath, "ct").dump())
        return {unpack(CtKey, key): unpack(CtEntry, value) for key, value in found.items()}

    def direct(self) -> dict[CtKey, CtDirect]:
        found = asyncio.run(open_map(self.datapath, "ct_direct").dump())
        return {unpack(CtKey, key): unpack(CtDirect, value) for key, value in found.items()}

    def entry(self, packet: Packet) -> CtEntry | None:
        return self.entries().get(key_of(packet))

    def change(self, packet: Packet, **fields: int) -> None:
        """Have the entry of a packet say something else."""
        found = self.entry(packet)
        assert found is not None
        self.put("ct", {key_of(packet): found._replace(**fields)})

    def is_ipv6(self) -> bool:
        return ":" in self.pod

    def error(self, source: str, destination: str, about: Packet, quoted: int = 0) -> Packet:
        """A router cannot send it on: ICMP, with the first `quoted` bytes of it."""
        protocol, icmp = (ICMP6, (1, 0, 0)) if self.is_ipv6() else (ICMP, (3, 1, 0))
        return Packet(source, 0, destination, 0, protocol, icmp=icmp, about=about, payload=bytes(quoted))


def is_refusal(result: RunResult) -> bool:
    if result.verdict != REDIRECT:
        return result.verdict == DROP
    packet = read(result.data)
    return packet.flags in (RST, RST | ACK) or packet.about is not None


def key_of(packet: Packet) -> CtKey:
    ends = (parse(packet.source), parse(packet.destination))
    return CtKey(*ends, packet.source_port, packet.destination_port, packet.protocol)


def config(bed: Bed, **fields: int) -> NodeConfig:
    node = parse(bed.node)
    ends = (NO_ADDRESS, node) if bed.is_ipv6() else (node, NO_ADDRESS)
    return NodeConfig(*ends, *ends, port_first=LENT.start, port_last=LENT.stop - 1)._replace(**fields)


def call(bed: Bed, protocol: int, vip: str | None = None, port: int = 40000) -> Packet:
    return Packet(
        bed.pod, port, vip or bed.vip, PORTS[protocol][0], protocol, payload=b"" if protocol == TCP else b"hello"
    )


def to_backend(bed: Bed, packet: Packet) -> Packet:
    return packet.to(destination=bed.backend, destination_port=PORTS[packet.protocol][1])


def bare(packet: Packet) -> Packet:
    """What is read of a quoted packet."""
    return packet.to(flags=SYN, seq=1000, ack=0, payload=b"")
