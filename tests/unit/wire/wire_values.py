"""What the tests of the wire share: the recorded keys and values, and generators of model values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from clustermesh.address import V4, Prefix, from_int, is_ipv4, masked, to_int
from clustermesh.errors import Invalid
from clustermesh.model import (
    Affinity,
    AgentRecord,
    Algorithm,
    BackendDetail,
    BackendState,
    Cluster,
    ClusterConfig,
    Endpoint,
    EndpointSlice,
    ExportPort,
    HostPorts,
    Identity,
    Label,
    LocalService,
    NamedPort,
    Node,
    NodeAddress,
    Outside,
    Port,
    Protocol,
    Service,
    ServiceExport,
    ServiceType,
    SliceEndpoint,
    SlicePort,
    Stamp,
    Zone,
)
from clustermesh.wire import cluster_config, endpoint, identity, keys, local, node, service, service_export
from clustermesh.wire import endpoint_slice as slices
from clustermesh.wire.node import ADDRESS_TYPES

ALPHA = Cluster(name="alpha", id=1)
_GOLDEN = Path(__file__).parents[2] / "golden"
RECORDED: dict[str, Any] = json.loads((_GOLDEN / "cilium-1.18.4.json").read_text())
STATE: dict[bytes, bytes] = {key.encode(): value.encode() for key, value in RECORDED["state"].items()}
CART = STATE[b"cilium/state/services/v1/alpha/default/cart"]
N1 = STATE[b"cilium/state/nodes/v1/alpha/n1"]
POD = STATE[b"cilium/state/ip/v1/default/10.1.0.5"]
LABELS = STATE[b"cilium/state/identities/v1/id/65999"]
CONFIG = STATE[b"cilium/cluster-config/alpha"]


def go_values() -> list[tuple[str, bytes]]:
    """What Go's encoder printed (see golden/go-json/main.go), as (kind, JSON)."""
    lines = (_GOLDEN / "go-json.tsv").read_bytes().splitlines()
    return [(kind.decode(), value) for kind, value in (line.split(b"\t", 1) for line in lines)]


def _is_name(text: str) -> bool:
    try:
        keys.check_name(text, "name")
    except Invalid:
        return False
    return True


texts = st.text(max_size=12)
_printable = st.characters(exclude_categories=("C", "Z"), include_characters=" ", exclude_characters="/")
names = st.text(_printable, min_size=1, max_size=12).filter(_is_name)
ipv4s = st.integers(0, 2**32 - 1).map(lambda n: from_int(to_int(V4.address) + n))
ipv6s = st.integers(0, 2**128 - 1).map(from_int).filter(lambda ip: not is_ipv4(ip))
ips = ipv4s | ipv6s
ipv4_cidrs = st.builds(lambda ip, length: Prefix(masked(ip, length), length), ipv4s, st.integers(96, 128))
ipv6_cidrs = st.builds(lambda ip, length: Prefix(masked(ip, length), length), ipv6s, st.integers(0, 128))


