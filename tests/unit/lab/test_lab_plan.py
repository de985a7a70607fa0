"""The plan of a lab: what is where, and that nothing overlaps."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest

from clustermesh.errors import Invalid
from lab.plan import MAX_NODES, MAX_PODS, NAMES, family_of, make_plan


def test_the_default_lab_is_two_clusters_of_two_nodes() -> None:
    plan = make_plan()
    assert [(cluster.name, cluster.id) for cluster in plan.clusters] == [("alpha", 1), ("beta", 2)]
    assert [(machine.name, machine.addresses, machine.pod_cidrs) for machine in plan.clusters[1].machines] == [
        ("beta-control", ("172.20.2.1", "fd00:172:20:2::1"), ()),
        ("beta-1", ("172.20.2.11", "fd00:172:20:2::11"), ("10.2.1.0/24", "fd00:10:2:1::/64")),
        ("beta-2", ("172.20.2.12", "fd00:172:20:2::12"), ("10.2.2.0/24", "fd00:10:2:2::/64")),
    ]
    assert plan.clusters[0].endpoint == "https://172.20.1.1:2379"
    assert plan.clusters[0].web_ips == ("10.97.0.10", "fd00:10:97::10")


@pytest.mark.parametrize("families", [("ipv4",), ("ipv6",), ("ipv6", "ipv4")])
def test_everything_has_an_address_of_each_family_the_primary_one_first(families: tuple[str, ...]) -> None:
    plan = make_plan(families=families)
    cluster = plan.clusters[0]
    for each in (cluster.control.addresses, cluster.nodes[0].addresses, cluster.nodes[0].pod_cidrs, cluster.web_ips):
        assert tuple(map(family_of, each)) == families
    assert cluster.endpoint == ("https://172.20.1.1:2379" if "ipv4" in families else "https://[fd00:172:20:1::1]:2379")


@pytest.mark.parametrize("families", [(), ("ipv5",), ("ipv4", "ipv4"), ("IPv4",)])
def test_a_family_that_is_none_is_refused(families: tuple[str, ...]) -> None:
    with pytest.raises(Invalid, match=r"must be ipv4, ipv6, or both"):
        make_plan(families=families)


def test_the_largest_lab_uses_no_address_or_name_twice() -> None:
    plan = make_plan(len(NAMES), MAX_NODES, MAX_PODS)
    addresses = [address for machine in plan.machines for address in machine.addresses]
    names = [machine.name for machine in plan.machines]
    assert len(set(addresses)) == len(addresses)
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)  # they name network links too
    underlay = {"ipv4": ip_network("172.20.0.0/16"), "ipv6": ip_network("fd00:172:20::/48")}
    assert all(ip_address(address) in underlay[family_of(address)] for address in addresses)


def test_pod_cidrs_and_cluster_ips_overlap_nowhere() -> None:
    plan = make_plan(len(NAMES), MAX_NODES)
    cidrs = [ip_network(cidr) for machine in plan.machines for cidr in machine.pod_cidrs]
    assert not any(one.overlaps(other) for one, other in combinations(cidrs, 2) if one.version == other.version)
    ips = [ip_address(ip) for cluster in plan.clusters for ip in (*cluster.web_ips, *cluster.probe_ips)]
    assert len(set(ips)) == len(ips)
    assert not any(ip in cidr for ip in ips for cidr in cidrs)


def test_pods_are_spread_over_the_nodes_with_one_client_each() -> None:
    cluster = make_plan(1, 2, 3).cluster("alpha")
    assert [(pod.name, pod.node) for pod in cluster.pods] == [
        ("web-1", "alpha-1"),
        ("web-2", "alpha-2"),
        ("web-3", "alpha-1"),
        ("client", "alpha-1"),
    ]
    assert [pod.name for pod in cluster.pods_of("client")] == ["client"]


@pytest.mark.parametrize("size", [(0, 2, 2), (9, 2, 2), (2, 0, 2), (2, 9, 2), (2, 2, 0), (2, 2, 101)])
def test_a_size_out_of_range_says_which_and_what_is_allowed(size: tuple[int, int, int]) -> None:
    with pytest.raises(Invalid, match=r"(clusters|nodes|pods): .*must be from 1 to"):
        make_plan(*size)


def test_a_cluster_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(Invalid, match="'gamma': must be one of alpha, beta"):
        make_plan().cluster("gamma")
