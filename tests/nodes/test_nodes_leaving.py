"""Nodes come and go while both clusters are called: each has two for a while, of which alpha's second is drained, and
in the end it dies."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from functools import partial

import pytest
from mesh_web import Both, rolled_out

from lab.kubernetes.cluster import MESH, Cluster, at_once, clustermesh
from lab.kubernetes.demo import scale, until_connected
from lab.kubernetes.node import Node
from lab.kubernetes.workloads import Load
from lab.records import between

_ENOUGH = 200  # requests in a row
_API_SERVER = "deployment/clustermesh-apiserver"
_TABLES = (["encrypt", "status"], ["ipcache", "list"], ["service", "list"])


class Leaver:
    """A node of `cluster`, and what others know it by."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.cluster, self.node, self.name = cluster, node, node.name
        cidr = str(cluster.plane.get(f"/api/v1/nodes/{node.name}")["spec"]["podCIDR"])
        assert cidr.endswith(".0/24")
        self._words = [self.name, rf"\b{re.escape(str(node.address))}\b", rf"\b{re.escape(cidr.removesuffix('0/24'))}"]

    def is_known_by(self, other: Node) -> bool:
        """To the agent there, or its kernel: by name, address, or addresses of pods."""
        texts = [_ask(other, *table) for table in _TABLES]
        return any(re.search(word, text) for word in self._words for text in [*texts, other.routes()])

    def delete(self) -> None:
        """From the API, with its pods."""
        self.cluster.kubectl("delete", "node", self.name)
        there = ["--all-namespaces", f"--field-selector=spec.nodeName={self.name}", "--force", "--grace-period=0"]
        self.cluster.kubectl("delete", "pods", *there)


@pytest.fixture(scope="module")
def grown(shared: Both) -> Iterator[Both]:
    """Each has two nodes and a backend on each, of which all agents know."""
    for cluster in shared:
        cluster.grow(2)
    at_once(Cluster.until_grown, shared)
    at_once(lambda cluster: scale(cluster, "mesh", 2), shared)
    _until_spread(shared)
    yield shared
    at_once(lambda cluster: scale(cluster, "mesh", 1), shared)
    clustermesh("connect", "--context=alpha", "--destination-context=beta")  # through beta's second node, too


def _until_spread(both: Both) -> None:
    for cluster in both:
        assert {node for node, _ in _backends(cluster)} == {node.name for node in cluster.nodes}
    wanted = {address for cluster in both for _, address in _backends(cluster)}
    for cluster in both:
        cluster.until(partial(_all_call, cluster, wanted), "backends known")


def _backends(cluster: Cluster) -> list[tuple[str, str]]:
    """Node and address of each."""
    return [(pod["spec"]["nodeName"], pod["status"]["podIP"]) for pod in cluster.pods("mesh", "app=web")]


def _ask(node: Node, *words: str) -> str:
    """The agent there."""
    socket = node.folder / "own/run/clustermesh/agent.sock"
    return clustermesh("node", *words, "--output=json", f"--socket={socket}")


def _all_call(cluster: Cluster, addresses: Set[str]) -> bool:
    """All agents there have these, and no other backends."""
    listed = [each for node in cluster.nodes for each in json.loads(_ask(node, "service", "list"))]
    found = [each["backends"] for each in listed if each["service"] == "mesh/web"]
    return all({backend["address"] for backend in each} == addresses for each in found)


@contextmanager
def _called(both: Both, wait: float = 15.0) -> Iterator[list[Load]]:
    """The Service in both clusters, until each was answered often enough once all was done."""
    loads = [Load(cluster, "mesh", rate=50.0, wait=wait) for cluster in both]
    with loads[0].running(), loads[1].running():
        yield loads
        _go_on(both[0], loads)


def _go_on(cluster: Cluster, loads: Sequence[Load]) -> None:
    """Until each has been asked so often from now on."""
    since = time.monotonic()
    enough = [partial(_asked, load, since) for load in loads]
    cluster.until(lambda: all(each() for each in enough), "requests afterwards")


def _asked(load: Load, since: float) -> bool:
    return sum(each.at > since for each in load.records) > _ENOUGH