def _of_each_family(ipv4: st.SearchStrategy[Any], ipv6: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    """Tuples, IPv4 first, of at most `most` of each."""
    return st.builds(lambda a, b: (*a, *b), st.lists(ipv4, max_size=most), st.lists(ipv6, max_size=most))


maps = st.dictionaries(texts, texts, max_size=4)
cluster_ids = st.integers(1, 511)
ports = st.builds(Port, protocol=st.sampled_from(Protocol), port=st.integers(0, 65535))
addresses = st.dictionaries(ips, st.dictionaries(texts, ports, max_size=3), max_size=4)
zones = st.builds(Zone, zone=texts, for_zones=st.lists(texts, max_size=3).map(tuple))
wireguard_keys = st.sampled_from(["aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI=", "/" * 42 + "8="])

services = st.builds(
    Service,
    cluster=names,
    cluster_id=cluster_ids,
    namespace=names,
    name=names,
    frontends=addresses,
    backends=addresses,
    hostnames=st.dictionaries(ips, texts, max_size=3),
    zones=st.dictionaries(ips, zones, max_size=3),
    labels=maps,
    selector=maps,
    include_external=st.booleans(),
    shared=st.booleans(),
    terminating=st.frozensets(ips, max_size=3),
)
nodes = st.builds(
    Node,
    cluster=names,
    cluster_id=cluster_ids,
    name=names,
    addresses=st.lists(st.builds(NodeAddress, type=st.sampled_from(ADDRESS_TYPES), ip=ips), max_size=3).map(tuple),
    pod_cidrs=_of_each_family(ipv4_cidrs, ipv6_cidrs, 3),
    health_ips=_of_each_family(ipv4s, ipv6s, 1),
    ingress_ips=_of_each_family(ipv4s, ipv6s, 1),
    source=texts,
    encryption_key=st.integers(0, 255),
    labels=st.none() | maps,
    annotations=st.none() | maps,
    node_identity=st.integers(0, 2**32 - 1),
    wireguard_public_key=st.just("") | wireguard_keys,
    boot_id=texts,
)
named_ports = st.builds(NamedPort, name=texts, port=st.integers(0, 65535), protocol=st.sampled_from(Protocol))
_endpoint_parts: dict[str, Any] = {
    "identity": st.integers(0, 2**32 - 1),
    "host_ip": st.none() | ips,
    "key": st.integers(0, 255),
    "metadata": texts,
    "namespace": texts,
    "pod_name": texts,
    "service_account": texts,
    "named_ports": st.lists(named_ports, max_size=2).map(tuple),
}
_pods = st.builds(Endpoint, ip=ips, **_endpoint_parts)
_networks = (ipv4_cidrs | ipv6_cidrs).flatmap(
    lambda cidr: st.builds(
        Endpoint,
        ip=st.just(cidr.address),
        prefix_length=st.just(cidr.length),
        **_endpoint_parts,
    )
)
endpoints = _pods | _networks
label_texts = st.text(st.characters(exclude_characters=";", codec="utf-8"), max_size=8)
label_keys = st.text(st.characters(exclude_characters=";=", codec="utf-8"), min_size=1, max_size=8)
label_sources = st.sampled_from(["k8s", "reserved", "any", "unspec"])
identities = st.builds(
    Identity,
    id=st.integers(0, 2**32 - 1),
    labels=st.lists(
        st.builds(Label, source=label_sources, key=label_keys, value=label_texts),
        min_size=1,
        max_size=5,
        unique_by=lambda label: label.key,
    ).map(lambda labels: tuple(sorted(labels, key=lambda label: label.key))),
)
configs = st.builds(
    ClusterConfig,
    id=st.integers(1, 255),
    synced_canaries=st.booleans(),
    cached=st.booleans(),
    max_connected_clusters=st.sampled_from([0, 255, 511]),
    service_exports_enabled=st.none() | st.booleans(),
    endpoint_slices_export_mode=texts,
)
layer4 = st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.SCTP])
exports = st.builds(
    ServiceExport,
    cluster=names,
    namespace=names,
    name=names,
    created=st.integers(-62135596799, 253402300799),
    type=st.sampled_from(["ClusterSetIP", "Headless"]),
    ports=st.lists(
        st.builds(ExportPort, port=st.integers(0, 65535), protocol=layer4, name=texts, app_protocol=texts), max_size=2
    ).map(tuple),
    session_affinity=st.sampled_from(["None", "ClientIP"]),
    session_affinity_timeout=st.none() | st.integers(0, 86400),
    ip_families=st.lists(st.sampled_from(["IPv4", "IPv6"]), max_size=2, unique=True).map(tuple),
    internal_traffic_policy=st.sampled_from(["", "Cluster", "Local"]),
    traffic_distribution=st.sampled_from(["", "PreferClose", "PreferSameZone", "PreferSameNode"]),
    annotations=maps,
    labels=maps,
)


