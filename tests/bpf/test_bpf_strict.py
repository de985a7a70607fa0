"""Strict mode, packet by packet: what is dropped, what passes to the next program, and what is counted."""

from __future__ import annotations

import asyncio

import pytest
from bpf_maps import write
from bpf_packets import ETH_ARP, ETH_IPV4, ETH_IPV6, frame, ipv4, ipv4_frame, ipv6, ipv6_frame
from bpf_run import program_test_run

from agent.bpf.layouts import IpcacheValue, NodeIdentity, Reason, pack_cidr
from agent.bpf.loader import Datapath
from clustermesh.address import parse, parse_prefix

pytestmark = pytest.mark.root

NEXT, DROP = -1, 2  # TCX_NEXT and TCX_DROP, which under clsact are TC_ACT_UNSPEC and TC_ACT_SHOT

# Pods 10.1.0.5 and 10.2.0.7 are known one by one, all of 10.3.0.0/24 by its CIDR only. 10.1.0.1 is the router address
# of node 192.168.0.1, inside a pod CIDR; 192.168.0.2 is the other node. On each of 192.168.0.4 and .5 runs a pod of the
# host's network; 10.3.0.44 claims to be one, and is in a pod CIDR all the same.
ADDRESSES = {
    "10.1.0.5": 70000,
    "10.2.0.7": 131072,
    "10.1.0.1": NodeIdentity.HOST,
    "192.168.0.1": NodeIdentity.HOST,
    "192.168.0.2": NodeIdentity.REMOTE_NODE,
    "192.168.0.3": NodeIdentity.KUBE_APISERVER,
    "fd10:1::5": 70000,
    "fd10:2::7": 131072,
    "fd10:1::1": NodeIdentity.HOST,
    "fd92::1": NodeIdentity.HOST,
    "fd92::2": NodeIdentity.REMOTE_NODE,
}
HOST_NETWORK = {"192.168.0.4": 70001, "192.168.0.5": 131073, "10.3.0.44": 131074, "fd92::4": 70001, "fd92::5": 131073}
CIDRS = {"10.1.0.0/24": 2, "10.3.0.0/24": 2, "10.9.0.0/16": NodeIdentity.REMOTE_NODE}
CIDRS |= {"fd10:1::/64": 2, "fd10:3::/64": 2, "fd19::/32": NodeIdentity.REMOTE_NODE}
# Whoever claims everything claims not what neighbours find each other by.
CIDRS |= {"fe80::/10": 2, "ff00::/8": 2}

