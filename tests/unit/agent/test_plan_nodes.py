"""Who is a peer, which routes there are, and why a node has no tunnel."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.bpf.layouts import NO_ADDRESS, IpcacheValue, pack_cidr, unpack
from agent.plan.nodes import Name, NodePlanner, PodPool, ThisEnd, plan_endpoint, pod_pools
from agent.plan.routes import Route, RouteKey
from agent.wireguard.peer import Peer, PeerKey
from clustermesh.address import parse, parse_prefix, single
from clustermesh.mesh.authority import Ground, Place
from clustermesh.mesh.state import MeshState
from clustermesh.model import Endpoint, Node, NodeAddress

NO_GROUND = Ground()
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


class Table(dict[Any, Any]):
    """A dictionary where a tracker would be."""

    def set(self, key: Any, value: Any) -> None:
        self[key] = value

    def remove(self, key: Any) -> None:
        self.pop(key, None)


class Planned:
    """A planner and the three tables it fills; `told` is how many nodes were planned."""

    def __init__(self, ground: Ground = NO_GROUND) -> None:
        self.peers, self.routes, self.cidrs = Table(), Table(), Table()
        self.planner = NodePlanner(
            ThisEnd(("alpha", "n1"), key(1), "wg", 51871),
            peers=self.peers,
            routes=self.routes,
            cidrs=self.cidrs,
            split=lambda cidrs: ground.split(cidrs, "alpha"),
        )
        self.nodes: dict[Name, Node] = {}
        self.told = 0

    @property
    def problems(self) -> dict[str, str]:
        return self.planner.problems

    def tell(self, name: Name, node: Node | None) -> None:
        self.nodes.pop(name, None)
        if node is not None:
            self.nodes[name] = node
        waiting = [name]
        while waiting:
            each = waiting.pop()
            self.told += 1
            if self.planner.update(each, self.nodes.get(each)):
                waiting = [other for other in self.planner.names if other != name]

    def peer(self, name: str, cluster: str = "beta") -> Peer:
        return self.peers[PeerKey(cluster, name)]  # type: ignore[no-any-return]


def plan(*others: Node) -> Planned:
    return plan_all([node("alpha", 1), *others])


def plan_all(nodes: Iterable[Node], ground: Ground = NO_GROUND) -> Planned:
    planned = Planned(ground)
    for each in nodes:
        planned.tell((each.cluster, each.name), each)
    return planned


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
    assert set(found.cidrs) == {pack_cidr(parse_prefix("10.1.1.0/24")), pack_cidr(parse_prefix("10.1.3.0/24"))}
    assert unpack(IpcacheValue, found.cidrs[pack_cidr(parse_prefix("10.1.3.0/24"))]).tunnel_endpoint == parse(
        "192.0.2.3"
    )


def test_what_would_cut_this_node_off_is_left_out_everywhere_and_said_of_its_node() -> None:
    ground = Ground([Place(single(parse("10.1.3.9")), "the etcd of alpha", lifeline=True)])
    nodes = [node("alpha", 1), node("beta", 3), node("beta", 4)]
    found = plan_all(nodes, ground)
    assert {key.dst for key in found.routes} == {parse_prefix("10.1.4.0/24")}
    assert pack_cidr(parse_prefix("10.1.3.0/24")) not in found.cidrs, "strict mode would drop what is not encrypted"
    assert {peer.endpoint: peer.allowed_ips for peer in found.peers.values()}[parse("192.0.2.3")] == ()
    assert "10.1.3.0/24 holds 10.1.3.9, the etcd of alpha" in found.problems["beta/n3"]
    assert "beta/n4" not in found.problems


@pytest.mark.parametrize("stands", [node("alpha", 3), node("beta", 3)])
def test_where_a_peer_says_that_its_etcd_is_takes_no_route_from_who_stands(stands: Node) -> None:
    ground = Ground([Place(single(parse("10.1.3.9")), "the etcd of evil", lifeline=True, cluster="evil")])
    found = plan_all([node("alpha", 1), stands], ground)
    assert RouteKey(parse_prefix("10.1.3.0/24"), 0) in found.routes
    assert RouteKey(parse_prefix("10.1.3.0/24"), 4096) in found.routes
    assert pack_cidr(parse_prefix("10.1.3.0/24")) in found.cidrs
    assert "10.1.3.9, the etcd of evil, which cannot be reached there" in found.problems[f"{stands.cluster}/n3"]


def test_where_the_own_etcd_is_counts_however_many_others_say_they_are_there() -> None:
    places = [
        Place(single(parse("10.1.3.8")), "the etcd of evil", lifeline=True, cluster="evil"),
        Place(single(parse("10.1.3.9")), "the etcd of alpha", lifeline=True, cluster="alpha"),
    ]
    found = plan_all([node("alpha", 1), node("beta", 3)], Ground(places))
    assert found.routes == {}
    assert "10.1.3.9, the etcd of alpha" in found.problems["beta/n3"]


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


def test_without_the_own_node_there_are_still_peers() -> None:
    found = plan_all([node("beta", 3)])
    assert found.planner.own is None
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
    found = plan_all([own, dual(3, "InternalIP 192.0.2.3", cluster="beta")])
    assert found.peer("n3").allowed_ips == (BETA, BETA6)
    assert found.routes == {
        RouteKey(BETA, 0): Route("unicast", "wg", parse("10.1.1.1")),
        RouteKey(BETA6, 1): Route("unicast", "wg", parse("fd00:10:1:1::77")),
        RouteKey(BETA, 4096): Route("blackhole"),
        RouteKey(BETA6, 4096): Route("blackhole"),
    }


def test_a_node_of_one_family_has_routes_of_that_family_only() -> None:
    found = plan(dual(3, "InternalIP 192.0.2.3", cluster="beta"))
    assert found.peer("n3").allowed_ips == (BETA,)
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
    found = plan_all([dual(1, *own), dual(3, *other, cluster="beta")])
    assert found.peer("n3").endpoint == parse(end)


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
    packed = plan_endpoint(Endpoint(ip=parse("10.1.3.9"), identity=131073, host_ip=parse("192.0.2.3"), key=255))
    value = unpack(IpcacheValue, packed)
    assert (value.identity, value.tunnel_endpoint, value.key) == (131073, parse("192.0.2.3"), 255)
    packed = plan_endpoint(Endpoint(ip=parse("fd01::9"), identity=1))
    assert unpack(IpcacheValue, packed).tunnel_endpoint == NO_ADDRESS
    packed = plan_endpoint(Endpoint(ip=parse("10.1.3.9"), identity=1))
    assert unpack(IpcacheValue, packed).key == 0, "its cluster does not encrypt"


# -- one node that changes --------------------------------------------------------------------------------------------


def test_a_node_that_changes_costs_one_node() -> None:
    planned = plan(*(node("beta", number) for number in range(2, 250)))
    planned.told = 0
    planned.tell(("beta", "n9"), node("beta", 9, wireguard_key=key(250)))
    assert planned.told == 1
    assert planned.peer("n9").public_key == key(250)


def test_only_what_others_plans_take_from_this_node_plans_them_again() -> None:
    planned = plan(*(node("beta", number) for number in range(2, 12)))
    planned.told = 0
    planned.tell(("alpha", "n1"), replace(node("alpha", 1), labels={"zone": "a"}))
    assert planned.told == 1
    moved = replace(node("alpha", 1), pod_cidrs=(parse_prefix("10.1.99.0/24"),))
    planned.tell(("alpha", "n1"), moved)
    assert {route.prefsrc for key, route in planned.routes.items() if key.metric == 0} == {parse("10.1.99.1")}


def test_a_cidr_that_moves_is_the_new_nodes_whichever_is_planned_first() -> None:
    for order in (("n3", "n4"), ("n4", "n3")):
        planned = plan(node("beta", 3), node("beta", 4))
        moved = {"n3": replace(node("beta", 3), pod_cidrs=()), "n4": replace(node("beta", 4), pod_cidrs=(BETA,))}
        for name in order:
            planned.tell(("beta", name), moved[name])
        assert (planned.peer("n3").allowed_ips, planned.peer("n4").allowed_ips) == ((), (BETA,))
        assert {route.dst for route in planned.routes} == {BETA}
        assert pack_cidr(BETA) in planned.cidrs


def _some_node(draw: st.DrawFn) -> tuple[Name, Node | None]:
    cluster, number = draw(st.sampled_from([("alpha", 1), ("alpha", 2), ("beta", 3), ("beta", 4), ("gamma", 5)]))
    name = (cluster, f"n{number}")
    if draw(st.integers(0, 4)) == 0:
        return name, None
    cidrs = draw(st.lists(st.sampled_from(["10.1.1.0/24", "10.1.3.0/24", "fd00:1::/64", "10.7.0.0/16"]), unique=True))
    addresses = draw(st.lists(st.sampled_from(["192.0.2.1", "192.0.2.3", "2001:db8::3"]), unique=True))
    return name, Node(
        cluster=cluster,
        cluster_id=1,
        name=name[1],
        addresses=tuple(NodeAddress(type="InternalIP", ip=parse(each)) for each in addresses),
        pod_cidrs=tuple(map(parse_prefix, cidrs)),
        wireguard_public_key=draw(st.sampled_from(["", key(1), key(2), key(3)])),
    )


@settings(deadline=None)
@given(st.lists(st.composite(_some_node)(), max_size=15), st.randoms(use_true_random=False))
def test_whatever_came_and_went_the_plan_is_that_of_the_nodes_that_stand(
    history: list[tuple[Name, Node | None]], shuffle: Any
) -> None:
    """The mesh state says which do; what it names as changed is planned in any order."""
    state, planned = MeshState("alpha"), Planned()
    state.admit_peers()
    for (cluster, name), each in history:
        if each is None:
            state.remove(cluster, "nodes", name)
        else:
            state.put(cluster, "nodes", name, each)
        dirty = sorted(state.take_nodes())
        shuffle.shuffle(dirty)
        planned.nodes = {(node.cluster, node.name): node for node in state.admitted_nodes()}  # who is planned again
        for changed in dirty:
            planned.tell(changed, state.node(*changed))
    anew = plan_all(state.admitted_nodes())
    assert (planned.peers, planned.routes, planned.cidrs) == (anew.peers, anew.routes, anew.cidrs)
    assert planned.problems == anew.problems
    _check(planned)


def _check(planned: Planned) -> None:
    """What holds of any plan: one peer for a key, one for a CIDR, and no way into a tunnel without a blackhole."""
    keys = [peer.public_key for peer in planned.peers.values()]
    cidrs = [cidr for peer in planned.peers.values() for cidr in peer.allowed_ips]
    assert len(keys) == len(set(keys))
    assert len(cidrs) == len(set(cidrs))
    through = {route.dst for route, value in planned.routes.items() if value.kind == "unicast"}
    assert through == set(cidrs)
    assert through <= {route.dst for route, value in planned.routes.items() if value.kind == "blackhole"}
    own = planned.nodes.get(("alpha", "n1"))
    assert not through & set(() if own is None else own.pod_cidrs)
