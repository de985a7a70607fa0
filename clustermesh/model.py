"""What the mesh is about: clusters, nodes, identities, services, endpoints. Frozen, without I/O; read this first.

Wire forms live in `clustermesh.wire` as encode/decode pairs; Kubernetes forms in `clustermesh.sources`. Addresses and
CIDRs of both families are those of `clustermesh.address`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final

from msgspec import Struct

from clustermesh.address import Address, Prefix, is_ipv4
from clustermesh.errors import Invalid

MAX_CLUSTERS: Final = 255
USUAL_NODE_PORTS: Final = range(30000, 32768)
"""Kubernetes' own where nobody says another range: what else a node listens at is out of it."""
_CLUSTER_NAME: Final = re.compile(r"([a-z0-9][-a-z0-9]*)?[a-z0-9]")


class Cluster(Struct, frozen=True, gc=False, kw_only=True):
    """One cluster of the mesh. `max_clusters` is 255 or 511 and equal in every cluster of a mesh."""

    name: str
    id: int
    max_clusters: int = MAX_CLUSTERS


class Protocol(StrEnum):
    """Layer 4 protocols, spelled as Kubernetes and Cilium spell them."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"
    ANY = "ANY"
    NONE = "NONE"


class Port(Struct, frozen=True, gc=False, kw_only=True):
    """A layer 4 port, 0 to 65535."""

    protocol: Protocol
    port: int


class Zone(Struct, frozen=True, gc=False, kw_only=True):
    """Topology of one backend: the zone it runs in, and the zones that should prefer it."""

    zone: str = ""
    for_zones: tuple[str, ...] = ()


class Affinity(StrEnum):
    """Whose backends a global service prefers (annotation service.cilium.io/affinity)."""

    NONE = "none"
    LOCAL = "local"
    REMOTE = "remote"


class Service(Struct, frozen=True, gc=False, kw_only=True):
    """What one cluster says of one service: where it is called, and who answers there.

    `frontends` maps a cluster IP to its ports by name, `backends` an endpoint IP to its TARGET ports by name; a
    nameless port has the name "". Frontends and backends meet by port name, never by number. `hostnames` and `zones`
    are keyed by endpoint IP too. `terminating` are backends elsewhere that serve until they end; of own ones
    `LocalService` says it.
    """

    cluster: str
    cluster_id: int
    namespace: str
    name: str
    frontends: Mapping[Address, Mapping[str, Port]] = {}
    backends: Mapping[Address, Mapping[str, Port]] = {}
    hostnames: Mapping[Address, str] = {}
    zones: Mapping[Address, Zone] = {}
    labels: Mapping[str, str] = {}
    selector: Mapping[str, str] = {}
    include_external: bool = True
    shared: bool = True
    terminating: frozenset[Address] = frozenset()


class Algorithm(IntEnum):
    """How a backend is chosen inside a service (annotation service.cilium.io/lb-algorithm). Numbers as in
    bpf/layouts.h."""

    RANDOM = 0
    MAGLEV = 1


class BackendState(IntEnum):
    """Only ACTIVE backends are given to new connections; where a service has none, those that serve while they
    terminate. Numbers as in bpf/layouts.h."""

    ACTIVE = 0
    TERMINATING = 1
    QUARANTINED = 2
    MAINTENANCE = 3


USUAL_WEIGHT: Final = 100
MAX_WEIGHT: Final = 0xFFFF


class BackendDetail(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What is said of one backend beside its ports.

    `weight` is its part beside others, 1 to MAX_WEIGHT. `node` is where it runs, as far as its service asks for it.
    `for_zones` and `for_nodes` are hints: who should prefer it.
    """

    state: BackendState = BackendState.ACTIVE
    weight: int = USUAL_WEIGHT
    node: str = ""
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


