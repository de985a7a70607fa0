"""Pods of one node: attached, looked at, detached, through the plugin as a container runtime runs it.

  node 1 (net + mount namespace)
+-----------------------------------------------------------+
|   pod a            pod b                     lo 10.1.0.1   |
|  10.1.0.2/32      10.1.0.3/32            fd00:10:1::1      |
|  fd00:10:1::2/128 fd00:10:1::3/128         (the routers)   |
|   eth0              eth0                                   |
|    |                 |                                     |
|  lxc1234...        lxc5678...                              |
|  10.1.0.2/32 ->    10.1.0.3/32 ->                          |
+-----------------------------------------------------------+
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netns_mesh import MTU, MeshNode

from agent import netlink
from agent.cni import veth
from agent.cni.endpoint import EndpointRequest, host_ifname
from agent.cni.ipam import Ipam
from agent.cni.local_pods import Endpoints
from agent.plan.attached import AttachedPods
from clustermesh.address import parse, parse_prefix
from clustermesh.errors import Invalid, Refused, Unavailable

RESULT = {"ips": [{"address": "10.1.0.2/32"}, {"address": "fd00:10:1::2/128"}]}


@pytest.fixture
def attached(node: MeshNode) -> Iterator[MeshNode]:
    """A node whose agent answers the plugin; it has no tunnel."""
    node.do(netlink.prepare_node(node.routers))
    node.start_pods()
    yield node
    node.stop_pods()


def request(pod: str, container: str = "") -> EndpointRequest:
    return EndpointRequest(container_id=container or f"container-{pod}", ifname="eth0", netns=f"/run/netns/{pod}")


def devices(node: MeshNode) -> set[str]:
    return {link["ifname"] for link in json.loads(node.run("ip -j link"))} - {"lo"}


def addresses(node: MeshNode, ip: str, device: str) -> list[Any]:
    """As `ip` shows them, without link-local ones."""
    shown = json.loads(node.run(f"{ip} -j addr show {device}"))
    found = [each for link in shown for each in link.get("addr_info", [])]
    return [each for each in found if each and each["scope"] == "global"]


def test_pods_of_one_node_talk_to_each_other_and_to_their_node(attached: MeshNode) -> None:
    pods_a, pods_b = attached.make_dual_pod("a"), attached.make_dual_pod("b")
    assert (pods_a, pods_b) == (("10.1.0.2", "fd00:10:1::2"), ("10.1.0.3", "fd00:10:1::3"))
    with attached.tcp_server("b") as server:
        for a, b in zip(pods_a, pods_b, strict=True):
            assert attached.talk("a", server, b) == a
            to_b = attached.call(lambda b=b: socket.create_connection((b, 8080), 10))  # type: ignore[misc]
            with to_b, server.accept()[0]:
                pass


def test_pod_has_one_address_of_each_family_and_asks_nobody_for_a_neighbour(attached: MeshNode) -> None:
    attached.make_pod("a")
    inside = "ip netns exec a ip"
    (link,) = json.loads(attached.run(f"{inside} -j link show eth0"))
    assert (link["mtu"], "UP" in link["flags"]) == (MTU, True)
    shown = addresses(attached, "ip netns exec a ip", "eth0")
    assert [(each["local"], each["prefixlen"]) for each in shown] == [("10.1.0.2", 32), ("fd00:10:1::2", 128)]
    assert not any(each.get("tentative") for each in shown)
    for family, router, own in ((4, "10.1.0.1", "10.1.0.2"), (6, "fd00:10:1::1", "fd00:10:1::2")):
        routes = json.loads(attached.run(f"{inside} -j -{family} route"))
        found = {route["dst"]: route.get("gateway") for route in routes if route.get("protocol") != "kernel"}
        assert found == {"default": router, router: None}
        (neighbour,) = json.loads(attached.run(f"{inside} -j -{family} neigh show nud permanent"))
        assert neighbour["dst"] == router
        (pod,) = json.loads(attached.run(f"ip -j -{family} neigh show nud permanent"))
        assert (pod["dst"], pod["lladdr"]) == (own, link["address"])


def test_pod_receives_at_each_of_its_addresses_as_soon_as_it_is_attached(node: MeshNode, tmp_path: Path) -> None:
    """The kernel itself is later with those of IPv6, now and then."""
    endpoints = Endpoints(tmp_path, [Ipam(cidr) for cidr in node.cidrs], AttachedPods(), mtu=MTU)
    node.do(endpoints.restore())

    async def ways(netns: Path, *addresses: str) -> list[int]:
        async with netlink.connect("look", netns) as ip:
            return [way["type"] for address in addresses for way in await ip.route("get", dst=address)]

    async def attach(pod: str) -> list[int]:
        added = await endpoints.add(request(pod))
        return await ways(Path(added.netns), added.ip, added.ip6)

    for number in range(60):
        node.run(f"ip netns add p{number}")
        assert node.do(attach(f"p{number}")) == [2, 2], "local"


def test_pod_cannot_make_itself_a_router_nor_be_made_to_believe_in_one(attached: MeshNode) -> None:
    attached.make_pod("a")
    host = Path("/proc/sys/net/ipv6/conf", host_ifname("container-a", "eth0"))
    assert attached.call((host / "accept_ra").read_text) == "0\n"
    assert attached.run("ip netns exec a cat /proc/sys/net/ipv6/conf/eth0/accept_ra") == "0\n"
    assert addresses(attached, "ip", host.name) == [], "towards its pods the node has the routers' on lo alone"


def test_pod_gets_ipv6_in_a_namespace_where_it_is_disabled(attached: MeshNode) -> None:
    attached.run("ip netns add a")
    for device in ("all", "default"):
        attached.run(f"ip netns exec a sysctl -qw net.ipv6.conf.{device}.disable_ipv6=1")
    assert attached.cni("ADD", "a")[0] == 0
    attached.make_pod("b")
    with attached.tcp_server("b") as server:
        assert attached.talk("a", server, "fd00:10:1::3") == "fd00:10:1::2"


@pytest.mark.parametrize(
    ("family", "address", "gateway"), [(0, "10.1.0.2/32", "10.1.0.1"), (1, "fd00:10:1::2/128", "fd00:10:1::1")]
)
def test_node_of_one_family_has_pods_of_one_family(node: MeshNode, family: int, address: str, gateway: str) -> None:
    node.cidrs, node.routers = node.cidrs[family : family + 1], node.routers[family : family + 1]
    node.do(netlink.prepare_node(node.routers))
    node.start_pods()
    for pod in ("a", "b"):
        node.run(f"ip netns add {pod}")
        status, result = node.cni("ADD", pod)
        assert status == 0
    status, result = node.cni("ADD", "a")
    assert [(ip["address"], ip["gateway"]) for ip in result["ips"]] == [(address, gateway)]
    with node.tcp_server("a") as server:
        node.talk("b", server, address.partition("/")[0])
    assert node.cni("CHECK", "a", prevResult=result) == (0, None)
    assert len(addresses(node, "ip netns exec a ip", "eth0")) == 1
    node.stop_pods()


def test_router_address_that_is_not_the_first_is_no_pods_and_the_gateway_of_all(node: MeshNode) -> None:
    """A Node's CiliumInternalIP may be any address of its pod CIDR."""
    node.routers = (parse("10.1.0.3"), parse("fd00:10:1::2"))
    node.do(netlink.prepare_node(node.routers))
    node.start_pods()
    pods = [node.make_dual_pod(pod) for pod in ("a", "b", "c")]
    assert pods == [("10.1.0.1", "fd00:10:1::1"), ("10.1.0.2", "fd00:10:1::3"), ("10.1.0.4", "fd00:10:1::4")]
    with node.tcp_server("a") as server:
        for address in pods[0]:
            node.talk("c", server, address)
    for family, router in ((4, "10.1.0.3"), (6, "fd00:10:1::2")):
        (route,) = json.loads(node.run(f"ip netns exec c ip -j -{family} route show default"))
        assert route["gateway"] == router
    node.stop_pods()


