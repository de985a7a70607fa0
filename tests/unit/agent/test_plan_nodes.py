"""Who is a peer, which routes there are, and why a node has no tunnel."""

from __future__ import annotations

import base64

import pytest

from agent.bpf.layouts import NO_ADDRESS, CidrKey
from agent.plan.nodes import PodPool, plan_endpoint, plan_nodes, pod_pools
from agent.plan.routes import Route, RouteKey
from clustermesh.address import parse, parse_prefix, single
from clustermesh.mesh.authority import Ground, Place
from clustermesh.model import Endpoint, Node, NodeAddress

BETA, BETA6 = parse_prefix("10.1.3.0/24"), parse_prefix("fd00:10:1:3::/64")


def key(seed: int) -> str:
    return base64.b64encode(bytes([seed]) * 32).decode()


def node(cluster: str, number: int, wireguard_key: str | None = None, ip: str | None = None) -> Node:
    address = f"192.0.2.{number}" if ip is None else ip
    return Node(
        cluster=cluster,
        cluster_id=1,
        name=f"n{number}",
        addresses=(NodeAddress(type="InternalIP", ip=parse(address)),) if address else (),
        pod_cidrs=(parse_prefix(f"10.1.{number}.0/24"),),
        wireguard_public_key=key(number) if wireguard_key is None else wireguard_key,
    )


def plan(*others: Node):  # type: ignore[no-untyped-def]  # NodePlan
    return plan_nodes([node("alpha", 1), *others], "alpha", "n1", "wg", 51871)


def test_every_other_node_is_a_peer_with_its_pod_cidr_a_route_and_a_blackhole_under_it() -> None:
    found = plan(node("alpha", 2), node("beta", 3))
    assert {peer.endpoint: peer.allowed_ips for peer in found.peers.values()} == {
        parse("192.0.2.2"): (parse_prefix("10.1.2.0/24"),),
        parse("192.0.2.3"): (parse_prefix("10.1.3.0/24"),),
    }
    assert found.routes[RouteKey(BETA, 0)] == Route("unicast", "wg", parse("10.1.1.1"))
    assert found.routes[RouteKey(BETA, 4096)] == Route("blackhole")
    assert not any(route.dst == parse_prefix("10.1.1.0/24") for route in found.routes), "no route away for the own pods"
    assert found.problems == {}


def test_every_pod_cidr_is_in_the_ipcache_the_own_one_too() -> None:
    found = plan(node("beta", 3))
    assert set(found.cidrs) == {CidrKey.of(parse_prefix("10.1.1.0/24")), CidrKey.of(parse_prefix("10.1.3.0/24"))}
    assert found.cidrs[CidrKey.of(parse_prefix("10.1.3.0/24"))].tunnel_endpoint == parse("192.0.2.3")


def test_what_would_cut_this_node_off_is_left_out_everywhere_and_said_of_its_node() -> None:
    ground = Ground([Place(single(parse("10.1.3.9")), "the etcd of alpha", lifeline=True)])
    nodes = [node("alpha", 1), node("beta", 3), node("beta", 4)]
    found = plan_nodes(nodes, "alpha", "n1", "wg", 51871, ground)
    assert {key.dst for key in found.routes} == {parse_prefix("10.1.4.0/24")}
    assert CidrKey.of(parse_prefix("10.1.3.0/24")) not in found.cidrs, "strict mode would drop what is not encrypted"
    assert {peer.endpoint: peer.allowed_ips for peer in found.peers.values()}[parse("192.0.2.3")] == ()
    assert "10.1.3.0/24 holds 10.1.3.9, the etcd of alpha" in found.problems["beta/n3"]
    assert "beta/n4" not in found.problems


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (node("beta", 3, wireguard_key=""), "has no WireGuard key yet"),
        (node("beta", 3, wireguard_key="AAAA"), "must be base64 of 32 bytes"),
        (node("beta", 3, wireguard_key=key(3)[:-2] + "B="), "must be base64 of 32 bytes"),
        (node("beta", 3, wireguard_key=key(0)), "not all zero"),
        (node("beta", 3, ip="0.0.0.0"), "must be the address of one machine"),
        (node("beta", 3, ip="224.0.0.1"), "must be the address of one machine"),
        (node("beta", 3, wireguard_key=key(1)), "has this node's own WireGuard key"),
        (node("beta", 3, ip=""), "has no InternalIP"),
    ],
)
def test_a_node_without_a_usable_key_or_address_has_a_blackhole_and_a_problem(other: Node, sentence: str) -> None:
    found = plan(other)
    assert found.peers == {}
    assert sentence in found.problems["beta/n3"]
    assert found.routes == {RouteKey(BETA, 4096): Route("blackhole")}


def test_the_second_node_with_a_key_is_left_out() -> None:
    found = plan(node("beta", 3), node("gamma", 4, wireguard_key=key(3)))
    assert [peer.endpoint for peer in found.peers.values()] == [parse("192.0.2.3")]
    assert "key of another node" in found.problems["gamma/n4"]


