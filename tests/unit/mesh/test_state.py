"""The fold of what clusters say: any order gives the same state, and a cluster speaks only for itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix
from clustermesh.mesh.state import MeshState
from clustermesh.model import Endpoint, Node, NodeAddress, Port, Protocol, Service


def node(cluster: str, name: str, cidr: str, ip: str, key: str = "") -> Node:
    return Node(
        cluster=cluster,
        cluster_id=1,
        name=name,
        addresses=(NodeAddress(type="InternalIP", ip=parse(ip)),),
        pod_cidrs=(parse_prefix(cidr),),
        wireguard_public_key=key,
    )


def service(cluster: str, *addresses: str) -> Service:
    ports = {"http": Port(protocol=Protocol.TCP, port=80)}
    return Service(
        cluster=cluster, cluster_id=2, namespace="n", name="s", backends={parse(a): ports for a in addresses}
    )


def admitted(state: MeshState) -> list[tuple[str, str]]:
    state.take_nodes()
    return [(node.cluster, node.name) for node in state.admitted_nodes()]


def test_a_node_whose_cidr_belongs_to_another_cluster_is_refused_and_shown() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    state.put("evil", "nodes", "e1", node("evil", "e1", "10.2.0.0/16", "192.0.2.3"))
    assert admitted(state) == [("beta", "b1")]
    assert "overlaps 10.2.0.0/24 of cluster beta" in state.views["evil"].refused["nodes/e1"]


def test_a_node_with_another_clusters_node_address_is_refused() -> None:
    state = MeshState("own")
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    state.put("evil", "nodes", "e1", node("evil", "e1", "10.9.0.0/24", "192.0.2.1"))
    assert admitted(state) == [("own", "o1")]


def test_the_own_cluster_wins_even_when_it_is_heard_last() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.1.0.0/16", "192.0.2.2"))
    assert admitted(state) == [("beta", "b1")]
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    assert admitted(state) == [("own", "o1")]
    assert "nodes/b1" in state.views["beta"].refused


def test_a_refused_node_is_admitted_once_the_other_claim_is_gone() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    state.put("gamma", "nodes", "g1", node("gamma", "g1", "10.2.0.0/24", "192.0.2.3"))
    state.drain("beta")
    assert admitted(state) == [("gamma", "g1")]
    assert not state.views["gamma"].refused


@pytest.mark.parametrize(
    ("cidr", "ip"),
    [
        ("0.0.0.0/0", "192.0.2.3"),
        ("64.0.0.0/2", "192.0.2.3"),
        ("10.0.0.0/7", "192.0.2.3"),
        ("127.1.0.0/16", "192.0.2.3"),
        ("169.254.169.254/32", "192.0.2.3"),
        ("10.9.0.0/24", "127.0.0.1"),
        ("10.9.0.0/24", "0.0.0.0"),
        ("10.9.0.0/24", "224.0.0.5"),
        ("10.9.0.0/24", "255.255.255.255"),
    ],
)
def test_no_peer_has_what_is_nobodys_even_before_the_own_cluster_is_heard(cidr: str, ip: str) -> None:
    state = MeshState("own")
    state.put("evil", "nodes", "e1", node("evil", "e1", cidr, ip))
    assert admitted(state) == []
    assert "pod CIDR or address" in state.views["evil"].refused["nodes/e1"]


def test_no_peer_names_backends_or_endpoints_on_this_very_machine() -> None:
    state = MeshState("own")
    state.put("evil", "services", ("n", "s"), service("evil", "127.0.0.1", "169.254.169.254", "10.66.0.1"))
    (remote,) = state.remote_services(("n", "s"))
    assert list(remote.backends) == [parse("10.66.0.1")]
    state.put("evil", "endpoints", parse("127.0.0.1"), Endpoint(ip=parse("127.0.0.1"), identity=70000))
    assert state.endpoint(parse("127.0.0.1")) is None


def test_a_wireguard_key_is_the_cluster_s_that_had_it_first_or_the_own_ones() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2", "KEY"))
    state.put("aaa", "nodes", "a1", node("aaa", "a1", "10.9.0.0/24", "192.0.2.9", "KEY"))
    assert admitted(state) == [("beta", "b1")], "a name that sorts first gives no right to another's key"
    assert "is one of cluster beta" in state.views["aaa"].refused["nodes/a1"]
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1", "KEY"))
    assert admitted(state) == [("own", "o1")]
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1", "OTHER"))
    assert ("own", "o1") in admitted(state)
    assert len(admitted(state)) == 2, "one of the two has the key again"


def test_one_node_that_moves_makes_only_what_is_at_its_addresses_dirty() -> None:
    state = MeshState("own")
    for address in map(parse, ("10.2.1.7", "10.2.2.7", "192.0.2.2", "fd00::7")):
        state.put("beta", "endpoints", address, Endpoint(ip=address, identity=131080))
    block = parse_prefix("10.2.0.0/16")
    state.put("beta", "endpoints", block, Endpoint(ip=block.address, prefix_length=block.length, identity=131080))
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.1.0/24", "192.0.2.2"))
    state.take_addresses()
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.2.0/24", "192.0.2.2"))
    assert state.take_addresses() == {parse("10.2.1.7"), parse("10.2.2.7"), parse("192.0.2.2")}


def test_an_endpoint_that_is_gone_is_refused_no_more() -> None:
    state = MeshState("own")
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    state.put("evil", "endpoints", parse("10.1.0.7"), Endpoint(ip=parse("10.1.0.7"), identity=70000))
    state.put("evil", "services", ("n", "s"), service("evil", "10.1.0.7"))
    state.endpoint(parse("10.1.0.7"))
    state.remote_services(("n", "s"))
    assert len(state.views["evil"].refused) == 2
    state.remove("evil", "endpoints", parse("10.1.0.7"))
    state.remove("evil", "services", ("n", "s"))
    assert not state.views["evil"].refused


def test_an_endpoint_at_another_clusters_address_is_refused() -> None:
    state = MeshState("own")
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    state.put("evil", "endpoints", parse("10.1.0.7"), Endpoint(ip=parse("10.1.0.7"), identity=70000))
    assert state.endpoint(parse("10.1.0.7")) is None
    assert "endpoints/10.1.0.7" in state.views["evil"].refused
    state.put("own", "endpoints", parse("10.1.0.7"), Endpoint(ip=parse("10.1.0.7"), identity=65600))
    found = state.endpoint(parse("10.1.0.7"))
    assert found is not None
    assert found.identity == 65600


def test_a_backend_at_another_clusters_address_is_left_out_and_the_rest_is_used() -> None:
    state = MeshState("own")
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    state.put("evil", "services", ("n", "s"), service("evil", "10.1.0.7", "10.66.0.1"))
    (remote,) = state.remote_services(("n", "s"))
    assert list(remote.backends) == [parse("10.66.0.1")]
    assert "10.1.0.7" in state.views["evil"].refused["services/n/s"]


def test_dirty_names_what_changed_and_nothing_when_nothing_did() -> None:
    state = MeshState("own")
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    assert state.take_services() == {("n", "s")}
    assert not state.take_nodes()
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    assert not state.take_services()
    state.remove("beta", "services", ("n", "s"))
    assert state.take_services() == {("n", "s")}


def test_who_waits_for_changes_hears_of_each_that_is_one() -> None:
    state, heard = MeshState("own"), list[str]()
    state.on_dirty.append(lambda: heard.append("dirty"))
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    assert heard == ["dirty"]
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    assert heard == ["dirty"]
    state.remove("beta", "nodes", "b1")
    assert heard == ["dirty", "dirty"]


def test_a_node_that_changes_is_named_with_those_it_lets_in_or_pushes_out() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    state.put("gamma", "nodes", "g1", node("gamma", "g1", "10.2.0.0/24", "192.0.2.3"))
    state.take_nodes()
    state.put("beta", "nodes", "b1", replace(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), labels={"a": "b"}))
    assert state.take_nodes() == {("beta", "b1")}
    state.remove("beta", "nodes", "b1")
    assert state.take_nodes() == {("beta", "b1"), ("gamma", "g1")}
    assert state.node("gamma", "g1") is not None
    assert state.node("beta", "b1") is None


def test_a_node_that_only_has_another_label_makes_no_service_and_no_address_dirty() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    state.take_services()
    state.put("beta", "nodes", "b1", replace(node("beta", "b1", "10.2.0.0/24", "192.0.2.2"), labels={"a": "b"}))
    assert (state.take_services(), state.take_addresses()) == (set(), set())


def test_claims_that_change_make_what_is_at_their_addresses_dirty() -> None:
    state = MeshState("own")
    state.put("beta", "endpoints", parse("10.1.0.7"), Endpoint(ip=parse("10.1.0.7"), identity=131080))
    state.take_addresses()
    state.put("own", "nodes", "o1", node("own", "o1", "10.1.0.0/24", "192.0.2.1"))
    assert state.take_addresses() == {parse("10.1.0.7")}


def test_a_drained_cluster_leaves_nothing() -> None:
    state = MeshState("own")
    state.put("beta", "nodes", "b1", node("beta", "b1", "10.2.0.0/24", "192.0.2.2"))
    state.put("beta", "services", ("n", "s"), service("beta", "10.2.0.1"))
    state.drain("beta")
    assert list(state.views) == ["own"]
    assert state.remote_services(("n", "s")) == []
    assert state.speaks_for("anyone", parse("10.2.0.1"))


machines = st.builds(
    lambda cluster, name, cidrs, ip, key: Node(
        cluster=cluster,
        cluster_id=1,
        name=name,
        addresses=(NodeAddress(type="InternalIP", ip=parse(ip)),),
        pod_cidrs=tuple(map(parse_prefix, cidrs)),
        wireguard_public_key=key,
    ),
    st.sampled_from(["own", "beta", "gamma"]),
    st.sampled_from(["n1", "n2"]),
    st.lists(st.sampled_from(["10.1.0.0/16", "10.1.1.0/24", "10.1.1.7/32", "10.2.0.0/24"]), max_size=3),
    st.sampled_from(["10.1.1.7", "192.0.2.1", "192.0.2.2"]),
    st.sampled_from(["", "A", "B"]),
)


@given(st.lists(machines, max_size=10))
def test_nothing_is_claimed_twice_or_after_its_node_is_gone_whatever_nodes_claim(script: list[Node]) -> None:
    """The same CIDR twice in one node, one inside the other, an address inside its own pod CIDR, a key of others."""
    state = MeshState("own")
    for machine in script:
        state.put(machine.cluster, "nodes", machine.name, machine)
        state.take_nodes()
        keys = [
            (node.wireguard_public_key, node.cluster) for node in state.admitted_nodes() if node.wireguard_public_key
        ]
        assert len({key for key, _ in keys}) == len(set(keys)), "a key is one cluster's"
        assert {node.name for node in state.admitted_nodes() if node.cluster == "own"} == set(state.views["own"].nodes)
    for cluster in list(state.views):
        state.drain(cluster)
    state.take_nodes()
    assert all(state.speaks_for("anyone", parse(ip)) for ip in ("10.1.1.7", "10.2.0.1", "192.0.2.1", "192.0.2.2"))
    state.put("zeta", "nodes", "z", node("zeta", "z", "10.0.0.0/8", "192.0.2.1", "A"))
    assert admitted(state) == [("zeta", "z")]


events = st.lists(
    st.tuples(
        st.sampled_from(["own", "beta", "gamma"]),
        st.sampled_from(["n1", "n2"]),
        st.one_of(st.none(), st.builds("10.{}.0.0/24".format, st.integers(1, 4))),
    ),
    max_size=14,
)


@given(events)
def test_no_two_clusters_are_ever_admitted_to_overlapping_cidrs(script: list[tuple[str, str, Any]]) -> None:
    state = MeshState("own")
    for number, (cluster, name, cidr) in enumerate(script):
        if cidr is None:
            state.remove(cluster, "nodes", name)
        else:
            state.put(cluster, "nodes", name, node(cluster, name, cidr, f"192.0.2.{number}"))
        owners: dict[Any, str] = {}
        state.take_nodes()
        for each in state.admitted_nodes():
            assert owners.setdefault(each.pod_cidrs[0], each.cluster) == each.cluster
        own = set(state.views["own"].nodes)
        assert {n.name for n in state.admitted_nodes() if n.cluster == "own"} == own, "the own cluster always wins"
        for each_cluster, view in state.views.items():
            for each_name in view.nodes:
                held = (each_cluster, each_name) in {(n.cluster, n.name) for n in state.admitted_nodes()}
                assert held != (f"nodes/{each_name}" in view.refused)


@pytest.mark.parametrize(
    ("identity", "taken"), [(1, False), (2, False), (7, False), (255, False), (6, True), (70000, True)]
)
def test_reserved_identities_are_not_taken_from_a_peer_but_for_its_nodes(identity: int, taken: bool) -> None:
    state = MeshState("own")
    state.put("beta", "endpoints", parse("10.2.0.7"), Endpoint(ip=parse("10.2.0.7"), identity=identity))
    assert (state.endpoint(parse("10.2.0.7")) is not None) == taken
    assert ("endpoints/10.2.0.7" in state.views["beta"].refused) != taken
    state.put("own", "endpoints", parse("10.1.0.7"), Endpoint(ip=parse("10.1.0.7"), identity=identity))
    assert state.endpoint(parse("10.1.0.7")) is not None
