"""The fold of what clusters say: a cluster speaks only for itself, and what stands keeps what it has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from clustermesh.address import Address, Prefix, contains, overlaps, parse, parse_prefix, single
from clustermesh.mesh.authority import TOGETHER, Authority, Ground, Limits, Place
from clustermesh.mesh.holdings import wanted_by
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.mesh.rulings import Rulings
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import KINDS, View
from clustermesh.model import Cluster, Endpoint, LocalService, Node, NodeAddress, Port, Protocol, Service
from clustermesh.wire.numbering import REMOTE_NODE


def node(cluster: str, name: str, cidr: str, ip: str, key: str = "") -> Node:
    return Node(
        cluster=cluster,
        cluster_id=1,
        name=name,
        addresses=(NodeAddress(type="InternalIP", ip=parse(ip)),),
        pod_cidrs=tuple(parse_prefix(each) for each in cidr.split()),
        wireguard_public_key=key,
    )


def service(cluster: str, *addresses: str, port: int = 80, frontend: str = "10.97.0.1") -> Service:
    ports = {"http": Port(protocol=Protocol.TCP, port=port)}
    return Service(
        cluster=cluster,
        cluster_id=2,
        namespace="n",
        name="s",
        frontends={parse(frontend): ports},
        backends={parse(a): ports for a in addresses},
    )


def pod(ip: str, identity: int = 131080) -> Endpoint:
    return Endpoint(ip=parse(ip), identity=identity)


def opened(together: Mapping[str, int] = TOGETHER, **turn: int) -> MeshState:
    """Nothing is known of the own cluster, and that is all there is to know of it."""
    state = MeshState("own", together=together, **turn)
    state.admit_peers()
    for peer in ("beta", "gamma"):
        state.authorize(Authority(name=peer))
    return state


def mesh(*nodes: Node, together: Mapping[str, int] = TOGETHER) -> MeshState:
    state = opened(together)
    for each in nodes:
        state.put(each.cluster, "nodes", each.name, each)
    return state


def with_beta(together: Mapping[str, int] = TOGETHER) -> MeshState:
    nodes = node("own", "o1", "10.1.0.0/24", "192.0.2.1"), node("beta", "b1", "10.2.0.0/24", "192.0.2.2")
    return mesh(*nodes, together=together)


def admitted(state: MeshState) -> list[tuple[str, str]]:
    return [(node.cluster, node.name) for node in state.admitted_nodes()]


def why(state: MeshState, cluster: str, kind: str, name: Any) -> str:
    refusal = state.refusals(cluster).of(kind).get(name)
    return "" if refusal is None else refusal.why


def reason(state: MeshState, cluster: str, kind: str, name: Any) -> Reason | None:
    refusal = state.refusals(cluster).of(kind).get(name)
    return None if refusal is None else refusal.reason


def taken_addresses(state: MeshState) -> set[Address]:
    taken = state.take_addresses()
    for address in taken:
        state.rule(address)
    return taken


def taken_services(state: MeshState) -> set[tuple[str, str]]:
    taken = state.take_services()
    for name in taken:
        state.rule(name)
    return taken


def backends(state: MeshState) -> set[Address]:
    taken_services(state)
    return {address for remote in state.remote_services(("n", "s")) for address in remote.backends}


@pytest.mark.parametrize(("first", "second"), [("10.2.0.0/24", "10.2.0.0/16"), ("fd00:2::/64", "fd00:2::/48")])
def test_a_node_whose_cidr_belongs_to_another_cluster_is_refused_and_shown(first: str, second: str) -> None:
    state = mesh(node("beta", "b1", first, "192.0.2.2"), node("evil", "e1", second, "192.0.2.3"))
    assert admitted(state) == [("beta", "b1")]
    assert why(state, "evil", "nodes", "e1") == f"pod CIDR {second} overlaps {first} of node b1 of cluster beta"


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_a_node_with_another_clusters_node_address_is_refused(address: str) -> None:
    state = mesh(node("own", "o1", "10.1.0.0/24", address), node("evil", "e1", "10.9.0.0/24", address))
    assert admitted(state) == [("own", "o1")]
    assert why(state, "evil", "nodes", "e1") == f"node address {address} is node o1 of cluster own's"


def test_two_nodes_of_one_cluster_with_one_address_are_one_node_and_a_refused_one() -> None:
    state = mesh(node("own", "o1", "10.1.0.0/24", "192.0.2.1"), node("own", "o2", "10.1.1.0/24", "192.0.2.1"))
    assert admitted(state) == [("own", "o1")]
    assert reason(state, "own", "nodes", "o2") is Reason.TAKEN


def test_an_own_node_that_comes_later_does_not_displace_a_peers() -> None:
    state = mesh(node("beta", "b1", "10.1.0.0/16", "192.0.2.2"), node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    assert admitted(state) == [("beta", "b1")]
    assert "overlaps 10.1.0.0/16 of node b1 of cluster beta" in why(state, "own", "nodes", "o1")
    state.drain("beta")
    assert admitted(state) == [("own", "o1")]
    assert not state.refusals("own")


def test_a_refused_node_is_admitted_once_the_other_claim_is_gone() -> None:
    state = mesh(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), node("gamma", "g1", "10.2.0.0/24", "192.0.2.3"))
    state.drain("beta")
    assert admitted(state) == [("gamma", "g1")]
    assert not state.refusals("gamma")


@pytest.mark.parametrize("cidr", ["192.0.2.0/24", "192.0.2.1/32", "192.0.2.8/29"])
def test_no_pod_cidr_holds_a_node_not_even_its_own(cidr: str) -> None:
    """The route to it would lead the tunnel to that node into the tunnel."""
    state = mesh(node("own", "o1", "10.1.0.0/24", "192.0.2.1"), node("own", "o2", "10.1.2.0/24", "192.0.2.9"))
    state.put("own", "nodes", "wide", node("own", "wide", cidr, "198.51.100.1"))
    assert ("own", "wide") not in admitted(state)
    itself = mesh(node("own", "o1", cidr, "192.0.2.1" if "/29" not in cidr else "192.0.2.9"))
    assert admitted(itself) == []
    assert reason(itself, "own", "nodes", "o1") is Reason.CUTS_OFF


@pytest.mark.parametrize(
    ("cidr", "ip"),
    [
        ("0.0.0.0/0", "192.0.2.3"),
        ("8.8.8.0/24", "192.0.2.3"),
        ("10.0.0.0/11", "192.0.2.3"),
        ("169.254.169.254/32", "192.0.2.3"),
        ("2001:db8::/64", "192.0.2.3"),
        ("10.9.0.0/24", "127.0.0.1"),
        ("10.9.0.0/24", "224.0.0.5"),
        ("10.9.0.0/24", "fe80::1"),
    ],
)
def test_no_peer_has_what_it_may_not_have_even_before_the_own_cluster_is_heard(cidr: str, ip: str) -> None:
    state = mesh(node("evil", "e1", cidr, ip))
    assert admitted(state) == []
    assert state.take_nodes() == {("evil", "e1")}


def test_what_the_operator_names_is_admitted_and_refused_again_when_taken_back() -> None:
    state = mesh(node("beta", "b1", "203.0.113.0/25", "192.0.2.2"))
    assert reason(state, "beta", "nodes", "b1") is Reason.NOT_ALLOWED
    state.authorize(Authority(name="beta", allowed=(parse_prefix("203.0.113.0/24"),)))
    assert admitted(state) == [("beta", "b1")]
    state.authorize(Authority(name="beta"))
    assert admitted(state) == []


def test_a_wireguard_key_is_the_nodes_that_had_it_first() -> None:
    state = mesh(
        node("beta", "b1", "10.2.0.0/24", "192.0.2.2", "KEY"), node("aaa", "a1", "10.9.0.0/24", "192.0.2.9", "KEY")
    )
    assert admitted(state) == [("beta", "b1")], "a name that sorts first gives no right to another's key"
    assert why(state, "aaa", "nodes", "a1") == "WireGuard key KEY is node b1 of cluster beta's"
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1", "KEY"))
    assert admitted(state) == [("beta", "b1")], "nor does being the own cluster"
    state.remove("beta", "nodes", "b1")
    assert admitted(state) == [("own", "o1")], "but it is the first to be asked"


class TestGround:
    """What this machine lives by: nobody takes it, and no route covers it."""

    etcd = Place(single(parse("10.2.0.9")), "the etcd of own", lifeline=True, cluster="own")
    docker = Place(parse_prefix("10.2.0.0/16"), "on docker0")

    def test_no_node_of_any_cluster_has_pods_around_an_etcd(self) -> None:
        state = opened()
        state.stand_on(Ground([self.etcd]))
        for cluster in ("own", "beta"):
            state.put(cluster, "nodes", "n", node(cluster, "n", "10.2.0.0/24", "192.0.2.2"))
            assert reason(state, cluster, "nodes", "n") is Reason.CUTS_OFF
        state.stand_on(Ground())
        assert admitted(state) == [("own", "n")], "the etcd has moved; the own cluster is asked first"

    def test_who_stood_before_the_ground_moved_keeps_what_it_has_and_is_looked_at_again(self) -> None:
        state = mesh(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), node("beta", "b2", "10.3.0.0/24", "192.0.2.3"))
        state.take_nodes()
        state.stand_on(Ground([self.etcd, self.docker]))
        assert len(admitted(state)) == 2
        assert state.take_nodes() == {("beta", "b1")}
        assert state.holdings.ground.cut_off_by(parse_prefix("10.2.0.0/24")) == self.etcd
        assert state.holdings.ground.cut_off_by(parse_prefix("10.3.0.0/24")) is None

    def test_what_was_kept_of_the_own_cluster_stands_whatever_a_peer_says_its_etcd_is_at(self) -> None:
        evils = Place(single(parse("10.1.0.9")), "the etcd of evil", lifeline=True, cluster="evil")
        ground, state = Ground([self.etcd, evils]), MeshState("own")
        state.stand_on(ground.without_peers("own"))
        state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
        state.put("own", "nodes", "o2", node("own", "o2", "10.2.0.0/24", "192.0.2.2"))
        state.stand_on(ground)
        assert admitted(state) == [("own", "o1")], "where the own etcd is, there are no pods, kept or not"
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.1.0.8/29", "192.0.2.3"))
        assert admitted(state) == [("own", "o1")]

    @pytest.mark.parametrize("cidr", ["10.3.0.0/24", "10.1.0.0/24"])
    def test_a_service_where_an_own_node_comes_or_goes_is_planned_again_whether_that_stands_or_not(
        self, cidr: str
    ) -> None:
        state, place = mesh(node("beta", "b1", "10.1.0.0/16", "192.0.2.2")), parse("192.168.7.1")
        mine = LocalService(service=service("own", frontend="192.168.7.1"))
        state.put("own", "local_services", ("n", "s"), mine)
        state.take_services()
        state.put("own", "nodes", "o1", node("own", "o1", cidr, "192.168.7.1"))
        assert state.holdings.lives_at(place)
        assert state.take_services() == {("n", "s")}
        state.remove("own", "nodes", "o1")
        assert not state.holdings.lives_at(place)
        assert state.take_services() == {("n", "s")}

    def test_no_peer_has_pods_where_an_own_service_is(self) -> None:
        state = opened()
        state.put("own", "local_services", ("n", "s"), LocalService(service=service("own", frontend="10.2.0.1")))
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
        assert "holds 10.2.0.1, where the service n/s of this cluster is" in why(state, "beta", "nodes", "b1")
        state.remove("own", "local_services", ("n", "s"))
        assert admitted(state) == [("beta", "b1")]

    def test_an_own_service_is_what_agents_alone_are_told_else_what_all_are(self) -> None:
        state, name = opened(), ("n", "s")
        told, more = service("own", frontend="10.2.0.1"), LocalService(service=service("own", frontend="10.2.0.2"))
        state.put("own", "services", name, told)
        assert state.own_service(name) == LocalService(service=told, is_global=True)
        assert state.remote_services(name) == []
        state.put("own", "local_services", name, more)
        assert state.own_service(name) == more
        state.remove("own", "services", name)
        assert state.own_service(name) == more
        state.put("own", "services", name, told)
        state.take_services()
        state.remove("own", "local_services", name)
        assert (state.own_service(name), state.take_services()) == (LocalService(service=told, is_global=True), {name})
        state.put("own", "services", name, replace(told, shared=False))
        assert (state.own_service(name), state.take_services()) == (None, {name})

    @pytest.mark.parametrize("kinds", [["services"], ["local_services"], ["services", "local_services"]])
    def test_where_an_own_service_is_told_no_peer_has_pods_until_it_is_told_nowhere(self, kinds: list[str]) -> None:
        state, name, told = opened(), ("n", "s"), service("own", frontend="10.2.0.1")
        values = {"services": told, "local_services": LocalService(service=told)}
        for kind in kinds:
            state.put("own", kind, name, values[kind])
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
        for kind in kinds:
            assert admitted(state) == []
            state.remove("own", kind, name)
        assert admitted(state) == [("beta", "b1")]


class TestEndpoints:
    def test_one_in_a_pod_cidr_or_at_a_node_address_of_its_cluster_is_used(self) -> None:
        state = with_beta()
        for there in (
            pod("10.2.0.7"),
            pod("192.0.2.2", REMOTE_NODE),
            replace(pod("192.0.2.2"), host_ip=parse("192.0.2.2")),
        ):
            state.put("beta", "endpoints", there.ip, there)
            assert state.endpoint(there.ip) == there

    @pytest.mark.parametrize("host", [None, "192.0.2.2"])
    def test_no_pod_of_its_own_is_at_the_address_of_a_node(self, host: str | None) -> None:
        """A node may be at any public address: a pod there would be one that strict mode expects in the tunnel."""
        state = mesh(node("beta", "b1", "10.2.0.0/24", "140.82.112.3"))
        there = replace(pod("140.82.112.3"), host_ip=host and parse(host))
        state.put("beta", "endpoints", there.ip, there)
        assert state.endpoint(there.ip) is None
        assert reason(state, "beta", "endpoints", there.ip) is Reason.NOT_HELD

    @pytest.mark.parametrize("ip", ["10.1.0.7", "192.0.2.1", "8.8.8.8", "127.0.0.1", "fd00::7", "2001:db8::1"])
    def test_one_anywhere_else_is_refused(self, ip: str) -> None:
        state = with_beta()
        state.put("beta", "endpoints", parse(ip), pod(ip))
        assert state.endpoint(parse(ip)) is None
        assert reason(state, "beta", "endpoints", parse(ip)) is Reason.NOT_HELD
        state.put("own", "endpoints", parse(ip), pod(ip, 65600))
        assert state.endpoint(parse(ip)) == pod(ip, 65600)

    def test_one_that_comes_before_its_node_waits_for_it(self) -> None:
        state = opened()
        for ip in ("10.2.0.7", "fd00:2::7"):
            state.put("beta", "endpoints", parse(ip), pod(ip))
            assert state.endpoint(parse(ip)) is None
        state.take_addresses()
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24 fd00:2::/64", "192.0.2.2"))
        assert state.endpoint(parse("10.2.0.7")) is None, "nobody decided on it yet"
        assert taken_addresses(state) == {parse("10.2.0.7"), parse("fd00:2::7")}
        assert state.endpoint(parse("fd00:2::7")) == pod("fd00:2::7")
        assert not state.refusals("beta")
        state.remove("beta", "nodes", "b1")
        assert state.endpoint(parse("10.2.0.7")) is None

    def test_an_own_one_at_a_peers_address_is_refused(self) -> None:
        state = with_beta()
        state.put("own", "endpoints", parse("10.2.0.7"), pod("10.2.0.7"))
        assert state.endpoint(parse("10.2.0.7")) is None
        assert why(state, "own", "endpoints", parse("10.2.0.7")) == "is at an address of node b1 of cluster beta"

    @pytest.mark.parametrize(
        ("identity", "taken"),
        [(1, False), (2, False), (7, False), (255, False), (6, True), (131080, True), (70000, False)],
    )
    def test_a_peers_identity_is_from_its_range_or_that_of_a_remote_node(self, identity: int, taken: bool) -> None:
        state = with_beta()
        state.authorize(Authority.of(Cluster(name="beta", id=2)))
        state.put("beta", "endpoints", parse("10.2.0.7"), pod("10.2.0.7", identity))
        assert (state.endpoint(parse("10.2.0.7")) is not None) == taken
        assert (reason(state, "beta", "endpoints", parse("10.2.0.7")) is Reason.IDENTITY) != taken
        state.put("own", "endpoints", parse("10.1.0.7"), pod("10.1.0.7", identity))
        assert state.endpoint(parse("10.1.0.7")) is not None

    def test_a_cluster_that_is_authorized_later_is_judged_by_that(self) -> None:
        state = with_beta()
        state.put("beta", "endpoints", parse("10.2.0.7"), pod("10.2.0.7", 70000))
        assert state.endpoint(parse("10.2.0.7")) is not None
        state.authorize(Authority.of(Cluster(name="beta", id=2)))
        assert taken_addresses(state) == {parse("10.2.0.7")}
        assert state.endpoint(parse("10.2.0.7")) is None

    def test_a_node_that_moves_makes_only_what_is_at_its_addresses_dirty(self) -> None:
        state = opened()
        for ip in ("10.2.1.7", "10.2.2.7", "192.0.2.2", "10.2.3.7", "fd00::7"):
            state.put("beta", "endpoints", parse(ip), pod(ip))
        cidr = parse_prefix("10.2.0.0/16")
        state.put("beta", "endpoints", cidr, Endpoint(ip=cidr.address, prefix_length=cidr.length, identity=2))
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.1.0/24", "192.0.2.2"))
        state.take_addresses()
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.2.0/24", "192.0.2.2"))
        assert state.take_addresses() == {parse("10.2.1.7"), parse("10.2.2.7")}

    def test_one_that_is_gone_is_refused_no_more(self) -> None:
        state = with_beta()
        state.put("beta", "endpoints", parse("10.1.0.7"), pod("10.1.0.7"))
        assert len(state.refusals("beta")) == 1
        state.remove("beta", "endpoints", parse("10.1.0.7"))
        assert not state.refusals("beta")


class TestBackends:
    @pytest.mark.parametrize(
        "foreign", ["10.1.0.7", "10.97.0.1", "192.0.2.1", "8.8.8.8", "127.0.0.1", "169.254.169.254", "fd00::7", "::1"]
    )
    def test_one_at_an_address_that_is_not_its_clusters_is_left_out_and_the_rest_is_used(self, foreign: str) -> None:
        state = with_beta()
        state.put("beta", "services", ("n", "s"), service("beta", foreign, "10.2.0.1"))
        assert backends(state) == {parse("10.2.0.1")}
        assert foreign in why(state, "beta", "services", ("n", "s"))
        state.remove("beta", "services", ("n", "s"))
        assert not state.refusals("beta")

    def test_one_at_a_cluster_ip_of_ours_is_left_out_also_where_a_node_of_its_cluster_was_first(self) -> None:
        state = mesh(node("beta", "b1", "10.97.0.0/24", "172.20.2.11"))
        state.put("own", "local_services", ("n", "s"), LocalService(service=service("own", frontend="10.97.0.10")))
        state.put("beta", "services", ("n", "s"), service("beta", "10.97.0.10", "10.97.0.20"))
        assert backends(state) == {parse("10.97.0.20")}
        assert reason(state, "beta", "services", ("n", "s")) is Reason.NOT_HELD

    def test_one_at_port_zero_is_left_out(self) -> None:
        state = with_beta()
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1", port=0))
        assert [dict(ports) for each in state.remote_services(("n", "s")) for ports in each.backends.values()] == [{}]
        assert reason(state, "beta", "services", ("n", "s")) is Reason.PORT

    def test_those_of_a_refused_node_are_not_used_while_it_is_refused(self) -> None:
        state = mesh(node("own", "o1", "10.1.0.0/24", "192.0.2.1"), node("beta", "b1", "10.1.0.0/16", "192.0.2.2"))
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1", "192.0.2.2"))
        assert backends(state) == set()
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
        assert taken_services(state) == {("n", "s")}
        assert len(backends(state)) == 2

    def test_services_whose_addresses_changed_hands_are_decided_on_one_by_one(self) -> None:
        state, names = with_beta(), [("n", "a"), ("n", "b")]
        for name in names:
            state.put("beta", "services", name, replace(service("beta", "10.2.0.1"), name=name[1]))
        state.remove("beta", "nodes", "b1")
        assert state.take_services() == {*names}
        state.rule(("n", "a"))
        assert [len(state.remote_services(name)[0].backends) for name in names] == [0, 1]
        state.rule(("n", "b"))
        assert not state.remote_services(("n", "b"))[0].backends

    def test_those_of_a_node_stay_where_something_else_that_it_wants_is_refused(self) -> None:
        state = with_beta()
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
        wider = node("beta", "b1", "10.2.0.0/24 10.1.0.0/16", "192.0.2.2")
        state.put("beta", "nodes", "b1", wider)
        assert backends(state) == {parse("10.2.0.1")}
        assert reason(state, "beta", "nodes", "b1") is Reason.TAKEN
        assert state.node("beta", "b1") == node("beta", "b1", "10.2.0.0/24", "192.0.2.2")
        assert state.good_view("beta").nodes["b1"] == state.node("beta", "b1")
        state.remove("own", "nodes", "o1")
        assert state.node("beta", "b1") == wider

    def test_the_own_clusters_may_be_anywhere(self) -> None:
        state = opened()
        mine = LocalService(service=service("own", "8.8.8.8"))
        state.put("own", "local_services", ("n", "s"), mine)
        assert state.views["own"].local_services["n", "s"] == mine
        assert not state.refusals("own")

    def test_a_service_with_more_of_them_than_the_limit_has_none(self) -> None:
        state = with_beta()
        state.authorize(Authority(name="beta", limits=Limits(service_backends=1)))
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1", "10.2.0.2"))
        assert backends(state) == set()
        assert why(state, "beta", "services", ("n", "s")) == "has 2 backends, and the limit is 1"
        state.authorize(Authority(name="beta", limits=Limits(service_backends=2)))
        assert taken_services(state) == {("n", "s")}
        assert len(backends(state)) == 2


def test_a_cluster_of_which_nobody_said_what_it_may_say_has_no_identity_to_give() -> None:
    state, address = opened(), parse("10.4.0.5")
    state.put("delta", "nodes", "d1", node("delta", "d1", "10.4.0.0/24", "192.0.2.4"))
    state.put("delta", "endpoints", address, pod("10.4.0.5"))
    assert why(state, "delta", "endpoints", address) == "identity 131080 is not known to be of delta"
    assert state.endpoint(address) is None
    state.authorize(Authority.of(Cluster(name="delta", id=2)))
    state.rule(address)
    assert state.endpoint(address) is not None


class TestRoom:
    """What a peer may have of each kind, and what happens to the rest."""

    def test_a_peers_services_have_so_many_backends_together_and_what_goes_makes_room(self) -> None:
        state, more = with_beta(), ("n", "more")
        state.authorize(Authority(name="beta", limits=Limits(backends=3)))
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1", "10.2.0.2"))
        state.put("beta", "services", more, service("beta", "10.2.0.1", "10.2.0.3"))
        assert list(state.views["beta"].services) == [("n", "s")]
        assert "more than 3 backends in all its services" in why(state, "beta", "tables", "services")
        assert not state.names("beta", "short"), "nothing has gone"
        assert state.names("beta", "dropped") == {"services"}
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
        assert state.names("beta", "short") == {"services"}
        state.put("beta", "services", more, service("beta", "10.2.0.1", "10.2.0.3"))
        assert not state.refusals("beta").of("tables")
        assert not state.names("beta", "short")
        state.remove("beta", "services", more)
        state.remove("beta", "services", ("n", "s"))
        state.put("beta", "services", more, service("beta", "10.2.0.1", "10.2.0.2", "10.2.0.3"))
        assert not state.refusals("beta"), "what is gone does not count"

    def test_a_service_that_grows_beyond_the_limit_has_its_first_backends(self) -> None:
        state = with_beta()
        state.authorize(Authority(name="beta", limits=Limits(backends=2)))
        for addresses in (["10.2.0.9"], ["10.2.0.3", "10.2.0.1", "10.2.0.2"]):
            state.put("beta", "services", ("n", "s"), service("beta", *addresses))
        assert backends(state) == {parse("10.2.0.1"), parse("10.2.0.2")}
        assert reason(state, "beta", "tables", "services") is Reason.LIMIT

    def test_a_service_that_changes_in_a_full_room_keeps_no_dead_backend(self) -> None:
        """And has the rest of its new ones once another peer gives room."""
        state, name = with_beta({"backends": 3}), ("n", "s")
        rolled = service("beta", "10.2.0.11", "10.2.0.12", "10.2.0.13")
        state.put("beta", "services", name, service("beta", "10.2.0.1", "10.2.0.2"))
        state.put("gamma", "services", name, service("gamma", "10.3.0.1"))
        for _ in range(2):  # said again it is the same
            state.put("beta", "services", name, rolled)
            assert backends(state) == {parse("10.2.0.11"), parse("10.2.0.12")}
            assert state.limits_used_together()["backends"] == (3, 3)
        assert reason(state, "beta", "tables", "services") is Reason.FULL
        assert "1 services are not used, or not with all their backends" in why(state, "beta", "tables", "services")
        state.remove("gamma", "services", name)
        assert state.names("beta", "short") == {"services"}
        state.put("beta", "services", name, rolled)
        assert state.views["beta"].services[name] == rolled
        assert not state.refusals("beta").of("tables")

    def test_who_is_near_its_limit_in_a_fuller_room_waits_for_the_room(self) -> None:
        state, name = with_beta({"backends": 3}), ("n", "s")
        state.authorize(Authority(name="beta", limits=Limits(backends=3)))
        state.put("gamma", "services", name, service("gamma", "10.3.0.1"))
        state.put("beta", "services", name, service("beta", "10.2.0.1"))
        state.put("beta", "services", name, service("beta", *(f"10.2.0.{number}" for number in range(5))))
        assert len(state.views["beta"].services[name].backends) == 2
        state.remove("gamma", "services", name)
        assert state.names("beta", "short") == {"services"}

    def test_the_own_clusters_services_have_as_many_as_they_have(self) -> None:
        state = opened()
        state.authorize(Authority(name="own", limits=Limits(keys={"endpoints": 0}, backends=0)))
        state.put("own", "endpoints", parse("10.1.0.1"), pod("10.1.0.1"))
        assert not state.refusals("own")

    def test_no_peer_takes_all_that_peers_have_together(self) -> None:
        limits = Limits()
        alone = {"endpoints": limits.keys["endpoints"], "backends": limits.backends, "prefixes": limits.prefixes}
        assert all(2 * alone[what] <= most for what, most in TOGETHER.items())

    def test_no_peer_can_fill_a_map_alone(self) -> None:
        layouts = (Path(__file__).parents[3] / "bpf" / "layouts.h").read_text()
        sizes = {name: int(size) for name, size in re.findall(r"DECLARE_MAP\((\w+),.*?, (\d+),", layouts)}
        limits = Limits()
        assert limits.keys["endpoints"] < sizes["ipcache"]
        assert limits.prefixes < sizes["ipcache_cidr"]
        assert limits.backends < sizes["lb_backends"]
        assert limits.keys["services"] < sizes["lb_services"]

    def test_all_peers_together_leave_a_quarter_of_each_map_to_the_own_cluster(self) -> None:
        layouts = (Path(__file__).parents[3] / "bpf" / "layouts.h").read_text()
        sizes = {name: int(size) for name, size in re.findall(r"DECLARE_MAP\((\w+),.*?, (\d+),", layouts)}
        of = {"endpoints": "ipcache", "backends": "lb_backends", "prefixes": "ipcache_cidr"}
        assert {what: most / sizes[of[what]] for what, most in TOGETHER.items()} == dict.fromkeys(of, 0.75)

    def test_peers_that_are_each_below_their_limits_leave_room_together(self) -> None:
        state, addresses = opened({"endpoints": 3}), [parse(f"10.9.0.{number}") for number in range(5)]
        for cluster, address in zip(("beta", "beta", "gamma", "gamma", "own"), addresses, strict=True):
            state.put(cluster, "endpoints", address, Endpoint(ip=address, identity=131080))
        assert list(state.views["gamma"].endpoints) == [addresses[2]]
        assert list(state.views["own"].endpoints) == [addresses[4]], "the own cluster asks nobody"
        assert reason(state, "gamma", "tables", "endpoints") is Reason.FULL
        assert why(state, "gamma", "tables", "endpoints") == (
            "finds no room, for all peers together have 3 endpoints at most: 1 endpoints are not used"
        )
        assert state.limits_used_together() == {"endpoints": (3, 3)}
        state.remove("beta", "endpoints", addresses[0])
        assert state.names("gamma", "short") == {"endpoints"}, "what another peer gave up is there for it"
        state.put("gamma", "endpoints", addresses[3], pod("10.9.0.3"))
        assert not state.refusals("gamma").of("tables")

    def test_a_backend_takes_as_much_room_as_it_has_ports(self) -> None:
        ports = {name: Port(protocol=Protocol.TCP, port=80) for name in ("http", "metrics")}
        state = opened({"backends": 3})
        two = replace(service("beta"), backends=dict.fromkeys([parse("10.2.0.1"), parse("10.2.0.2")], ports))
        state.put("beta", "services", ("n", "s"), two)
        assert reason(state, "beta", "tables", "services") is Reason.FULL
        state.put("beta", "services", ("n", "s"), replace(two, backends={parse("10.2.0.1"): ports}))
        assert state.limits_used_together() == {"backends": (2, 3)}

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["beta", "gamma", "own"]),
                st.sampled_from(["endpoints", "services", "nodes", "drain"]),
                st.integers(0, 4),
                st.integers(0, 3),
            ),
            max_size=40,
        )
    )
    def test_whatever_they_say_peers_leave_room_and_keep_what_they_have(self, script: list[Any]) -> None:
        most = {"endpoints": 4, "backends": 5, "prefixes": 3}
        state = opened(most)
        for cluster, kind, number, size in script:
            before = _held(state)
            if kind == "drain":
                state.drain(cluster, [KINDS, ("endpoints",), ("services",), ("nodes",)][size])
            else:
                _say(state, cluster, kind, number, size)
            used = dict.fromkeys(most, 0) | Counter(what for what, who, _ in _held(state) if who != "own")
            assert state.limits_used_together() == {what: (used[what], most[what]) for what in most}
            assert all(used[what] <= most[what] for what in most)
            for what, who, name in before - _held(state):
                assert who == cluster, f"{what} {name} of {who} stands"
            if kind == "drain" or not size:
                for peer in ("beta", "gamma"):
                    dropped = bool(state.refusals(peer).of("tables").get("endpoints"))
                    short = "endpoints" in state.names(peer, "short")
                    assert not dropped or short or used["endpoints"] == most["endpoints"], "who waits is told of room"

    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=40))
    def test_what_was_dropped_comes_in_with_the_next_list_once_there_is_room(self, script: list[Any]) -> None:
        state, truth = with_beta(), dict[tuple[str, str], Service]()
        state.authorize(Authority(name="beta", limits=Limits(keys={"services": 4}, backends=6)))
        for step, (number, size) in enumerate([*script, *((number, 0) for number in range(4, 10))]):
            name = ("n", f"s{number}")
            truth.pop(name, None)
            if size:
                truth[name] = service("beta", *(f"10.2.{step}.{each}" for each in range(size)))
                state.put("beta", "services", name, truth[name])
            else:
                state.remove("beta", "services", name)
            if state.names("beta", "short"):
                state.listed("beta", "services", whole=False)
                for each, value in truth.items():
                    state.put("beta", "services", each, value)
            held = state.views["beta"].services
            assert (held == truth) == (not state.refusals("beta").of("tables"))
            assert sum(len(each.backends) for each in held.values()) <= 6
            assert all(each.backends.keys() <= truth[name].backends.keys() for name, each in held.items()), (
                "none is dead"
            )
        assert len(truth) <= 4
        assert state.views["beta"].services == truth or sum(len(each.backends) for each in truth.values()) > 6

    def test_what_a_list_has_dropped_is_not_forgotten_at_its_end_for_room_that_came_meanwhile(self) -> None:
        state, more, gone = with_beta(), ("n", "more"), ("n", "gone")
        state.authorize(Authority(name="beta", limits=Limits(backends=3)))
        two, one = service("beta", "10.2.0.1", "10.2.0.2"), service("beta", "10.2.0.1")
        for name, value in ((("n", "s"), two), (gone, one), (more, two)):
            state.put("beta", "services", name, value)
        state.remove("beta", "services", gone)
        assert state.names("beta", "short") == {"services"}
        state.listed("beta", "services", whole=False)
        state.put("beta", "services", more, two)
        state.put("beta", "services", ("n", "s"), one)
        state.listed("beta", "services")
        assert more not in state.views["beta"].services
        assert reason(state, "beta", "tables", "services") is Reason.LIMIT
        assert state.names("beta", "short") == {"services"}

    def test_of_what_is_dropped_some_is_named_and_none_is_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clustermesh.mesh.room.MOST_NAMED", 2)
        state, addresses = opened(), [parse(f"10.2.0.{number}") for number in range(7)]
        state.authorize(Authority(name="beta", limits=Limits(keys={"endpoints": 2})))
        for address in addresses:
            state.put("beta", "endpoints", address, Endpoint(ip=address, identity=131080))
        for gone in addresses[:4]:
            state.remove("beta", "endpoints", gone)
        assert why(state, "beta", "tables", "endpoints")
        assert state.names("beta", "short") == {"endpoints"}
        for gone in addresses[:5]:
            state.remove("beta", "endpoints", gone)
        state.listed("beta", "endpoints", whole=False)
        for address in addresses[5:]:
            state.put("beta", "endpoints", address, Endpoint(ip=address, identity=131080))
        assert not state.refusals("beta").of("tables")


def test_what_cannot_be_decided_on_cannot_be_at_the_next_try_either(monkeypatch: pytest.MonkeyPatch) -> None:
    state = with_beta()
    state.put("beta", "endpoints", parse("10.2.0.5"), pod("10.2.0.5"))
    state.remove("beta", "nodes", "b1")

    def judge(*_asked: Any) -> None:
        raise ValueError("no verdict")

    with monkeypatch.context() as broken:
        broken.setattr(Rulings, "rule", judge)
        for _ in range(2):
            with pytest.raises(ValueError, match="no verdict"):
                state.rule(parse("10.2.0.5"))
    state.rule(parse("10.2.0.5"))
    assert reason(state, "beta", "endpoints", parse("10.2.0.5")) is Reason.NOT_HELD


def test_a_peer_fills_no_table_beyond_its_limit() -> None:
    state = opened()
    state.authorize(Authority(name="beta", limits=Limits(keys={"endpoints": 2})))
    for number in range(5):
        state.put("beta", "endpoints", parse(f"10.2.0.{number}"), pod(f"10.2.0.{number}"))
    assert len(state.views["beta"].endpoints) == 2
    assert "limit" in why(state, "beta", "tables", "endpoints")
    state.put("beta", "endpoints", parse("10.2.0.1"), pod("10.2.0.1", 131099))
    assert state.views["beta"].endpoints[parse("10.2.0.1")].identity == 131099
    state.remove("beta", "endpoints", parse("10.2.0.1"))
    assert why(state, "beta", "tables", "endpoints"), "there is room, and three of them are missing all the same"
    state.put("beta", "endpoints", parse("10.2.0.2"), pod("10.2.0.2"))
    assert state.names("beta", "endpoints") == {parse(f"10.2.0.{number}") for number in (0, 2, 3, 4)}
    for number in (3, 4):
        state.remove("beta", "endpoints", parse(f"10.2.0.{number}"))
    assert not why(state, "beta", "tables", "endpoints")


def test_what_a_table_had_no_room_for_is_forgotten_with_the_table() -> None:
    state = opened()
    state.authorize(Authority(name="beta", limits=Limits(keys={"endpoints": 0})))
    state.put("beta", "endpoints", parse("10.2.0.1"), pod("10.2.0.1"))
    state.drain("beta", ("endpoints",))
    assert not state.refusals("beta")
    assert not state.names("beta", "endpoints")


def test_a_peers_node_with_more_prefixes_than_the_limit_is_refused() -> None:
    state = mesh(node("beta", "b1", " ".join(f"10.2.{n}.0/24" for n in range(64)), "192.0.2.2"))
    assert why(state, "beta", "nodes", "b1") == "has 65 pod CIDRs and addresses, and the limit is 64"
    state.authorize(Authority(name="beta", limits=Limits(node_prefixes=65)))
    assert admitted(state) == [("beta", "b1")]


def test_who_keeps_a_cluster_is_told_when_another_lets_a_node_of_it_in() -> None:
    state = mesh(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), node("gamma", "g1", "10.2.0.0/24", "192.0.2.3"))
    told = list[str]()
    state.on_verdict.append(told.append)
    state.remove("beta", "nodes", "b1")
    assert told == ["beta", "gamma"]


def test_refusals_are_counted_by_reason_and_named() -> None:
    state = mesh(node("evil", "e1", "8.8.8.0/24", "192.0.2.3"))
    state.put("evil", "endpoints", parse("8.8.8.8"), pod("8.8.8.8"))
    state.put("evil", "services", ("n", "s"), service("evil", "8.8.8.8"))
    state.refuse("evil", "cilium/state/nodes/v1/x", "garbage")
    refusals = state.refusals("evil")
    assert refusals.counts == {Reason.NOT_ALLOWED: 1, Reason.NOT_HELD: 2, Reason.GARBLED: 1}
    assert set(refusals.named(9)) == {"nodes/e1", "endpoints/8.8.8.8", "services/n/s", "cilium/state/nodes/v1/x"}
    assert len(refusals.named(2)) == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["nodes", "keys"]), st.sampled_from("abcdef"), st.none() | st.sampled_from(list(Reason)[:3])
        )
    )
)
def test_the_first_refusals_of_each_reason_are_some_of_those_there_are(script: list[Any]) -> None:
    refusals, twin = Refusals(), dict[tuple[str, str], Reason]()
    for kind, name, reason in script:
        refusals.set(kind, name, reason and Refusal(reason, name))
        twin.pop((kind, name), None)
        if reason:
            twin[kind, name] = reason
    first = refusals.first(3)
    by_reason = {reason: {why for _, why in [key for key in twin if twin[key] is reason]} for reason in twin.values()}
    assert {reason: min(3, len(all_)) for reason, all_ in by_reason.items()}.keys() == first.keys()
    for reason, named in first.items():
        assert set(named.values()) <= by_reason[reason]
        assert len(named) == min(3, refusals.counts[reason])
    assert refusals.counts == Counter(twin.values())


def test_dirty_names_what_changed_and_nothing_when_nothing_did() -> None:
    state = opened()
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    assert state.take_services() == {("n", "s")}
    assert not state.take_nodes()
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    assert not state.take_services()
    state.remove("beta", "services", ("n", "s"))
    assert state.take_services() == {("n", "s")}


def test_who_waits_for_changes_hears_of_each_that_is_one() -> None:
    state, heard = opened(), list[str]()
    state.on_dirty.append(lambda: heard.append("dirty"))
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    assert heard == ["dirty"]
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    assert heard == ["dirty"]
    state.remove("beta", "nodes", "b1")
    assert heard == ["dirty", "dirty"]
    state.authorize(Authority(name="beta", allowed=(parse_prefix("203.0.113.0/24"),)))
    state.stand_on(Ground())
    assert len(heard) == 4


def test_a_node_that_changes_is_named_with_those_it_lets_in() -> None:
    state = mesh(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), node("gamma", "g1", "10.2.0.0/24", "192.0.2.3"))
    state.take_nodes()
    state.put("beta", "nodes", "b1", replace(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), labels={"a": "b"}))
    assert state.take_nodes() == {("beta", "b1")}
    state.remove("beta", "nodes", "b1")
    assert state.take_nodes() == {("beta", "b1"), ("gamma", "g1")}
    assert state.node("gamma", "g1") is not None
    assert state.node("beta", "b1") is None


def test_a_node_that_only_has_another_label_makes_no_service_and_no_address_dirty() -> None:
    state = with_beta()
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    state.put("beta", "endpoints", parse("10.2.0.1"), pod("10.2.0.1"))
    state.take_services(), state.take_addresses()
    state.put("beta", "nodes", "b1", replace(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), labels={"a": "b"}))
    assert (state.take_services(), state.take_addresses()) == (set(), set())


def test_what_lies_in_many_prefixes_of_one_node_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened()
    for number in range(50):
        state.put("beta", "endpoints", parse(f"10.2.0.{number}"), pod(f"10.2.0.{number}"))
    nested = " ".join(f"10.2.0.0/{length}" for length in range(16, 25))
    looked_at, concerned = list[Any](), Rulings.concerned

    def count(rulings: Rulings, prefix: Prefix) -> Iterator[Any]:
        for name in concerned(rulings, prefix):
            looked_at.append(name)
            yield name

    monkeypatch.setattr(Rulings, "concerned", count)
    state.put("beta", "nodes", "b1", node("beta", "b1", nested, "192.0.2.2"))
    assert len(looked_at) == len(taken_addresses(state)) == 50
    state.remove("beta", "nodes", "b1")
    assert len(looked_at) == 100
    assert len(taken_addresses(state)) == 50


class TestTurns:
    """A thousandfold of what is here would hold up everybody else."""

    @staticmethod
    def filled(turn: int) -> MeshState:
        state = MeshState("own", turn)
        state.admit_peers()
        state.authorize(Authority(name="beta"))
        state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
        for number in range(100):
            address = parse(f"10.2.0.{number}")
            state.put("beta", "endpoints", address, pod(f"10.2.0.{number}"))
            state.put("beta", "services", ("n", f"s{number}"), service("beta", f"10.2.0.{number}"))
        state.take_addresses(), state.take_services()
        return state

    @pytest.mark.parametrize(
        ("what", "found"),
        [
            (lambda state: state.remove("beta", "nodes", "b1"), (100, 100)),
            (lambda state: state.authorize(Authority(name="beta", identities=range(1, 2))), (100, 0)),
            (lambda state: state.authorize(Authority(name="beta", limits=Limits(service_backends=0))), (0, 100)),
            (lambda state: state.drain("beta"), (100, 100)),
            (lambda state: state.drain("beta", ["endpoints"]), (100, 0)),
            (lambda state: state.drain("beta", ["services"]), (0, 100)),
        ],
    )
    def test_what_one_event_concerns_is_found_out_in_turns(
        self, what: Callable[[MeshState], None], found: tuple[int, int]
    ) -> None:
        state = self.filled(turn=10)
        what(state)
        addresses, services = set[Address](), set[tuple[str, str]]()
        for _ in range(100):
            taken = taken_addresses(state), taken_services(state)
            assert len(taken[0]) + len(taken[1]) <= 10
            addresses |= taken[0]
            services |= taken[1]
            if not state.judge():
                break
        assert (len(addresses | taken_addresses(state)), len(services | taken_services(state))) == found
        assert not any(state.endpoint(address) for address in addresses)
        assert not any(each.backends for name in services for each in state.remote_services(name))

    def test_a_cluster_that_goes_and_comes_back_meanwhile_is_decided_on_as_it_is_by_then(self) -> None:
        state = self.filled(turn=10)
        state.put("beta", "nodes", "b2", node("beta", "b2", "10.3.0.0/24", "192.0.2.3"))
        state.remove("beta", "nodes", "b1")
        state.remove("beta", "nodes", "b2")
        state.drain("beta")
        state.put("beta", "endpoints", parse("10.3.0.7"), pod("10.3.0.7"))
        state.put("beta", "nodes", "b2", node("beta", "b2", "10.3.0.0/24", "192.0.2.3"))
        while state.judge():
            pass
        assert parse("10.3.0.7") in taken_addresses(state)
        assert state.endpoint(parse("10.3.0.7")) is not None

    def test_a_table_that_is_withdrawn_leaves_nothing_and_may_be_filled_again(self) -> None:
        state = self.filled(turn=10)
        state.put("beta", "endpoints", parse("10.9.0.1"), pod("10.9.0.1"))
        state.put("beta", "services", ("n", "foreign"), service("beta", "10.9.0.1"))
        assert len(state.refusals("beta")) == 2
        state.drain("beta", ["endpoints", "services"])
        assert not state.refusals("beta")
        assert not state.names("beta", "endpoints")
        assert state.limits_used("beta")["backends"][0] == 0
        state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
        state.put("beta", "endpoints", parse("10.2.0.1"), pod("10.2.0.1"))
        while state.judge():
            pass
        assert backends(state) == {parse("10.2.0.1")}
        state.remove("beta", "nodes", "b1")
        while state.judge():
            pass
        assert taken_addresses(state) >= {parse("10.2.0.1")}
        assert (state.endpoint(parse("10.2.0.1")), backends(state)) == (None, set())


def test_a_drained_cluster_leaves_nothing() -> None:
    state = with_beta()
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    state.put("beta", "endpoints", parse("10.2.0.1"), pod("10.2.0.1"))
    state.drain("beta")
    assert list(state.views) == ["own"]
    assert state.remote_services(("n", "s")) == []
    assert state.endpoint(parse("10.2.0.1")) is None
    assert admitted(state) == [("own", "o1")]


def test_a_cluster_that_goes_is_not_decided_on_entry_by_entry() -> None:
    state = with_beta()
    addresses = {parse(f"10.2.0.{n}") for n in range(1, 200)}
    for address in addresses:
        state.put("beta", "endpoints", address, Endpoint(ip=address, identity=131080))
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.5"))
    state.take_addresses(), state.take_services()
    woken: list[int] = []
    state.on_dirty.append(lambda: woken.append(1))
    state.drain("beta")
    assert 0 < len(woken) < 10
    assert taken_addresses(state) == addresses
    assert taken_services(state) == {("n", "s")}
    assert state.endpoint(parse("10.2.0.5")) is None
    assert state.remote_services(("n", "s")) == []


def test_what_the_operator_allows_puts_in_doubt_only_what_rests_on_it() -> None:
    state = with_beta()
    beta = Authority.of(Cluster(name="beta", id=2, max_clusters=255))
    state.authorize(beta)
    state.put("beta", "endpoints", parse("10.2.0.5"), pod("10.2.0.5"))
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.5"))
    state.take_addresses(), state.take_services()
    state.authorize(replace(beta, allowed=(parse_prefix("203.0.113.0/24"),)))
    assert not state.take_addresses()
    assert not state.take_services()
    state.authorize(replace(beta, identities=range(1, 2)))
    assert taken_addresses(state) == {parse("10.2.0.5")}
    state.authorize(replace(beta, limits=Limits(service_backends=0)))
    assert taken_services(state) == {("n", "s")}
    assert backends(state) == set()


def test_the_names_of_a_table_that_dropped_some_are_looked_up_and_not_copied() -> None:
    state = with_beta()
    state.authorize(Authority(name="beta", limits=Limits(keys={"services": 2})))
    for n in range(5):
        state.put("beta", "services", ("n", f"s{n}"), service("beta"))
    names = state.names("beta", "services")
    assert ("n", "s4") in names
    assert ("n", "s5") not in names
    assert set(names) == {("n", f"s{n}") for n in range(5)}
    assert len(names) == 5
    assert names - {("n", "s0")} == {("n", f"s{n}") for n in range(1, 5)}
    state.remove("beta", "services", ("n", "s4"))
    assert ("n", "s4") not in names, "it is what is there, not what was"


def test_a_node_that_is_refused_is_not_kept_for_the_next_start() -> None:
    """Restored before the cluster that stood first, it would stand first."""
    state = mesh(node("beta", "b1", "10.1.0.0/16", "192.0.2.2"), node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    state.put("own", "nodes", "o2", node("own", "o2", "10.9.0.0/24", "192.0.2.9"))
    assert set(state.good_view("own").nodes) == {"o2"}
    assert set(state.views["own"].nodes) == {"o1", "o2"}


# Few names and addresses, so that most steps have something to do with each other.
_clusters = st.sampled_from(["own", "beta", "gamma"])
_cidrs = st.sampled_from(["10.1.0.0/16", "10.1.1.0/24", "10.1.1.7/32", "10.2.0.0/24", "fd00:1::/64", "8.8.8.0/24"])
_IPS = ("10.1.1.7", "10.1.2.7", "10.2.0.7", "192.0.2.1", "192.0.2.2", "fd00:1::7", "8.8.8.8")
_ips = st.sampled_from(_IPS)
_nodes = st.builds(
    lambda cidrs, ip, key: node("", "", " ".join(cidrs), ip, key),
    st.lists(_cidrs, max_size=3),
    _ips,
    st.sampled_from(["", "A", "B"]),
)
_node_steps = st.tuples(_clusters, st.just("nodes"), st.sampled_from(["n1", "n2"]), st.none() | _nodes)
_service_steps = st.tuples(_clusters, st.just("local_services"), st.just(("n", "s")), st.none() | _ips)
_steps = st.one_of(
    _node_steps,
    _service_steps,
    st.tuples(_clusters, st.just("endpoints"), _ips.map(parse), st.none() | st.integers(131072, 131080)),
    st.tuples(_clusters, st.just("services"), st.just(("n", "s")), st.none() | st.lists(_ips, max_size=4)),
    st.tuples(_clusters, st.just("ground"), st.none(), st.lists(_ips, max_size=2)),
    st.tuples(_clusters, st.just("allowed"), st.none(), st.lists(_cidrs, max_size=2)),
    st.tuples(_clusters, st.just("drain"), st.none(), st.sampled_from([KINDS, ("endpoints",), ("services",)])),
)
_mostly_nodes = st.one_of(_node_steps, _node_steps, _node_steps, _steps)


def _do(state: MeshState, cluster: str, kind: str, name: Any, value: Any) -> None:
    if kind == "drain":
        state.drain(cluster, value)
    elif kind == "ground":
        state.stand_on(Ground(Place(single(parse(ip)), "the gateway", lifeline=True) for ip in value))
    elif kind == "allowed":
        state.authorize(Authority(name=cluster, allowed=tuple(map(parse_prefix, value))))
    elif value is None:
        state.remove(cluster, kind, name)
    elif kind == "nodes":
        state.put(cluster, kind, name, replace(value, cluster=cluster, name=name))
    elif kind == "endpoints":
        state.put(cluster, kind, name, Endpoint(ip=name, identity=value))
    elif kind == "services":
        frontend = value[0] if cluster == "own" and value else "10.97.0.1"
        state.put(cluster, kind, name, service(cluster, *value, frontend=frontend))
    elif cluster == "own":
        state.put(cluster, kind, name, LocalService(service=service(cluster, frontend=value)))


def _claims(node: Node) -> list[Prefix]:
    return list(wanted_by(node).claims)


def _node_at(state: MeshState, address: Address) -> Node | None:
    for each in state.admitted_nodes():
        if any(contains(prefix, address) for prefix in _claims(each)):
            return each
    return None


def _holder(state: MeshState, address: Address) -> str | None:
    holder = _node_at(state, address)
    return None if holder is None else holder.cluster


def _endpoint(state: MeshState, address: Address) -> Endpoint | None:
    """The stupid way: look at all nodes. None of these endpoints shares its node's network."""
    holder = _node_at(state, address)
    if holder is not None and holder.cluster != "own" and address in wanted_by(holder).addresses:
        return None
    cluster = "own" if holder is None else holder.cluster
    return state.views[cluster].endpoints.get(address) if cluster in state.views else None


