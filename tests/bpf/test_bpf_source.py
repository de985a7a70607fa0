"""The source check, packet by packet: what a pod may send, and that all else is dropped, counted and told of."""

from __future__ import annotations

import asyncio

import pytest
from bpf_maps import delete, write
from bpf_packets import ETH_ARP, ETH_IPV4, ETH_VLAN, frame, ipv4, ipv4_frame, ipv6_frame
from bpf_run import program_test_run

from agent.bpf.layouts import Number, PodSource, Reason
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map
from clustermesh.address import parse

pytestmark = pytest.mark.root

NEXT, DROP = -1, 2
DEVICE = Number(1)  # of a test run: loopback
BOTH = PodSource(parse("10.1.0.5"), parse("fd10:1::5"))
ONLY_4, ONLY_6 = PodSource(ipv4=BOTH.ipv4), PodSource(ipv6=BOTH.ipv6)

# by what the pod has: both addresses, only IPv4, only IPv6
PACKETS = {
    "its own IPv4": (ipv4_frame("10.1.0.5", "198.51.100.1"), (NEXT, NEXT, DROP)),
    "its own IPv4, to itself": (ipv4_frame("10.1.0.5", "10.1.0.5"), (NEXT, NEXT, DROP)),
    "its own IPv4, a later fragment": (
        frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", fragment=0xB9)),
        (NEXT, NEXT, DROP),
    ),
    "its own IPv4, options": (
        frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", options=b"\x94\x04\0\0")),
        (NEXT, NEXT, DROP),
    ),
    "its own IPv4, any protocol": (ipv4_frame("10.1.0.5", "10.2.0.7", 253), (NEXT, NEXT, DROP)),
    "another pod's IPv4": (ipv4_frame("10.1.0.6", "198.51.100.1"), (DROP, DROP, DROP)),
    "another pod's IPv4, ICMP": (ipv4_frame("10.1.0.6", "198.51.100.1", 1), (DROP, DROP, DROP)),
    "the world's IPv4": (ipv4_frame("198.51.100.1", "10.1.0.5"), (DROP, DROP, DROP)),
    "the router's IPv4": (ipv4_frame("10.1.0.1", "10.1.0.5"), (DROP, DROP, DROP)),
    "loopback": (ipv4_frame("127.0.0.1", "10.1.0.1"), (DROP, DROP, DROP)),
    "nobody, as who asks for an address": (ipv4_frame("0.0.0.0", "255.255.255.255"), (DROP, DROP, DROP)),
    "its own IPv4 with one bit more": (ipv4_frame("10.1.0.7", "10.2.0.7"), (DROP, DROP, DROP)),
    "its own IPv6": (ipv6_frame("fd10:1::5", "2001:db8::1"), (NEXT, DROP, NEXT)),
    "its own IPv6, extension headers": (ipv6_frame("fd10:1::5", "2001:db8::1", 0), (NEXT, DROP, NEXT)),
    "its own IPv6, a fragment": (ipv6_frame("fd10:1::5", "2001:db8::1", 44), (NEXT, DROP, NEXT)),
    "its own IPv6 asks for a neighbour": (ipv6_frame("fd10:1::5", "ff02::1:ff00:1", 58), (NEXT, DROP, NEXT)),
    "another pod's IPv6": (ipv6_frame("fd10:1::6", "2001:db8::1"), (DROP, DROP, DROP)),
    "the router's IPv6": (ipv6_frame("fd10:1::1", "2001:db8::1"), (DROP, DROP, DROP)),
    "IPv6 loopback": (ipv6_frame("::1", "fd10:1::1"), (DROP, DROP, DROP)),
    "its own IPv4 in an IPv6 packet": (ipv6_frame("::ffff:10.1.0.5", "2001:db8::1"), (DROP, DROP, DROP)),
    "who has this address": (ipv6_frame("::", "ff02::1:ff00:5", 58), (NEXT, NEXT, NEXT)),
    "nobody to somebody": (ipv6_frame("::", "2001:db8::1"), (DROP, DROP, DROP)),
    "by an address of the link to a neighbour": (ipv6_frame("fe80::5", "fe80::1", 58), (NEXT, NEXT, NEXT)),
    "by an address of the link to all routers": (ipv6_frame("fe80::5", "ff02::2", 58), (NEXT, NEXT, NEXT)),
    "by an address of the link to the world": (ipv6_frame("fe80::5", "2001:db8::1"), (DROP, DROP, DROP)),
    "ARP": (frame(ETH_ARP, bytes.fromhex("0001080006040001") + bytes(20)), (NEXT, NEXT, NEXT)),
    "a VLAN tag inside of another": (
        frame(ETH_VLAN, b"\0\0\x08\0" + ipv4("10.1.0.5", "10.2.0.7")),
        (DROP, DROP, DROP),
    ),
    "a protocol nobody knows": (frame(0x88B5, ipv4("10.1.0.5", "10.2.0.7")), (DROP, DROP, DROP)),
}


@pytest.fixture
def pod(loaded: Datapath) -> Datapath:
    """Nothing is known of it yet: what was sent before is not looked at again."""
    for name in ("ct", "ct_direct", "pod_sources"):
        asyncio.run(delete(loaded, name, [*asyncio.run(open_map(loaded, name).dump())]))
    return loaded


@pytest.mark.parametrize(("which", "own"), [(0, BOTH), (1, ONLY_4), (2, ONLY_6)], ids=["both", "IPv4", "IPv6"])
def test_a_pod_sends_from_its_own_addresses(pod: Datapath, which: int, own: PodSource) -> None:
    asyncio.run(write(pod, "pod_sources", {DEVICE: own}))
    verdicts, dropped, before = {}, 0, pod.counters()
    for name, (packet, expected) in PACKETS.items():
        result = program_test_run(pod.program_fd("from_pod"), packet)
        assert result.data == packet, name
        verdicts[name] = result.verdict
        dropped += expected[which] == DROP
        counted = {reason: count - before[reason] for reason, count in pod.counters().items()}
        assert counted.pop(Reason.DROP_SOURCE) == dropped, name
        assert not any(counted.values()), name
    assert verdicts == {name: expected[which] for name, (_, expected) in PACKETS.items()}


def test_a_pod_that_nobody_knows_sends_nothing(pod: Datapath) -> None:
    asyncio.run(write(pod, "pod_sources", {Number(2): BOTH}))
    assert program_test_run(pod.program_fd("from_pod"), ipv4_frame("10.1.0.5", "10.2.0.7")).verdict == DROP
    asyncio.run(write(pod, "pod_sources", {DEVICE: BOTH}))
    assert program_test_run(pod.program_fd("from_pod"), ipv4_frame("10.1.0.5", "10.2.0.7")).verdict == NEXT
    asyncio.run(delete(pod, "pod_sources", [DEVICE]))
    assert program_test_run(pod.program_fd("from_pod"), ipv4_frame("10.1.0.5", "10.2.0.8")).verdict == DROP
