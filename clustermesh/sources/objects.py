"""The Kubernetes objects a mesh is made of, with the fields it uses, whether they come from YAML or from the API.

Cilium's own resources (cilium.io) are those of `cilium_objects`. `KINDS` is the one list of all of them. Reading them
is `decoding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct, field

from clustermesh.sources.cilium_objects import CiliumEndpoint, CiliumEndpointSlice, CiliumIdentity, CiliumNode
from clustermesh.sources.metadata import Metadata


class Namespace(Struct, frozen=True, gc=False):
    metadata: Metadata


class Address(Struct, frozen=True, gc=False):
    type: str
    address: str


class NodeInfo(Struct, frozen=True, gc=False):
    boot_id: str = field(default="", name="bootID")


class NodeStatus(Struct, frozen=True, gc=False, rename="camel"):
    addresses: list[Address] = []
    node_info: NodeInfo = NodeInfo()


class NodeSpec(Struct, frozen=True, gc=False):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: list[str] = field(default_factory=list, name="podCIDRs")


class Node(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerPort(Struct, frozen=True, gc=False, rename="camel"):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class Container(Struct, frozen=True, gc=False):
    ports: list[ContainerPort] = []


class PodSpec(Struct, frozen=True, gc=False, rename="camel"):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = "default"
    hostname: str = ""
    subdomain: str = ""
    containers: list[Container] = []


class PodIP(Struct, frozen=True, gc=False):
    ip: str


class Condition(Struct, frozen=True, gc=False):
    type: str
    status: str


class PodStatus(Struct, frozen=True, gc=False):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] = field(default_factory=list, name="podIPs")
    host_ip: str = field(default="", name="hostIP")
    conditions: list[Condition] = []


class Pod(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(Struct, frozen=True, gc=False, rename="camel"):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None
    app_protocol: str = ""
    node_port: int = 0


class ClientIPAffinity(Struct, frozen=True, gc=False, rename="camel"):
    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True, gc=False):
    client_ip: ClientIPAffinity | None = field(name="clientIP", default=None)


class ServiceSpec(Struct, frozen=True, gc=False):
    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] = field(default_factory=list, name="clusterIPs")
    ports: list[ServicePort] = []
    selector: dict[str, str] = {}
    publish_not_ready: bool = field(default=False, name="publishNotReadyAddresses")
    session_affinity: str = field(default="", name="sessionAffinity")
    session_affinity_config: SessionAffinityConfig | None = field(default=None, name="sessionAffinityConfig")
    ip_families: list[str] = field(default_factory=list, name="ipFamilies")
    internal_traffic_policy: str = field(default="", name="internalTrafficPolicy")
    traffic_distribution: str = field(default="", name="trafficDistribution")
    external_ips: tuple[str, ...] = field(default=(), name="externalIPs")
    external_traffic_policy: str = field(default="", name="externalTrafficPolicy")
    health_check_node_port: int = field(default=0, name="healthCheckNodePort")
    source_ranges: tuple[str, ...] = field(default=(), name="loadBalancerSourceRanges")


class Ingress(Struct, frozen=True, gc=False, rename="camel"):
    """Where a load balancer is. What has a hostname alone has no `ip`."""

    ip: str = ""
    ip_mode: str = "VIP"


class LoadBalancer(Struct, frozen=True, gc=False):
    ingress: tuple[Ingress, ...] = ()


class ServiceStatus(Struct, frozen=True, gc=False, rename="camel"):
    load_balancer: LoadBalancer = LoadBalancer()


class Service(Struct, frozen=True, gc=False):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class ServiceExportSpec(Struct, frozen=True, gc=False, rename="camel"):
    exported_labels: dict[str, str] = {}
    exported_annotations: dict[str, str] = {}


class ServiceExport(Struct, frozen=True, gc=False):
    """Of the MCS API: the Service of this name is for all clusters."""

    metadata: Metadata
    spec: ServiceExportSpec = ServiceExportSpec()


class EndpointPort(Struct, frozen=True, gc=False):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Conditions(Struct, frozen=True, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Struct, frozen=True, gc=False):
    """The name of a zone, or of a node."""

    name: str


class Hints(Struct, frozen=True, gc=False, rename="camel"):
    for_zones: tuple[Hint, ...] = ()
    for_nodes: tuple[Hint, ...] = ()


class SliceEndpoint(Struct, frozen=True, gc=False, rename="camel"):
    addresses: list[str]
    conditions: Conditions = Conditions()
    hostname: str = ""
    zone: str = ""
    hints: Hints = Hints()
    node_name: str = ""


class EndpointSlice(Struct, frozen=True, gc=False, rename="camel"):
    metadata: Metadata
    address_type: str
    endpoints: list[SliceEndpoint] = []
    ports: list[EndpointPort] = []


CiliumObject: TypeAlias = CiliumNode | CiliumIdentity | CiliumEndpoint | CiliumEndpointSlice
Object: TypeAlias = Namespace | Node | Pod | Service | EndpointSlice | ServiceExport | CiliumObject


class Ref(NamedTuple):
    """What names an object: its kind, its namespace ("" for Namespace and Node) and its name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Kind(NamedTuple):
    """One kind of object: its API group ("" is the core) and the versions read, the best one first; its plural is where
    the API lists it."""

    name: str
    group: str
    versions: tuple[str, ...]
    plural: str
    type: type[Object]
    namespaced: bool = True


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("Namespace", "", ("v1",), "namespaces", Namespace, namespaced=False),
            Kind("Node", "", ("v1",), "nodes", Node, namespaced=False),
            Kind("Pod", "", ("v1",), "pods", Pod),
            Kind("Service", "", ("v1",), "services", Service),
            Kind("EndpointSlice", "discovery.k8s.io", ("v1",), "endpointslices", EndpointSlice),
            Kind("ServiceExport", "multicluster.x-k8s.io", ("v1beta1", "v1alpha1"), "serviceexports", ServiceExport),
            Kind("CiliumNode", "cilium.io", ("v2",), "ciliumnodes", CiliumNode, namespaced=False),
            Kind("CiliumIdentity", "cilium.io", ("v2",), "ciliumidentities", CiliumIdentity, namespaced=False),
            Kind("CiliumEndpoint", "cilium.io", ("v2",), "ciliumendpoints", CiliumEndpoint),
            Kind(
                "CiliumEndpointSlice",
                "cilium.io",
                ("v2", "v2alpha1"),
                "ciliumendpointslices",
                CiliumEndpointSlice,
                namespaced=False,
            ),
        )
    }
)