def test_a_node_that_joined_is_called_in_both_clusters(grown: Both) -> None:
    for cluster in grown:
        each = [address for _, address in _backends(grown[0])]
        load = Load(cluster, "mesh", ",".join(each))
        with load.running():
            _go_on(cluster, [load])
        assert load.traffic.failed == 0, load.traffic
        assert load.traffic.at.keys() == {*each}


@pytest.mark.parametrize("with_api_server", [False, True])
def test_no_request_fails_while_a_node_is_drained(grown: Both, with_api_server: bool) -> None:
    alpha, _ = grown
    first, second = (node.name for node in alpha.nodes)
    if with_api_server:
        alpha.kubectl("cordon", first)
        alpha.kubectl("rollout", "restart", _API_SERVER, "--namespace=kube-system")
        rolled_out(alpha, _API_SERVER)
        alpha.kubectl("uncordon", first)
        at_once(_until_whole, grown)
    assert _runs_api_server(alpha) == {second if with_api_server else first}
    with _called(grown) as loads:
        alpha.kubectl("drain", second, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
        at_once(_until_whole, grown)
        assert _runs_api_server(alpha) == {node for node, _ in _backends(alpha)} == {first}
    for load in loads:
        assert load.traffic.failed == 0, load.traffic
        assert load.traffic.answers.keys() == {"alpha", "beta"}
    alpha.kubectl("uncordon", second)
    scale(alpha, "mesh", 1)
    scale(alpha, "mesh", 2)
    _until_spread(grown)


def _runs_api_server(cluster: Cluster) -> set[str]:
    """The nodes that do."""
    return {pod["spec"]["nodeName"] for pod in cluster.pods("kube-system", "k8s-app=clustermesh-apiserver")}


def test_a_node_that_dies_costs_requests_to_its_own_backends_until_it_is_missed_and_none_later(grown: Both) -> None:
    alpha, beta = grown
    leaver = Leaver(alpha, alpha.nodes[-1])
    others = [address for cluster in grown for node, address in _backends(cluster) if node != leaver.name]
    assert len(others) == 3
    direct = Load(beta, "mesh", ",".join(others), rate=50.0)
    with _called(grown, wait=5.0) as loads, direct.running():  # who waits for the dead one is not well meanwhile
        begun = time.monotonic()
        alpha.lose(leaver.node)
        alpha.until(lambda: leaver.name not in _ready_nodes(alpha), "the node is missed")
        missed = time.monotonic()
        alpha.until(lambda: all(map(_is_well, loads)), "no request fails any more")
        well = time.monotonic()
        leaver.delete()
        at_once(_until_whole, grown)
    assert direct.traffic.failed == 0, direct.traffic
    for load in loads:
        failed = [each for each in load.records if each.error]
        assert all(begun < each.at + each.took and each.at < well for each in failed), load.traffic
        assert {each.cluster for each in load.records if each.at > well} == {"alpha", "beta"}
        meanwhile = between(load.records, begun, missed)
        assert 0 < len([each for each in meanwhile if each.error]) < len(meanwhile) / 2  # of four backends one is dead
    _until_forgotten(grown, leaver)


def _is_well(load: Load) -> bool:
    """None of the last requests failed."""
    last = load.records[-_ENOUGH:]
    return len(last) == _ENOUGH and not any(each.error for each in last)


def _ready_nodes(cluster: Cluster) -> set[str]:
    """Those with a backend that Kubernetes takes for ready."""
    found = cluster.plane.get("/apis/discovery.k8s.io/v1/namespaces/mesh/endpointslices")["items"]
    return {one["nodeName"] for each in found for one in each["endpoints"] or () if one["conditions"]["ready"]}


def _until_whole(cluster: Cluster) -> None:
    cluster.until_running("kube-system", MESH)
    cluster.until_running("mesh")
    until_connected(cluster)


def _until_forgotten(both: Both, leaver: Leaver) -> None:
    """Nothing of it is left in either cluster. A beat of its own API server is what an agent may have to wait for."""
    at_once(lambda cluster: cluster.until(lambda: not any(map(leaver.is_known_by, cluster.nodes)), leaver.name), both)