@example([("beta", "endpoints", parse("10.1.1.7"), 131072), ("beta", "nodes", "n1", node("", "", "", "10.1.1.7", ""))])
@given(st.lists(_steps, max_size=25))
def test_whatever_happens_what_is_used_is_what_looking_at_everything_finds(script: list[Any]) -> None:
    state = opened()
    addresses = [parse(ip) for ip in ("10.1.1.7", "10.1.2.7", "10.2.0.7", "192.0.2.1", "fd00:1::7", "8.8.8.8")]
    known: dict[Address, Endpoint | None] = dict.fromkeys(addresses)
    served: list[Service] = []
    own: LocalService | None = None
    for step in script:
        _do(state, *step)
        dirty = taken_addresses(state)
        for address in addresses:
            assert state.endpoint(address) == _endpoint(state, address)
            assert state.endpoint(address) == known[address] or address in dirty
            known[address] = state.endpoint(address)
        services = taken_services(state)
        assert state.remote_services(("n", "s")) == served or ("n", "s") in services
        served = state.remote_services(("n", "s"))
        assert all(_holder(state, address) == each.cluster for each in served for address in each.backends)
        mine = state.own_service(("n", "s"))
        assert mine == own or ("n", "s") in services
        own = mine
        ours = set() if own is None else own.service.frontends.keys()
        for cluster, view in state.views.items():
            for name, taken in view.services.items():
                wanted = {a for a in taken.backends if _holder(state, a) == cluster and a not in ours}
                if cluster != "own":
                    assert {a for each in served if each.cluster == cluster for a in each.backends} == wanted, name


