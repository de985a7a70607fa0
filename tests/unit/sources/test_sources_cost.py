"""What a change costs, in instructions and not in time: as much in a large cluster as in a small one."""

from __future__ import annotations

from typing import Any

import kube
import pytest
from instructions import count_instructions

from clustermesh.sources.objects import Object, Ref
from clustermesh.sources.translate import Translator


class Cluster:
    """So many nodes, ten pods on each, a service for ten pods."""

    def __init__(self, nodes: int) -> None:
        self.objects: dict[Ref, Object] = kube.decode(kube.namespace("shop"))
        for number in range(nodes):
            self.objects |= kube.decode(*_node(number))
        self.translator = Translator(kube.ALPHA, self.objects, selects=False)
        self.translator.apply(dict.fromkeys(self.objects, 0))

    def cost(self, *manifests: dict[str, Any]) -> int:
        """What it takes to take in changed manifests."""
        changed = kube.decode(*manifests)
        self.objects |= changed
        return count_instructions(lambda: self.translator.apply(dict.fromkeys(changed, 1)))


def _node(number: int, **labels: str) -> list[dict[str, Any]]:
    high, low = divmod(number, 250)
    node = kube.node(f"n{number}", f"192.{high}.2.{low + 1}", f"10.{high}.{low}.0/24")
    node["metadata"]["labels"] = labels
    pods = [_pod(number, each) for each in range(10)]
    service = kube.service(f"s{number}", selector={"app": f"a{number}"})
    found = kube.endpoint_slice(f"s{number}-1", f"s{number}", [pod["status"]["podIP"] for pod in pods])
    return [node, *pods, service, found]


def _pod(number: int, each: int, **labels: str) -> dict[str, Any]:
    high, low = divmod(number, 250)
    labels = {"app": f"a{number}", **labels}
    return kube.pod(f"p{number}-{each}", f"10.{high}.{low}.{each + 5}", labels, nodeName=f"n{number}")


CHANGES: dict[str, list[dict[str, Any]]] = {
    "one pod": [_pod(7, 3, flavour="blue")],
    "a label of one node": _node(7, zone="z1")[:1],
    "one slice": [kube.endpoint_slice("s7-1", "s7", ["10.0.7.5"])],
    "one service": [kube.service("s7", global_=False)],
    "one more node": [kube.node("late", "198.51.100.1", "10.200.0.0/24")],
    "one node's other address": [kube.node("n7", "198.51.100.2", "10.0.7.0/24")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_costs_in_a_large_cluster_what_it_costs_in_a_small_one(change: str) -> None:
    small, large = (Cluster(nodes).cost(*CHANGES[change]) for nodes in (10, 300))
    assert large < 1.2 * small, "caches are of use to the small one"


def test_what_a_mesh_does_not_use_costs_next_to_nothing() -> None:
    told_again = [*_node(7)]
    assert Cluster(20).cost(*told_again) < 100 * len(told_again)


def test_a_label_of_a_node_costs_no_pod() -> None:
    cluster = Cluster(10)
    manifest = _node(7, zone="z1")[:1]
    cluster.objects |= kube.decode(*manifest)
    change = cluster.translator.apply({Ref("Node", "", "n7"): 1})
    assert (change.nodes, change.endpoints, change.services) == (frozenset({"n7"}), frozenset(), {})