def test_pod_is_reached_whatever_way_its_packets_came(attached: MeshNode) -> None:
    """A reverse path filter would drop what enters by the tunnel and leaves by the underlay."""
    attached.call(lambda: netlink.set_rp_filter("default", 2))
    attached.make_pod("a")
    folder = Path("/proc/sys/net/ipv4/conf")
    for device in ("all", host_ifname("container-a", "eth0")):
        assert attached.call((folder / device / "rp_filter").read_text) == "0\n"


def test_add_repeated_returns_the_same_pod(attached: MeshNode) -> None:
    attached.run("ip netns add a")
    first, second = attached.cni("ADD", "a"), attached.cni("ADD", "a")
    assert first == second
    assert len(devices(attached)) == 1


def test_container_that_comes_again_in_another_namespace_is_moved_there(attached: MeshNode) -> None:
    attached.make_pod("a")
    attached.run("ip netns add b")
    moved = EndpointRequest(container_id="container-a", ifname="eth0", netns="/run/netns/b")
    assert attached.do(attached.endpoints.add(moved)).ip == "10.1.0.2"
    for address in ("10.1.0.2", "fd00:10:1::2"):
        assert address in attached.run("ip netns exec b ip addr show eth0")
        assert address not in attached.run("ip netns exec a ip addr")