def _slices_of(family: str) -> st.SearchStrategy[EndpointSlice]:
    condition = st.none() | st.booleans()
    backend = st.builds(
        SliceEndpoint,
        addresses=st.lists(ipv4s if family == "IPv4" else ipv6s, max_size=2).map(tuple),
        ready=condition,
        serving=condition,
        terminating=condition,
        node_name=texts,
        zone=texts,
        for_zones=st.lists(texts, max_size=2).map(tuple),
    )
    port = st.builds(SlicePort, name=texts, protocol=layer4, port=st.none() | st.integers(0, 65535))
    return st.builds(
        EndpointSlice,
        cluster=names,
        cluster_id=cluster_ids,
        namespace=names,
        name=names,
        address_type=st.just(family),
        endpoints=st.lists(backend, max_size=3).map(tuple),
        ports=st.lists(port, max_size=2).map(tuple),
        labels=maps,
        annotations=maps,
    )


endpoint_slices = _slices_of("IPv4") | _slices_of("IPv6")
_places = st.dictionaries(
    texts, st.builds(Port, protocol=st.sampled_from(Protocol), port=st.integers(1, 65535)), max_size=3
)
_tuples = st.lists(texts, max_size=2).map(tuple)
_details = st.builds(
    BackendDetail,
    state=st.sampled_from(BackendState),
    weight=st.integers(1, 65535),
    node=texts,
    for_zones=_tuples,
    for_nodes=_tuples,
)
_outside = st.builds(
    Outside,
    node_ports=_places,
    external_ips=st.lists(ips, max_size=2).map(tuple),
    load_balancer_ips=st.lists(ips, max_size=2).map(tuple),
    source_ranges=st.none() | st.lists(ipv4_cidrs | ipv6_cidrs, max_size=2).map(tuple),
    local_only=st.booleans(),
    health_check_port=st.integers(0, 65535),
)
_host_ports = st.builds(HostPorts, node=names, ports=_places, addresses=st.dictionaries(texts, ips, max_size=2))
local_services = st.builds(
    LocalService,
    service=services,
    is_global=st.booleans(),
    affinity=st.sampled_from(Affinity),
    type=st.sampled_from(ServiceType),
    outside=_outside,
    local_only=st.booleans(),
    affinity_seconds=st.integers(0, 86_400),
    algorithm=st.sampled_from(Algorithm),
    details=st.dictionaries(ips, _details, max_size=3),
    draining=addresses,
    host_ports=st.none() | _host_ports,
)
agents = st.builds(
    AgentRecord,
    node=names,
    wireguard_public_key=wireguard_keys,
    boot_id=texts,
    reads_shared=st.booleans(),
    identities=st.lists(identities, max_size=2, unique_by=lambda each: each.id).map(tuple),
)
_moments = st.integers(0, 2**63 - 1)
stamps = st.builds(
    lambda observed, published: {name: Stamp(observed=at, published=published) for name, at in observed.items()},
    st.dictionaries(st.tuples(names, names), _moments, min_size=1, max_size=3),
    _moments,
)


def encode_stamps(found: dict[tuple[str, str], Stamp]) -> bytes:
    published = next(iter(found.values())).published
    return local.encode_stamps({name: stamp.observed for name, stamp in found.items()}, published)


CODECS: dict[str, tuple[Any, Any, Any]] = {
    "cluster_config": (configs, cluster_config.encode, cluster_config.decode),
    "service": (services, service.encode, service.decode),
    "node": (nodes, node.encode, node.decode),
    "endpoint": (endpoints, endpoint.encode, endpoint.decode),
    "service_export": (exports, service_export.encode, service_export.decode),
    "endpoint_slice": (endpoint_slices, slices.encode, slices.decode),
    "local_service": (local_services, local.encode_service, local.decode_service),
    "agent": (agents, local.encode_agent, local.decode_agent),
    "stamps": (stamps, encode_stamps, local.decode_stamps),
}
"""By noun: generator, encoder, decoder. An identity needs its number too and stands alone."""


def decode_identity(data: bytes) -> Identity:
    return identity.decode(data, 65999)