_ENDPOINT = ("gamma", "endpoints", parse("10.1.1.7"), 131072)
_ITS_NODE = ("gamma", "nodes", "n1", node("", "", "10.1.0.0/16", "10.2.0.7", ""))


@example([(_ENDPOINT, False), (_ITS_NODE, False)])
@given(st.lists(st.tuples(_steps, st.booleans()), max_size=25))
def test_in_turns_of_one_name_each_it_ends_as_at_once(script: list[tuple[Any, bool]]) -> None:
    state, twin = opened(turn=1), opened()
    for step, judged in script:
        _do(state, *step)
        _do(twin, *step)
        while judged and state.judge():
            pass
        taken_addresses(state), taken_services(state)
        taken_addresses(twin), taken_services(twin)
    while state.judge():
        pass
    taken_addresses(state), taken_services(state)
    assert [state.endpoint(parse(ip)) for ip in _IPS] == [twin.endpoint(parse(ip)) for ip in _IPS]
    assert state.remote_services(("n", "s")) == twin.remote_services(("n", "s"))
    for cluster in twin.views:
        assert set(state.refusals(cluster).listed()) == set(twin.refusals(cluster).listed())
        assert state.refusals(cluster).counts == twin.refusals(cluster).counts


@given(st.lists(_mostly_nodes, max_size=25))
def test_whatever_happens_nodes_that_stand_are_apart_and_who_stood_stands(script: list[Any]) -> None:
    state = opened()
    stood: dict[tuple[str, str], Node] = {}
    for step in script:
        _do(state, *step)
        standing = {(each.cluster, each.name): each for each in state.admitted_nodes()}
        dirty = state.take_nodes()
        everyone = list(standing.values())
        for number, first in enumerate(everyone):
            for second in everyone[:number]:
                assert not any(overlaps(a, b) for a in _claims(first) for b in _claims(second))
                assert not first.wireguard_public_key or first.wireguard_public_key != second.wireguard_public_key
        for cluster, view in state.views.items():
            for name in view.nodes:
                refused = name in state.refusals(cluster).of("nodes")
                assert refused == (standing.get((cluster, name)) != view.nodes[name])
        changed = step[:1] if step[1] in ("drain", "allowed") else (step[0], step[2]) if step[1] == "nodes" else ("",)
        for holder, before in stood.items():
            wanted = state.views[holder[0]].nodes.get(holder[1]) if holder[0] in state.views else None
            assert holder[: len(changed)] == changed or standing.get(holder) in (before, wanted), (
                "who stood first, stands, or gets what it wants by now"
            )
        assert standing.keys() ^ stood.keys() <= dirty
        stood = standing