def test_without_the_own_node_there_are_still_peers() -> None:
    found = plan_nodes([node("beta", 3)], "alpha", "n1", "wg", 51871)
    assert found.own is None
    assert len(found.peers) == 1


def dual(number: int, *addresses: str, cluster: str = "alpha") -> Node:
    """A node with a pod CIDR of each family and these addresses, "InternalIP 192.0.2.1" each."""
    return Node(
        cluster=cluster,
        cluster_id=1,
        name=f"n{number}",
        addresses=tuple(NodeAddress(type=kind, ip=parse(ip)) for kind, ip in map(str.split, addresses)),
        pod_cidrs=(parse_prefix(f"10.1.{number}.0/24"), parse_prefix(f"fd00:10:1:{number}::/64")),
        wireguard_public_key=key(number),
    )


def test_a_peer_of_both_families_has_both_routes_each_from_the_router_of_its_family() -> None:
    own = dual(1, "InternalIP 192.0.2.1", "CiliumInternalIP fd00:10:1:1::77")
    found = plan_nodes([own, dual(3, "InternalIP 192.0.2.3", cluster="beta")], "alpha", "n1", "wg", 51871)
    assert found.peers[key(3)].allowed_ips == (BETA, BETA6)
    assert found.routes == {
        RouteKey(BETA, 0): Route("unicast", "wg", parse("10.1.1.1")),
        RouteKey(BETA6, 1): Route("unicast", "wg", parse("fd00:10:1:1::77")),
        RouteKey(BETA, 4096): Route("blackhole"),
        RouteKey(BETA6, 4096): Route("blackhole"),
    }


def test_a_node_of_one_family_has_routes_of_that_family_only() -> None:
    found = plan(dual(3, "InternalIP 192.0.2.3", cluster="beta"))
    assert found.peers[key(3)].allowed_ips == (BETA,)
    assert {route.dst for route in found.routes} == {BETA}


@pytest.mark.parametrize(
    ("own", "other", "end"),
    [
        (["InternalIP 192.0.2.1"], ["InternalIP 192.0.2.3", "InternalIP fd00::3"], "192.0.2.3"),
        (["InternalIP fd00::1"], ["InternalIP 192.0.2.3", "InternalIP fd00::3"], "fd00::3"),
        (["InternalIP fd00::1", "InternalIP 192.0.2.1"], ["InternalIP fd00::3", "InternalIP 192.0.2.3"], "192.0.2.3"),
        (["InternalIP fd00::1", "InternalIP 192.0.2.1"], ["InternalIP fd00::3"], "fd00::3"),
        (["InternalIP fd00::1"], ["InternalIP 192.0.2.3", "ExternalIP 2001:db8::3"], "2001:db8::3"),
        (["InternalIP fd00::1"], ["InternalIP 192.0.2.3"], "192.0.2.3"),
    ],
)
def test_a_tunnel_ends_at_an_address_of_a_family_that_both_have(own: list[str], other: list[str], end: str) -> None:
    found = plan_nodes([dual(1, *own), dual(3, *other, cluster="beta")], "alpha", "n1", "wg", 51871)
    assert found.peers[key(3)].endpoint == parse(end)


def test_the_router_is_the_cilium_internal_ip_or_the_first_address_of_the_pod_cidr() -> None:
    v4, v6 = parse_prefix("10.1.1.0/24"), parse_prefix("fd00:10:1:1::/64")
    assert pod_pools(node("alpha", 1)) == (PodPool(v4, parse("10.1.1.1")),)
    assert pod_pools(dual(1)) == (PodPool(v4, parse("10.1.1.1")), PodPool(v6, parse("fd00:10:1:1::1")))
    named = dual(1, "CiliumInternalIP 10.1.1.9", "CiliumInternalIP fd00:10:1:1::99")
    assert pod_pools(named) == (PodPool(v4, parse("10.1.1.9")), PodPool(v6, parse("fd00:10:1:1::99")))


def test_pods_get_addresses_of_the_cidr_allotted_first() -> None:
    cidrs = tuple(map(parse_prefix, ("10.1.1.0/24", "10.9.0.0/16", "fd00:1::/64", "fd00:2::/64")))
    found = pod_pools(Node(cluster="a", cluster_id=1, name="n", pod_cidrs=cidrs))
    assert [pool.cidr for pool in found] == [cidrs[0], cidrs[2]]


def test_an_endpoint_is_known_by_identity_and_node() -> None:
    value = plan_endpoint(Endpoint(ip=parse("10.1.3.9"), identity=131073, host_ip=parse("192.0.2.3")))
    assert (value.identity, value.tunnel_endpoint, value.key) == (131073, parse("192.0.2.3"), 255)
    assert plan_endpoint(Endpoint(ip=parse("fd01::9"), identity=1)).tunnel_endpoint == NO_ADDRESS
