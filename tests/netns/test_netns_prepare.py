"""What a node is given before its first pod: forwarding, router addresses, and the way out it had before.

  node 1 (net + mount namespace)      node 2, a router
+------------------------------+     +-------------------+
|  lo 10.1.0.1, fd00:10:1::1   |     |                   |
|                         eth0 ======= eth0 fe80::2      |
|   default via fe80::2   <-- router advertisement       |
+------------------------------+     +-------------------+
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from netns_mesh import MeshNode
from netns_node import TIMEOUT, NetnsNode, join

from agent import netlink
from agent.bpf.hooks import Program
from agent.reserved_ports import ReservedPorts
from agent.underlay import UnderlaySetup
from agent.wireguard.device import LISTEN_PORT
from agent.wireguard.userspace import UserspaceDevice
from clustermesh.address import parse
from clustermesh.errors import Refused, Unavailable
from clustermesh.model import Node, NodeAddress

IPV6 = Path("/proc/sys/net/ipv6/conf")
# RFC 4861, section 4.2: type, code, checksum (the kernel's), hop limit, flags, router lifetime 1800 s, two timers
ADVERTISEMENT = bytes([134, 0, 0, 0, 64, 0]) + (1800).to_bytes(2, "big") + bytes(8)


@pytest.fixture
def routed(machine: None, tmp_path: Path) -> Iterator[tuple[MeshNode, NetnsNode]]:
    with ExitStack() as stack:
        node, router = MeshNode(1, tmp_path / "node1"), NetnsNode(2)
        for each in (node, router):
            stack.callback(each.close)
        join(node, router)
        node.run("ip -6 route del default")
        router.run("ip addr add fe80::2/64 dev eth0 nodad")
        yield node, router


def advertise(router: NetnsNode) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            device = socket.if_nametoindex("eth0")
            raw.bind(("fe80::2", 0, 0, device))
            raw.sendto(ADVERTISEMENT, ("ff02::1", 0, 0, device))

    router.call(send)


def default_routes(node: NetnsNode) -> list[str]:
    return [route["gateway"] for route in json.loads(node.run("ip -j -6 route show default"))]


def wait_for_route(node: NetnsNode, router: NetnsNode) -> None:
    end = time.monotonic() + TIMEOUT
    while default_routes(node) != ["fe80::2"]:
        assert time.monotonic() < end, "no default route from the router's advertisement"
        advertise(router)


def test_node_that_begins_to_forward_keeps_the_way_out_a_router_advertised(
    routed: tuple[MeshNode, NetnsNode],
) -> None:
    node, router = routed
    wait_for_route(node, router)
    for _ in range(2):
        node.do(netlink.prepare_node(node.routers))
        assert node.call((IPV6 / "all" / "forwarding").read_text) == "1\n"
        assert default_routes(node) == ["fe80::2"]
    node.run("ip -6 route del default")
    wait_for_route(node, router)  # and hears of it again


def test_device_that_was_told_not_to_listen_to_routers_is_left_so(routed: tuple[MeshNode, NetnsNode]) -> None:
    node, _ = routed
    node.run("sysctl -qw net.ipv6.conf.eth0.accept_ra=0")
    node.do(netlink.prepare_node(node.routers))
    assert node.call((IPV6 / "eth0" / "accept_ra").read_text) == "0\n"
    assert node.call((IPV6 / "default" / "accept_ra").read_text) == "1\n", "of devices to come, pods' too"


@pytest.mark.parametrize("family", [0, 1])
def test_node_forwards_the_families_that_it_has_pods_of(node: MeshNode, family: int) -> None:
    node.do(netlink.prepare_node(node.routers[family : family + 1]))
    forwarding = [Path("/proc/sys/net/ipv4/ip_forward"), IPV6 / "all" / "forwarding"]
    assert [node.call(each.read_text) for each in forwarding] == [["1\n", "0\n"], ["0\n", "1\n"]][family]
    shown = json.loads(node.run("ip -j addr show lo"))[0]["addr_info"]
    assert ["10.1.0.1", "fd00:10:1::1"][family] in [each["local"] for each in shown]
    assert ["10.1.0.1", "fd00:10:1::1"][1 - family] not in [each["local"] for each in shown]


def test_router_addresses_are_put_back_where_lo_lost_them(node: MeshNode) -> None:
    node.do(netlink.prepare_node(node.routers))
    node.run("ip link set lo down")  # takes its IPv6 addresses away
    node.do(netlink.prepare_node(node.routers))
    shown = {each["local"]: each["prefixlen"] for each in json.loads(node.run("ip -j addr show lo"))[0]["addr_info"]}
    assert shown.items() >= {"10.1.0.1": 32, "fd00:10:1::1": 128}.items()


def underlay(node: MeshNode, attaching: Callable[[], object] = lambda: None) -> UnderlaySetup:
    """Without programs."""
    strict = SimpleNamespace(mechanism="tcx link")

    def attach(_link: str, programs: Sequence[Program]) -> list[SimpleNamespace]:
        attaching()
        return [strict] * len(programs)

    datapath = SimpleNamespace(devices=SimpleNamespace(attach=attach))
    device = UserspaceDevice("cm-wg0", "the kernel has none", log=node.state / "wireguard-go.log")
    return UnderlaySetup(datapath, device, node.private_key, LISTEN_PORT)  # type: ignore[arg-type]


def own(node: MeshNode, *addresses: str) -> Node:
    found = tuple(NodeAddress(type="InternalIP", ip=parse(address)) for address in addresses)
    return Node(cluster="alpha", cluster_id=1, name="n1", addresses=found, pod_cidrs=node.cidrs)


@pytest.mark.usefixtures("wireguard_go")
@pytest.mark.parametrize("families", [["192.0.2.1"], ["2001:db8::1"], ["2001:db8::1", "192.0.2.1"]])
def test_underlay_is_the_device_with_the_nodes_address_of_either_family(
    routed: tuple[MeshNode, NetnsNode], families: list[str]
) -> None:
    node, _ = routed
    setup = underlay(node)
    assert node.do(setup.apply(own(node, *families))) is True
    assert setup.current is not None
    assert (setup.current.interface, setup.current.mtu) == ("eth0", 1420)
    assert node.do(setup.apply(own(node, *families))) is False


@pytest.mark.usefixtures("wireguard_go")
def test_attaching_programs_to_the_underlay_does_not_hold_the_event_loop(routed: tuple[MeshNode, NetnsNode]) -> None:
    node, _ = routed
    loops, turned = list[asyncio.AbstractEventLoop](), threading.Event()

    def attaching() -> None:
        loops[0].call_soon_threadsafe(turned.set)
        assert turned.wait(5), "nobody else had a turn"

    async def apply() -> None:
        loops.append(asyncio.get_running_loop())
        await underlay(node, attaching).apply(own(node, "192.0.2.1"))

    node.do(apply())


def test_underlay_that_is_not_this_machines_is_named(routed: tuple[MeshNode, NetnsNode]) -> None:
    node, _ = routed
    for address in ("192.0.2.99", "2001:db8::99"):
        with pytest.raises(Unavailable, match=f"no interface has this node's address {address}"):
            node.do(underlay(node).apply(own(node, address)))


def test_underlay_too_narrow_for_ipv6_is_refused_with_what_to_do(routed: tuple[MeshNode, NetnsNode]) -> None:
    node, _ = routed
    node.run("ip link set eth0 mtu 1340")
    with pytest.raises(Refused, match="eth0 has an MTU of 1340, which leaves 1260 for pods, and IPv6 needs 1280"):
        node.do(underlay(node).apply(own(node, "192.0.2.1")))


def test_ports_are_reserved_beside_those_that_are_and_taken_back_alone(node: MeshNode, tmp_path: Path) -> None:
    reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    node.call(lambda: reserved.write_text("8080,9000-9010\n"))
    for _ in range(2):  # agents
        assert node.call(lambda: ReservedPorts(tmp_path).hold(range(9005, 9021))) == ""
        assert node.call(reserved.read_text) == "8080,9000-9020\n"
    assert node.call(lambda: ReservedPorts(tmp_path).hold(range(61000, 65536))) == "9011-9020"
    assert node.call(reserved.read_text) == "8080,9000-9010,61000-65535\n"
    assert node.call(lambda: ReservedPorts(tmp_path).hold(())) == "61000-65535"
    assert node.call(reserved.read_text) == "8080,9000-9010\n"
    assert not (tmp_path / "reserved-ports").exists()