@given(st.lists(_mostly_nodes, min_size=5, max_size=25))
def test_a_refused_node_would_be_refused_if_it_came_now(script: list[Any]) -> None:
    """Whatever stood in its way, its being gone is noticed."""
    state = opened()
    for step in script:
        _do(state, *step)
    for cluster, view in list(state.views.items()):
        for name, again in list(view.nodes.items()):
            if name not in state.refusals(cluster).of("nodes"):
                continue  # or not any more, with what another one had before it came again
            state.remove(cluster, "nodes", name)
            state.put(cluster, "nodes", name, again)
            assert name in state.refusals(cluster).of("nodes")


_NESTED = ("beta", "nodes", "n1", node("", "", "10.1.1.0/24 10.1.1.7/32", "10.2.0.7", ""))


@example([_NESTED, ("own", "nodes", "n1", node("", "", "", "10.1.2.7", ""))])
@given(st.lists(st.one_of(_node_steps, _service_steps), max_size=25))
def test_who_stands_stands_after_a_restart_though_the_own_cluster_is_restored_first(script: list[Any]) -> None:
    """Where a service was there first as well as where a peer's node was."""
    before, after = opened(), opened()
    for step in script:
        _do(before, *step)
    after.set_restoring(True)
    for cluster in ("own", *sorted(before.views.keys() - {"own"})):
        _put_all(after, cluster, before.good_view(cluster))
    after.set_restoring(False)
    for cluster, view in before.views.items():
        _put_all(after, cluster, view)
    assert admitted(after) == admitted(before)
    live = [[bool(each.holdings.lives_at(parse(ip))) for ip in _IPS] for each in (before, after)]
    assert live[0] == live[1]  # who is named of several that are refused there does not matter


