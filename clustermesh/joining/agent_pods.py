"""On which Nodes agents are: those that the agents' DaemonSet has pods for. Only what takes `Objects` does I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from clustermesh.joining import names
from clustermesh.joining.objects import Objects


class _Requirement(Struct, frozen=True):
    key: str = ""
    values: list[str] | None = None


class _Term(Struct, frozen=True, rename="camel"):
    match_fields: list[_Requirement] | None = None


class _Required(Struct, frozen=True, rename="camel"):
    node_selector_terms: list[_Term] = []


class _NodeAffinity(Struct, frozen=True, rename={"required": "requiredDuringSchedulingIgnoredDuringExecution"}):
    required: _Required | None = None


class _Affinity(Struct, frozen=True, rename="camel"):
    node_affinity: _NodeAffinity | None = None


class _PodSpec(Struct, frozen=True, rename="camel"):
    node_name: str = ""
    affinity: _Affinity | None = None


class Pod(Struct, frozen=True):
    """A pod of a DaemonSet, as far as it tells where it is, or is to be."""

    spec: _PodSpec = _PodSpec()


class _Meta(Struct, frozen=True):
    generation: int = 0


class _Status(Struct, frozen=True, rename="camel"):
    observed_generation: int = 0
    desired_number_scheduled: int = 0
    current_number_scheduled: int = 0


class DaemonSet(Struct, frozen=True):
    """As far as it says for how many Nodes it has pods."""

    metadata: _Meta = _Meta()
    status: _Status = _Status()

    @property
    def settled(self) -> bool:
        """Whether it has made all pods that it wants as it is now."""
        status = self.status
        seen = status.observed_generation >= self.metadata.generation
        return seen and status.current_number_scheduled >= status.desired_number_scheduled


_SELECTOR: Final = f"k8s-app={names.AGENTS}"


async def find_agent_pods(objects: Objects) -> frozenset[str]:
    """The Nodes with a pod of the agents, or that one is to come to. Raises ClusterMeshError."""
    return frozenset(nodes_of(await objects.list(f"/api/v1/namespaces/{objects.namespace}/pods", Pod, _SELECTOR)))


async def are_ciliums(objects: Objects) -> bool:
    """Whether the agents are Cilium's, which report to nobody but Cilium's own command. Raises ClusterMeshError."""
    if await objects.read("daemonsets", names.AGENTS, DaemonSet, "apis/apps/v1") is not None:
        return False
    return await objects.read("daemonsets", names.CILIUM, DaemonSet, "apis/apps/v1") is not None


async def find_left_out(objects: Objects, nodes: frozenset[str]) -> frozenset[str]:
    """Those of the `nodes` that the DaemonSet of the agents leaves out, by its selector, its affinity or a taint; none
    where there is no such DaemonSet, or it has not made its pods yet. Raises ClusterMeshError."""
    agents = await objects.read("daemonsets", names.AGENTS, DaemonSet, "apis/apps/v1")
    if agents is None or not agents.settled:
        return frozenset()
    if len(nodes) <= agents.status.desired_number_scheduled:
        return frozenset()
    return nodes - await find_agent_pods(objects)


def nodes_of(pods: Iterable[Pod]) -> Iterator[str]:
    """Where they are; one that is not scheduled says which Node its controller made it for."""
    for pod in pods:
        if pod.spec.node_name:
            yield pod.spec.node_name
            continue
        affinity = pod.spec.affinity and pod.spec.affinity.node_affinity
        for term in affinity.required.node_selector_terms if affinity and affinity.required else ():
            for field in term.match_fields or ():
                yield from (field.values or () if field.key == "metadata.name" else ())