PACKETS = {
    "pod to pod": (ipv4_frame("10.1.0.5", "10.2.0.7"), DROP),
    "pod to pod, back": (ipv4_frame("10.2.0.7", "10.1.0.5"), DROP),
    "pod to pod, TCP": (ipv4_frame("10.1.0.5", "10.2.0.7", 6), DROP),
    "pod to pod, ICMP": (ipv4_frame("10.1.0.5", "10.2.0.7", 1), DROP),
    "pod to pod, a protocol nobody knows": (ipv4_frame("10.1.0.5", "10.2.0.7", 253), DROP),
    "pod to itself": (ipv4_frame("10.1.0.5", "10.1.0.5"), DROP),
    "pod to an address of a pod CIDR": (ipv4_frame("10.1.0.5", "10.3.0.9"), DROP),
    "one pod CIDR to another": (ipv4_frame("10.3.0.1", "10.1.0.77"), DROP),
    "pod to a router address": (ipv4_frame("10.3.0.1", "10.1.0.1"), DROP),
    "first address outside the CIDR": (ipv4_frame("10.1.0.5", "10.3.1.0"), NEXT),
    "last address of the CIDR": (ipv4_frame("10.1.0.5", "10.3.0.255"), DROP),
    "first fragment": (frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", fragment=0x2000)), DROP),
    "later fragment": (frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", fragment=0x00B9)), DROP),
    "options": (frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", options=b"\x94\x04\x00\x00")), DROP),
    "all options there is room for": (frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7", options=b"\x01" * 40)), DROP),
    "header and nothing else": (frame(ETH_IPV4, ipv4("10.1.0.5", "10.2.0.7")[:20]), DROP),
    "pod to world": (ipv4_frame("10.1.0.5", "198.51.100.1"), NEXT),
    "world to pod": (ipv4_frame("198.51.100.1", "10.1.0.5"), NEXT),
    "world to world": (ipv4_frame("198.51.100.1", "198.51.100.2"), NEXT),
    "node to node: WireGuard": (ipv4_frame("192.168.0.1", "192.168.0.2", 17), NEXT),
    "node to node: TCP": (ipv4_frame("192.168.0.2", "192.168.0.1", 6), NEXT),
    "pod to node": (ipv4_frame("10.1.0.5", "192.168.0.2"), NEXT),
    "node to API server": (ipv4_frame("192.168.0.1", "192.168.0.3"), NEXT),
    "WireGuard between nodes with pods of the host's network": (ipv4_frame("192.168.0.4", "192.168.0.5", 17), NEXT),
    "pod to a pod of the host's network": (ipv4_frame("10.1.0.5", "192.168.0.4"), NEXT),
    "pod to an address of a pod CIDR that claims to be a host": (ipv4_frame("10.1.0.5", "10.3.0.44"), DROP),
    "nodes known by their CIDR": (ipv4_frame("10.9.1.1", "10.1.0.5"), NEXT),
    "ARP": (frame(ETH_ARP, bytes.fromhex("0001080006040001") + bytes(20)), NEXT),
    "IPv6: pod to pod": (ipv6_frame("fd10:1::5", "fd10:2::7"), DROP),
    "IPv6: pod to pod, back": (ipv6_frame("fd10:2::7", "fd10:1::5", 6), DROP),
    "IPv6: pod to an address of a pod CIDR": (ipv6_frame("fd10:1::5", "fd10:3::9"), DROP),
    "IPv6: one pod CIDR to another": (ipv6_frame("fd10:3::1", "fd10:1::77"), DROP),
    "IPv6: pod to a router address": (ipv6_frame("fd10:3::1", "fd10:1::1"), DROP),
    "IPv6: last address of the CIDR": (ipv6_frame("fd10:1::5", "fd10:3::ffff:ffff:ffff:ffff"), DROP),
    "IPv6: first address outside the CIDR": (ipv6_frame("fd10:1::5", "fd10:3:0:1::"), NEXT),
    "IPv6: later fragment": (ipv6_frame("fd10:1::5", "fd10:2::7", 44), DROP),
    "IPv6: extension headers": (ipv6_frame("fd10:1::5", "fd10:2::7", 0), DROP),
    "IPv6: header and nothing else": (frame(ETH_IPV6, ipv6("fd10:1::5", "fd10:2::7")[:40]), DROP),
    "IPv6: pod to world": (ipv6_frame("fd10:1::5", "2001:db8::1"), NEXT),
    "IPv6: world to pod": (ipv6_frame("2001:db8::1", "fd10:1::5"), NEXT),
    "IPv6: node to node: WireGuard": (ipv6_frame("fd92::1", "fd92::2"), NEXT),
    "IPv6: pod to node": (ipv6_frame("fd10:1::5", "fd92::2"), NEXT),
    "IPv6: WireGuard between nodes with pods of the host's network": (ipv6_frame("fd92::4", "fd92::5"), NEXT),
    "IPv6: nodes known by their CIDR": (ipv6_frame("fd19::1", "fd10:1::5"), NEXT),
    "IPv6: who has this pod's address": (ipv6_frame("fd10:1::5", "ff02::1:ff00:7", 58), NEXT),
    "IPv6: neighbours": (ipv6_frame("fe80::1", "fe80::2", 58), NEXT),
    "IPv6: a neighbour answers a pod": (ipv6_frame("fe80::1", "fd10:1::5", 58), NEXT),
    "IPv6: a router to all nodes": (ipv6_frame("fe80::1", "ff02::1", 58), NEXT),
    "IPv6 from nobody to nobody": (frame(ETH_IPV6, b"\x60" + bytes(39)), NEXT),
    "IPv6 that names mapped IPv4 addresses": (ipv6_frame("::ffff:10.1.0.5", "::ffff:10.2.0.7"), DROP),
    "an IPv4 packet under another name": (frame(0x88B5, ipv4("10.1.0.5", "10.2.0.7")), NEXT),
}


@pytest.fixture
def known(datapath: Datapath) -> Datapath:
    """The datapath with everybody of the table above in its ipcache."""
    addresses = {parse(ip): IpcacheValue(identity) for ip, identity in ADDRESSES.items()}
    addresses |= {parse(ip): IpcacheValue(n, parse(ip)) for ip, n in HOST_NETWORK.items()}
    cidrs = {pack_cidr(parse_prefix(cidr)): IpcacheValue(identity) for cidr, identity in CIDRS.items()}
    asyncio.run(write(datapath, "ipcache", addresses))
    asyncio.run(write(datapath, "ipcache_cidr", cidrs))
    return datapath


DIRECTIONS = {"strict_ingress": Reason.DROP_CLEAR_INGRESS, "strict_egress": Reason.DROP_CLEAR_EGRESS}


@pytest.mark.both_loaders
@pytest.mark.parametrize(("program", "reason"), DIRECTIONS.items())
def test_strict_drops_and_counts_what_two_mesh_pods_say_in_clear(known: Datapath, program: str, reason: Reason) -> None:
    verdicts, dropped = {}, 0
    for name, (packet, expected) in PACKETS.items():
        result = program_test_run(known.program_fd(program), packet)
        assert result.data == packet, name
        verdicts[name] = result.verdict
        dropped += expected == DROP
        counters = known.counters()
        assert counters.pop(reason) == dropped, name
        assert not any(counters.values()), name
    assert verdicts == {name: expected for name, (_, expected) in PACKETS.items()}


def test_strict_knows_nobody_and_drops_nothing_while_the_ipcache_is_empty(datapath: Datapath) -> None:
    for packet, _ in PACKETS.values():
        assert program_test_run(datapath.program_fd("strict_egress"), packet).verdict == NEXT
    assert not any(datapath.counters().values())