def test_what_was_restored_and_waits_is_decided_on_in_turns_and_as_it_was_when_it_was_put() -> None:
    state = MeshState("own")
    state.authorize(Authority(name="beta"))
    state.set_restoring(True)
    for number, frontend in enumerate(["10.2.249.7", "10.3.0.7"]):
        told = LocalService(service=service("own", frontend=frontend))
        state.put("own", "local_services", ("n", f"s{number}"), told)
    for number in range(250):
        state.put("beta", "nodes", f"n{number}", node("beta", f"n{number}", f"10.2.{number}.0/24", f"192.0.2.{number}"))
    state.put("beta", "nodes", "late", node("beta", "late", "10.3.0.0/24", "192.0.2.0"))
    state.admit_peers()
    state.set_restoring(False)
    assert state.is_behind, "one call decides on no more than a turn's worth"
    state.put("beta", "nodes", "n248", node("beta", "n248", "10.3.0.0/24", "192.0.2.248"))
    assert reason(state, "beta", "nodes", "n248") is Reason.LOCAL, "it is another than was restored"
    while state.judge():
        pass
    assert len(admitted(state)) == 249
    assert not reason(state, "beta", "nodes", "n249"), "it stood beside that service"
    assert reason(state, "beta", "nodes", "late") is Reason.TAKEN
    state.remove("beta", "nodes", "n0")
    assert reason(state, "beta", "nodes", "late") is Reason.LOCAL, "what comes later is judged as anybody's"