class ServiceType(StrEnum):
    """`spec.type` of a Service."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class Outside(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """How a service is called from outside of its cluster.

    `node_ports`, on every node, are by the names of the service's ports; at the addresses the ports are the service's
    own. Where `local_only`, each node gives what comes from outside to backends on it alone, and says at
    `health_check_port`, if that is not 0, whether it has any. Who calls a load balancer's address must be in one of
    `source_ranges`: None is everybody, () is nobody.
    """

    node_ports: Mapping[str, Port] = {}
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    source_ranges: tuple[Prefix, ...] | None = None
    local_only: bool = False
    health_check_port: int = 0


class HostPorts(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The ports of a node that lead to one pod there, by the names that the pod's ports have among the backends. A port
    with one of `addresses` is at this address of the node, any other at all of them."""

    node: str
    ports: Mapping[str, Port]
    addresses: Mapping[str, Address] = {}


NOT_OUTSIDE: Final = Outside()


class LocalService(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A service as its own cluster's nodes need it: also when it is not global, and with what only they act on.

    Where `local_only`, a cluster IP leads to backends on the caller's node alone. `affinity_seconds` is for how long a
    client keeps its backend, 0 for not at all. `details` are of those of the service's backends of which there is
    anything to say. `draining` are other backends, by their ports, not ready ones and such as terminate: they get no
    new connection, whatever happens, and finish those they have. What has `host_ports` is no Service but stands for a
    pod, and concerns its node alone.
    """

    service: Service
    is_global: bool = False
    affinity: Affinity = Affinity.NONE
    type: ServiceType = ServiceType.CLUSTER_IP
    outside: Outside = NOT_OUTSIDE
    local_only: bool = False
    affinity_seconds: int = 0
    algorithm: Algorithm = Algorithm.RANDOM
    details: Mapping[Address, BackendDetail] = {}
    draining: Mapping[Address, Mapping[str, Port]] = {}
    host_ports: HostPorts | None = None


class NodeAddress(Struct, frozen=True, gc=False, kw_only=True):
    """`type` is InternalIP, ExternalIP, CiliumInternalIP, Hostname, InternalDNS or ExternalDNS."""

    type: str
    ip: Address


class Node(Struct, frozen=True, gc=False, kw_only=True):
    """A machine of a cluster. The WireGuard key is base64 of 32 bytes, "" for none.

    `pod_cidrs` are what it hands out to pods, of each family the first one allotted first, IPv4 before IPv6. There is
    at most one health and one ingress address of a family.
    """

    cluster: str
    cluster_id: int
    name: str
    addresses: tuple[NodeAddress, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    health_ips: tuple[Address, ...] = ()
    ingress_ips: tuple[Address, ...] = ()
    source: str = "custom-resource"
    encryption_key: int = 0
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    node_identity: int = 0
    wireguard_public_key: str = ""
    boot_id: str = ""

    def address(self, *types: str, ipv4: bool | None = None) -> Address | None:
        """The first address of the first of `types` that has one, IPv4 before IPv6; of one family where `ipv4` says."""
        for wanted in types:
            found = [a.ip for a in self.addresses if a.type == wanted and ipv4 in (None, is_ipv4(a.ip))]
            if found:
                return min(found, key=lambda ip: not is_ipv4(ip))
        return None

    @property
    def underlay(self) -> Address | None:
        """Where tunnels to this node end: its first InternalIP, IPv4 before IPv6, else its first ExternalIP."""
        return self.address("InternalIP", "ExternalIP")


class Label(Struct, frozen=True, gc=False, kw_only=True):
    """One label of an identity, `source:key=value`; Kubernetes labels have the source "k8s"."""

    source: str
    key: str
    value: str = ""


class Identity(Struct, frozen=True, gc=False, kw_only=True):
    """A number for a set of labels, from the range of the cluster that allotted it. Labels are sorted by key."""

    id: int
    labels: tuple[Label, ...]


class NamedPort(Struct, frozen=True, gc=False, kw_only=True):
    """A container port with a name."""

    name: str
    port: int
    protocol: Protocol


class Endpoint(Struct, frozen=True, gc=False, kw_only=True):
    """Who is behind an address: `identity` at `host_ip`.

    `key` is 255 where traffic to it is encrypted by WireGuard, else 0. `prefix_length`, in bits of 128, is None for a
    single address, which every pod has.
    """

    ip: Address
    identity: int
    host_ip: Address | None = None
    prefix_length: int | None = None
    key: int = 0
    metadata: str = ""
    namespace: str = ""
    pod_name: str = ""
    service_account: str = ""
    named_ports: tuple[NamedPort, ...] = ()


class ClusterConfig(Struct, frozen=True, gc=False, kw_only=True):
    """What a cluster tells its readers before anything else.

    `service_exports_enabled` is None where the cluster knows nothing of the MCS API, which differs from False.
    """

    id: int
    synced_canaries: bool = False
    cached: bool = False
    max_connected_clusters: int = 0
    service_exports_enabled: bool | None = None
    endpoint_slices_export_mode: str = ""


class ExportPort(Struct, frozen=True, gc=False, kw_only=True):
    """A port of an exported service."""

    port: int
    protocol: Protocol = Protocol.TCP
    name: str = ""
    app_protocol: str = ""


class ServiceExport(Struct, frozen=True, gc=False, kw_only=True):
    """A service that one cluster exports by the MCS API; of conflicting exports the oldest holds.

    `created` is Unix time in seconds. `type` is "ClusterSetIP" or "Headless", `session_affinity` "None" or "ClientIP".
    An empty `internal_traffic_policy` (else "Cluster" or "Local") or `traffic_distribution` is not given.
    """

    cluster: str
    namespace: str
    name: str
    created: int
    type: str = "ClusterSetIP"
    ports: tuple[ExportPort, ...] = ()
    session_affinity: str = "None"
    session_affinity_timeout: int | None = None
    ip_families: tuple[str, ...] = ()
    internal_traffic_policy: str = ""
    traffic_distribution: str = ""
    annotations: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}


class SliceEndpoint(Struct, frozen=True, gc=False, kw_only=True):
    """An endpoint of a slice, ready or not. A condition is None where its cluster does not know it."""

    addresses: tuple[Address, ...]
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None
    node_name: str = ""
    zone: str = ""
    for_zones: tuple[str, ...] = ()


class SlicePort(Struct, frozen=True, gc=False, kw_only=True):
    """A TARGET port of every endpoint of a slice; None stands for all ports."""

    name: str = ""
    protocol: Protocol = Protocol.TCP
    port: int | None = None


class EndpointSlice(Struct, frozen=True, gc=False, kw_only=True):
    """Some endpoints of one service of one cluster, not ready ones included. `address_type` is IPv4 or IPv6."""

    cluster: str
    cluster_id: int
    namespace: str
    name: str
    address_type: str
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


class AgentRecord(Struct, frozen=True, gc=False, kw_only=True):
    """What the agent of a node tells its own API server, under this project's own prefix: its WireGuard key, and
    whether it `reads_shared` services of its own cluster where Cilium's peers do, or only where this project's are.

    `identities` are those of pods on the node whose number does not follow from their labels.
    """

    node: str
    wireguard_public_key: str
    boot_id: str = ""
    reads_shared: bool = False
    identities: tuple[Identity, ...] = ()


class Stamp(Struct, frozen=True, gc=False, kw_only=True):
    """When a change was seen by its source and written by the API server, Unix time in nanoseconds."""

    observed: int
    published: int


def check_cluster_name(name: str) -> str:
    """`name`, or Invalid: 1 to 32 of a-z, 0-9 and "-", beginning and ending with a letter or digit; not "default"."""
    if not (len(name) <= 32 and _CLUSTER_NAME.fullmatch(name)) or name == "default":
        raise Invalid(
            "cluster name",
            name,
            "must be 1 to 32 of a-z, 0-9 and '-', begin and end with a letter or digit, and not be 'default'",
        )
    return name


def check_cluster_id(cluster_id: int, max_clusters: int = MAX_CLUSTERS) -> int:
    """`cluster_id`, or Invalid: 1 to `max_clusters`."""
    if not 1 <= cluster_id <= max_clusters:
        raise Invalid("cluster id", cluster_id, f"must be a number from 1 to {max_clusters}")
    return cluster_id
