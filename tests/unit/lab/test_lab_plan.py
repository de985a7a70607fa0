"""The plan of a lab: what is where, and that nothing overlaps."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest

from clustermesh.errors import Invalid
from lab.plan import MAX_NODES, MAX_PODS, NAMES, make_plan


def test_the_default_lab_is_two_clusters_of_two_nodes() -> None:
    plan = make_plan()
    assert [(cluster.name, cluster.id) for cluster in plan.clusters] == [("alpha", 1), ("beta", 2)]
    assert [(machine.name, machine.address, machine.pod_cidr) for machine in plan.clusters[1].machines] == [
        ("beta-control", "172.20.2.1", None),
        ("beta-1", "172.20.2.11", "10.2.1.0/24"),
        ("beta-2", "172.20.2.12", "10.2.2.0/24"),
    ]
    assert plan.clusters[0].endpoint == "https://172.20.1.1:2379"


def test_the_largest_lab_uses_no_address_or_name_twice() -> None:
    plan = make_plan(len(NAMES), MAX_NODES, MAX_PODS)
    addresses = [machine.address for machine in plan.machines]
    names = [machine.name for machine in plan.machines]
    assert len(set(addresses)) == len(addresses)
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)  # they name network links too
    assert all(ip_address(address) in ip_network("172.20.0.0/16") for address in addresses)


def test_pod_cidrs_and_cluster_ips_overlap_nowhere() -> None:
    plan = make_plan(len(NAMES), MAX_NODES)
    cidrs = [ip_network(machine.pod_cidr) for machine in plan.machines if machine.pod_cidr]
    assert not any(one.overlaps(other) for one, other in combinations(cidrs, 2))
    ips = [ip_address(ip) for cluster in plan.clusters for ip in (cluster.web_ip, cluster.probe_ip)]
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