def _put_all(state: MeshState, cluster: str, view: View) -> None:
    for kind in ("nodes", "local_services"):
        for name, value in view.table(kind).items():
            state.put(cluster, kind, name, value)


def _say(state: MeshState, cluster: str, kind: str, number: int, size: int) -> None:
    if not size:
        state.remove(cluster, kind, _name_of(cluster, kind, number))
    elif kind == "endpoints":
        address = _name_of(cluster, kind, number)
        state.put(cluster, kind, address, Endpoint(ip=address, identity=131080 + size))
    elif kind == "services":
        addresses = [f"10.9.{number}.{each}" for each in range(size)]
        state.put(cluster, kind, ("n", f"s{number}"), service(cluster, *addresses, frontend="8.8.8.8"))
    else:
        cidrs = " ".join(f"10.{100 + 5 * len(cluster) + number}.{each}.0/24" for each in range(size))
        state.put(cluster, kind, f"n{number}", node(cluster, f"n{number}", cidrs, f"192.0.{len(cluster)}.{number}"))


def _name_of(cluster: str, kind: str, number: int) -> Any:
    return {
        "endpoints": parse(f"10.9.{len(cluster)}.{number}"),
        "services": ("n", f"s{number}"),
        "nodes": f"n{number}",
    }[kind]


