"""What a lab consists of, and which name and address everything has. Pure; sizes in, names and addresses out.

             IPv4                               IPv6
underlay     172.20.<id>.1 and .1<n>, /16       fd00:172:20:<id>::1 and ::1<n>, /48   (control, nodes)
pods         10.<id>.<n>.0/24                   fd00:10:<id>:<n>::/64
cluster IPs  10.<96+id>.0.<10 or 20>            fd00:10:<96+id>::<10 or 20>           (web, probe)

No two clusters overlap, and `web` has another cluster IP in each. A lab has one family or both; everything that has an
address of each has them in the order of the families, the primary one first.
"""

from __future__ import annotations

from collections.abc import Sequence
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
FAMILIES: Final = ("ipv4", "ipv6")
UNDERLAY_LENGTH: Final = {"ipv4": 16, "ipv6": 48}


class NodePlan(Struct, frozen=True, kw_only=True):
    """A machine of the lab: it has no `pod_cidrs` where it runs no pods (the control node of a cluster)."""

    name: str
    cluster: str
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()


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
    web_ips: tuple[str, ...] = ()
    probe_ips: tuple[str, ...] = ()

    @property
    def endpoint(self) -> str:
        """URL of its etcd, as peers reach it: over IPv4 where the lab has it."""
        address = min(self.control.addresses, key=family_of)
        return f"https://[{address}]:{ETCD_PORT}" if ":" in address else f"https://{address}:{ETCD_PORT}"

    @property
    def machines(self) -> tuple[NodePlan, ...]:
        return (self.control, *self.nodes)

    def pods_of(self, role: str) -> tuple[PodPlan, ...]:
        return tuple(pod for pod in self.pods if pod.role == role)


class LabPlan(Struct, frozen=True, kw_only=True):
    """The whole lab, and the one folder that holds everything it writes."""

    clusters: tuple[ClusterPlan, ...]
    folder: str = str(FOLDER)
    families: tuple[str, ...] = FAMILIES

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


def family_of(address: str) -> str:
    """ "ipv4" or "ipv6": of an address or a CIDR."""
    return "ipv6" if ":" in address else "ipv4"


def make_plan(
    clusters: int = 2, nodes: int = 2, pods: int = 2, folder: str = str(FOLDER), families: Sequence[str] = FAMILIES
) -> LabPlan:
    """A lab of `clusters` of `nodes` each, with `pods` web pods and one client pod per cluster, or Invalid."""
    _check_range("clusters", clusters, len(NAMES))
    _check_range("nodes", nodes, MAX_NODES)
    _check_range("pods", pods, MAX_PODS)
    if not families or len(set(families)) < len(families) or not set(families) <= set(FAMILIES):
        raise Invalid("ip-families", ",".join(families), "must be ipv4, ipv6, or both with the primary first")
    made = tuple(_cluster(index + 1, nodes, pods, families) for index in range(clusters))
    return LabPlan(clusters=made, folder=folder, families=tuple(families))


def _check_range(what: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise Invalid(what, count, f"must be from 1 to {most}")


def _cluster(cluster_id: int, nodes: int, pods: int, families: Sequence[str]) -> ClusterPlan:
    name = NAMES[cluster_id - 1]

    def each(ipv4: str, ipv6: str) -> tuple[str, ...]:
        return tuple({"ipv4": ipv4, "ipv6": ipv6}[family] for family in families)

    machines = tuple(
        NodePlan(
            name=f"{name}-{n}",
            cluster=name,
            addresses=each(f"172.20.{cluster_id}.{10 + n}", f"fd00:172:20:{cluster_id}::{10 + n}"),
            pod_cidrs=each(f"10.{cluster_id}.{n}.0/24", f"fd00:10:{cluster_id}:{n}::/64"),
        )
        for n in range(1, nodes + 1)
    )
    control = each(f"172.20.{cluster_id}.1", f"fd00:172:20:{cluster_id}::1")
    return ClusterPlan(
        name=name,
        id=cluster_id,
        control=NodePlan(name=f"{name}-control", cluster=name, addresses=control),
        nodes=machines,
        pods=_pods(machines, pods),
        web_ips=each(f"10.{96 + cluster_id}.0.10", f"fd00:10:{96 + cluster_id}::10"),
        probe_ips=each(f"10.{96 + cluster_id}.0.20", f"fd00:10:{96 + cluster_id}::20"),
    )


def _pods(machines: Sequence[NodePlan], count: int) -> tuple[PodPlan, ...]:
    """`count` web pods, spread over the nodes of a cluster, and a client on the first."""
    roles = [*(("web", f"web-{n}", machines[(n - 1) % len(machines)]) for n in range(1, count + 1))]
    roles.append(("client", "client", machines[0]))
    return tuple(PodPlan(name=name, cluster=node.cluster, node=node.name, role=role) for role, name, node in roles)
