"""What a lab consists of, and which name and address everything has. Pure; sizes in, names and addresses out.

Addresses: the underlay is 172.20.0.0/16, control 172.20.<id>.1 and nodes 172.20.<id>.1<n>; pods 10.<id>.<n>.0/24;
cluster IPs 10.<96+id>.0.0/16. No two clusters overlap, and `web` has another cluster IP in each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from clustermesh.errors import Invalid

NAMES: Final = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
MAX_NODES: Final = 8
MAX_PODS: Final = 100
FOLDER: Final = Path("/run/clustermesh-lab")
INTERNET: Final = "internet"
ETCD_PORT: Final = 2379
WEB_PORT: Final = 80
WEB_TARGET_PORT: Final = 8080


class NodePlan(Struct, frozen=True, kw_only=True):
    """A machine of the lab: `pod_cidr` is None where it runs no pods (the control node of a cluster)."""

    name: str
    cluster: str
    address: str
    pod_cidr: str | None = None


class PodPlan(Struct, frozen=True, kw_only=True):
    """`role` is "web" (serves) or "client" (sleeps; load is started in it)."""

    name: str
    cluster: str
    node: str
    role: str


class ClusterPlan(Struct, frozen=True, kw_only=True):
    """One cluster: `nodes` run agents and pods, `control` runs etcd and the API server."""

    name: str
    id: int
    control: NodePlan
    nodes: tuple[NodePlan, ...]
    pods: tuple[PodPlan, ...]
    web_ip: str
    probe_ip: str

    @property
    def endpoint(self) -> str:
        """URL of its etcd, as peers reach it."""
        return f"https://{self.control.address}:{ETCD_PORT}"

    @property
    def machines(self) -> tuple[NodePlan, ...]:
        return (self.control, *self.nodes)

    def pods_of(self, role: str) -> tuple[PodPlan, ...]:
        return tuple(pod for pod in self.pods if pod.role == role)


class LabPlan(Struct, frozen=True, kw_only=True):
    """The whole lab, and the one folder that holds everything it writes."""

    clusters: tuple[ClusterPlan, ...]
    folder: str = str(FOLDER)

    @property
    def machines(self) -> tuple[NodePlan, ...]:
        return tuple(machine for cluster in self.clusters for machine in cluster.machines)

    @property
    def pods(self) -> tuple[PodPlan, ...]:
        return tuple(pod for cluster in self.clusters for pod in cluster.pods)

    def cluster(self, name: str) -> ClusterPlan:
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        known = ", ".join(cluster.name for cluster in self.clusters)
        raise Invalid("cluster", name, f"must be one of {known}")

    def context(self, cluster: str) -> Path:
        """The cluster's folder: manifests, certificates, peers."""
        return Path(self.folder) / "clusters" / cluster

    def home(self, machine: str) -> Path:
        """What the lab keeps about one machine: its services and their logs."""
        return Path(self.folder) / "nodes" / machine


def make_plan(clusters: int = 2, nodes: int = 2, pods: int = 2, folder: str = str(FOLDER)) -> LabPlan:
    """A lab of `clusters` of `nodes` each, with `pods` web pods and one client pod per cluster, or Invalid."""
    _check_range("clusters", clusters, len(NAMES))
    _check_range("nodes", nodes, MAX_NODES)
    _check_range("pods", pods, MAX_PODS)
    return LabPlan(clusters=tuple(_cluster(index + 1, nodes, pods) for index in range(clusters)), folder=folder)


def _check_range(what: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise Invalid(what, count, f"must be from 1 to {most}")


def _cluster(cluster_id: int, nodes: int, pods: int) -> ClusterPlan:
    name = NAMES[cluster_id - 1]
    machines = tuple(
        NodePlan(
            name=f"{name}-{n}",
            cluster=name,
            address=f"172.20.{cluster_id}.{10 + n}",
            pod_cidr=f"10.{cluster_id}.{n}.0/24",
        )
        for n in range(1, nodes + 1)
    )
    web = [
        PodPlan(name=f"web-{n}", cluster=name, node=machines[(n - 1) % nodes].name, role="web")
        for n in range(1, pods + 1)
    ]
    client = PodPlan(name="client", cluster=name, node=machines[0].name, role="client")
    return ClusterPlan(
        name=name,
        id=cluster_id,
        control=NodePlan(name=f"{name}-control", cluster=name, address=f"172.20.{cluster_id}.1"),
        nodes=machines,
        pods=(*web, client),
        web_ip=f"10.{96 + cluster_id}.0.10",
        probe_ip=f"10.{96 + cluster_id}.0.20",
    )