def test_two_adds_at_once_make_two_pods_and_the_same_twice_makes_one(attached: MeshNode) -> None:
    for pod in ("a", "b"):
        attached.run(f"ip netns add {pod}")

    async def add_all() -> list[str]:
        return [r.ip for r in await asyncio.gather(*(attached.endpoints.add(request(pod)) for pod in "abab"))]

    assert attached.do(add_all()) == ["10.1.0.2", "10.1.0.3"] * 2
    assert devices(attached) == {host_ifname(f"container-{pod}", "eth0") for pod in "ab"}


def test_del_removes_everything_and_again_is_success(attached: MeshNode) -> None:
    attached.make_pod("a")
    for _ in range(2):
        assert attached.cni("DEL", "a") == (0, None)
        assert devices(attached) == set()
        assert attached.run("ip -4 route show proto 178") == attached.run("ip -6 route show proto 178") == ""
        assert list((attached.state / "endpoints").iterdir()) == []
    assert attached.endpoints.records == {}


def test_del_after_the_namespace_is_gone(attached: MeshNode) -> None:
    attached.make_pod("a")
    attached.run("ip netns del a")
    assert attached.cni("DEL", "a") == (0, None)
    assert attached.endpoints.records == {}
    assert list((attached.state / "endpoints").iterdir()) == []


def test_freed_address_is_not_used_at_once(attached: MeshNode) -> None:
    attached.make_pod("a")
    assert attached.cni("DEL", "a") == (0, None)
    assert attached.make_pod("b") == "10.1.0.3"


def test_add_that_fails_leaves_nothing(attached: MeshNode) -> None:
    attached.run("ip netns add a")
    attached.run("ip netns exec a ip link add eth0 type bridge")  # the name is taken
    status, error = attached.cni("ADD", "a")
    assert (status, error["code"]) == (1, 100)
    assert "File exists" in error["msg"]
    status, error = attached.cni("ADD", "nowhere")
    assert status == 1
    assert "No such file" in error["msg"]
    assert devices(attached) == set()
    assert attached.endpoints.records == {}
    assert list((attached.state / "endpoints").iterdir()) == []
    assert attached.make_pod("b") == "10.1.0.4"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("ip link del {device}", "the node has no device"),
        ("ip route del 10.1.0.2/32", "no route to 10.1.0.2"),
        ("ip route del fd00:10:1::2/128", "no route to fd00:10:1::2"),
        ("ip netns exec a ip link set eth0 down", "it is down"),
        ("ip netns exec a ip addr flush dev eth0", "does not have 10.1.0.2"),
        ("ip netns exec a ip -6 addr flush dev eth0", "does not have fd00:10:1::2"),
        ("ip netns exec a ip route del default", "no default route by 10.1.0.1"),
        ("ip netns exec a ip -6 route del default", "no default route by fd00:10:1::1"),
        ("ip netns exec a ip link set eth0 address 02:00:00:00:00:99", "has MAC 02:00:00:00:00:99"),
    ],
)
def test_check_finds_what_is_missing_and_add_repairs_it(attached: MeshNode, damage: str, fault: str) -> None:
    attached.make_pod("a")
    assert attached.cni("CHECK", "a", prevResult=RESULT) == (0, None)
    attached.run(damage.format(device=host_ifname("container-a", "eth0")))
    status, error = attached.cni("CHECK", "a", prevResult=RESULT)
    assert status == 1
    assert fault in error["msg"]
    status, result = attached.cni("ADD", "a")
    assert (status, result["ips"][0]["address"]) == (0, "10.1.0.2/32")
    assert attached.cni("CHECK", "a", prevResult=RESULT) == (0, None)