def _held(state: MeshState) -> set[tuple[str, str, Any]]:
    """What takes room, by what it is, whose, and its name."""
    held = set[tuple[str, str, Any]]()
    for cluster, view in state.views.items():
        held |= {("endpoints", cluster, name) for name in view.endpoints}
        held |= {("backends", cluster, (name, at)) for name, each in view.services.items() for at in each.backends}
    return held | {("prefixes", node.cluster, cidr) for node in state.admitted_nodes() for cidr in node.pod_cidrs}


@given(st.lists(_steps, max_size=25))
def test_a_drained_mesh_holds_nothing(script: list[Any]) -> None:
    state = opened()
    for step in script:
        _do(state, *step)
    for cluster in list(state.views):
        state.drain(cluster)
    state.stand_on(Ground())
    state.put("zeta", "nodes", "z", node("zeta", "z", "10.0.0.0/12 fd00::/40", "192.0.2.1", "A"))
    assert admitted(state) == [("zeta", "z")]
    assert not any(state.refusals(cluster) for cluster in state.views)


def test_limits_are_told_with_their_use() -> None:
    state = MeshState("alpha")
    state.authorize(Authority.of(Cluster(name="beta", id=2), limits=Limits(keys={"nodes": 3}, backends=9, prefixes=7)))
    state.admit_peers()
    assert state.limits_used("beta") == {
        "nodes": (0, 3),
        "backends": (0, 9),
        "prefixes": (0, 7),
        "addresses": (0, Limits().addresses),
    }
    state.put("beta", "nodes", "n1", node("beta", "n1", "10.2.0.0/24", "192.0.2.9"))
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.5", "10.2.0.6"))
    used = state.limits_used("beta")
    assert (used["nodes"], used["backends"], used["prefixes"]) == ((1, 3), (2, 9), (1, 7))
