"""Which Nodes the agents' DaemonSet leaves out, by the pods that it has made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from clustermesh.joining.agent_pods import find_left_out
from clustermesh.joining.objects import Objects


class FakeCluster(Objects):
    """A DaemonSet with pods that are on nodes, or, as "(name)", are to come to them."""

    def __init__(self, pods: str, status: dict[str, int] | None) -> None:
        self.namespace, self._pods, self._status, self.listed = "kube-system", pods.split(), status, False

    async def read(self, _plural: str, name: str, kind: type[Any], _group: str = "") -> Any:
        assert name == "clustermesh-agent"
        if self._status is None:
            return None
        return msgspec.convert({"metadata": {"generation": 3}, "status": self._status}, kind)

    async def list(self, path: str, kind: type[Any], selector: str = "") -> list[Any]:
        self.listed = True
        assert (path, selector) == ("/api/v1/namespaces/kube-system/pods", "k8s-app=clustermesh-agent")
        return [msgspec.convert({"spec": pod(name)}, kind) for name in self._pods]


def pod(where: str) -> dict[str, Any]:
    if not where.startswith("("):
        return {"nodeName": where, "affinity": {}}
    field = {"key": "metadata.name", "operator": "In", "values": [where.strip("()")]}
    terms = {
        "nodeSelectorTerms": [{"matchFields": [field]}, {"matchExpressions": [{"key": "x", "operator": "Exists"}]}]
    }
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


def status(wanted: int, made: int | None = None, observed: int = 3) -> dict[str, int]:
    made = wanted if made is None else made
    return {"observedGeneration": observed, "desiredNumberScheduled": wanted, "currentNumberScheduled": made}


@pytest.mark.parametrize(
    ("pods", "told", "expected"),
    [
        ("a b", status(2), "windows"),
        ("a (b)", status(2), "windows"),  # b is full, or not ready: its agent is waited for
        ("a b windows", status(3), ""),
        ("a", status(2, made=1), ""),  # it makes them still
        ("", status(0, observed=2), ""),  # it has just been made, or changed
        ("", status(0), "a b windows"),
        ("", None, ""),  # agents of somebody else's
    ],
)
async def test_nodes_without_a_pod_are_left_out_once_all_pods_are_made(
    pods: str, told: dict[str, int] | None, expected: str
) -> None:
    cluster = FakeCluster(pods, told)
    assert await find_left_out(cluster, frozenset({"a", "b", "windows"})) == frozenset(expected.split())
    if told == status(3):
        assert not cluster.listed, "thousands of pods are not listed where all nodes have one"