def test_restarted_agent_knows_its_pods_and_their_addresses(attached: MeshNode) -> None:
    attached.make_pod("a")
    before = dict(attached.endpoints.records)
    attached.stop_pods()
    attached.start_pods()
    assert attached.endpoints.records == before
    assert attached.make_pod("b") == "10.1.0.3"
    assert attached.cni("CHECK", "a", prevResult=RESULT) == (0, None)


def test_pods_of_the_version_before_keep_their_one_address(attached: MeshNode) -> None:
    """And the version before finds its pods again after this one wrote their files."""
    attached.make_pod("a")
    attached.stop_pods()
    (file,) = (attached.state / "endpoints").iterdir()
    record = json.loads(file.read_text())
    assert (record["ip"], record["gateway"]) == ("10.1.0.2", "10.1.0.1")
    assert (record.pop("ip6"), record.pop("gateway6")) == ("fd00:10:1::2", "fd00:10:1::1")
    file.write_text(json.dumps(record))
    attached.run("ip netns exec a ip -6 addr flush dev eth0")
    attached.start_pods()
    old = {"ips": [{"address": "10.1.0.2/32"}]}
    assert attached.cni("CHECK", "a", prevResult=old) == (0, None)
    assert [ip["address"] for ip in attached.cni("ADD", "a")[1]["ips"]] == ["10.1.0.2/32"]
    assert attached.make_dual_pod("b") == ("10.1.0.3", "fd00:10:1::3"), "its route was still there"
    assert attached.cni("DEL", "a") == (0, None)


def test_garbage_is_every_pod_that_the_runtime_does_not_name(attached: MeshNode) -> None:
    for pod in ("a", "b"):
        attached.make_pod(pod)
    attached.do(attached.endpoints.keep_only([("container-b", "eth0"), ("container-c", "eth0")]))
    assert devices(attached) == {host_ifname("container-b", "eth0")}
    assert set(attached.endpoints.records) == {("container-b", "eth0")}


def test_address_of_a_pod_whose_file_is_lost_is_not_given_away(attached: MeshNode) -> None:
    attached.make_pod("a")
    attached.stop_pods()
    (file,) = (attached.state / "endpoints").iterdir()
    file.write_text("{torn")
    attached.start_pods()
    assert file.name in attached.endpoints.problems
    assert attached.make_pod("b") == "10.1.0.3"
    assert attached.cni("DEL", "a") == (0, None)  # found by its name alone
    assert devices(attached) == {host_ifname("container-b", "eth0")}


def test_pods_that_a_reboot_took_are_forgotten(attached: MeshNode) -> None:
    attached.make_pod("a")
    attached.stop_pods()
    attached.run("ip netns del a")
    attached.do(netlink.delete_link(host_ifname("container-a", "eth0")))
    attached.start_pods()
    assert attached.endpoints.records == {}
    assert list((attached.state / "endpoints").iterdir()) == []


def test_pod_deleted_while_the_agent_was_down_is_gone_when_it_is_back(attached: MeshNode) -> None:
    attached.make_pod("a")
    attached.stop_pods()
    assert attached.cni("DEL", "a") == (0, None)
    assert len(devices(attached)) == 1
    attached.start_pods()
    assert devices(attached) == set()
    assert attached.endpoints.records == {}


def test_deletion_that_cannot_be_read_stays_and_is_shown(attached: MeshNode) -> None:
    queue = attached.state / "queue"
    queue.mkdir()
    (queue / "torn.json").write_text('{"container_id": "x"')
    (queue / "hostile.json").write_text('{"container_id": "../../etc", "ifname": "eth0"}')
    assert attached.do(attached.endpoints.drain(queue)) == 0
    assert attached.endpoints.problems.keys() == {"torn.json", "hostile.json"}


def test_full_pod_cidr_is_a_clear_error(node: MeshNode, tmp_path: Path) -> None:
    pools = [Ipam(parse_prefix("fd00:10:1::/64")), Ipam(parse_prefix("10.1.0.0/29"))]
    endpoints = Endpoints(tmp_path, pools, AttachedPods(), mtu=MTU)
    node.do(endpoints.restore())
    node.run("ip netns add a")
    for number in range(5):
        node.run(f"ip netns add full{number}")
        node.do(endpoints.add(request(f"full{number}")))
    with pytest.raises(Refused, match=r"all 5 pod addresses of 10\.1\.0\.0/29 are in use"):
        node.do(endpoints.add(request("a")))
    assert pools[0].used == 5, "no address of the other family is lost"
    node.do(endpoints.delete(request("full2")))
    assert node.do(endpoints.add(request("a"))).ip == "10.1.0.4"


def test_pod_is_not_attached_when_it_cannot_be_remembered(node: MeshNode, tmp_path: Path) -> None:
    """A full disk: an address that a restarted agent does not know of would be given to a second pod."""
    endpoints = Endpoints(tmp_path, [Ipam(parse_prefix("10.1.0.0/24"))], AttachedPods(), mtu=MTU)
    node.do(endpoints.restore())
    node.run("ip netns add a")
    node.run(f"mount -t tmpfs -o size=4k,nr_inodes=1 tmpfs {tmp_path}/endpoints")
    with pytest.raises(Unavailable, match="No space left on device"):
        node.do(endpoints.add(request("a")))
    assert devices(node) == set()
    assert endpoints.records == {}


def test_a_read_only_folder_takes_no_address_and_says_so_until_it_can_be_written(
    node: MeshNode, tmp_path: Path
) -> None:
    endpoints = Endpoints(tmp_path, [Ipam(parse_prefix("10.1.0.0/29"))], AttachedPods(), mtu=MTU)
    node.do(endpoints.restore())
    node.run(f"mount -t tmpfs tmpfs {tmp_path}/endpoints")
    node.run(f"mount -o remount,ro {tmp_path}/endpoints")
    for number in range(6):  # more than there are addresses
        node.run(f"ip netns add a{number}")
        with pytest.raises(Unavailable, match="Read-only file system"):
            node.do(endpoints.add(request(f"a{number}")))
        node.do(endpoints.delete(request(f"a{number}")))
    assert devices(node) == set()
    assert endpoints.records == {}
    endpoints = Endpoints(tmp_path, [Ipam(parse_prefix("10.1.0.0/29"))], AttachedPods(), mtu=MTU)
    node.do(endpoints.restore())
    assert endpoints.unwritable == f"{tmp_path}/endpoints: Read-only file system"
    node.run(f"mount -o remount,rw {tmp_path}/endpoints")
    node.do(endpoints.look_at_disk())
    assert endpoints.unwritable == ""
    assert node.do(endpoints.add(request("a0"))).ip


@pytest.mark.parametrize("container", ["", "../x", "a/b", ".hidden", "x" * 201, "a\nb"])
def test_name_that_would_leave_the_folder_is_invalid(node: MeshNode, tmp_path: Path, container: str) -> None:
    endpoints = Endpoints(tmp_path, [Ipam(parse_prefix("10.1.0.0/24"))], AttachedPods(), mtu=MTU)
    bad = EndpointRequest(container_id=container, ifname="eth0", netns="/run/netns/a")
    for verb in (endpoints.add, endpoints.delete, endpoints.check):
        with pytest.raises(Invalid):
            node.do(verb(bad))


def test_detaching_what_is_absent_is_success(node: MeshNode) -> None:
    node.do(veth.detach("lxc-nothing"))
