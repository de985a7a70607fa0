"""Cilium's own resources -> nodes, identities, endpoints, as Cilium's API server publishes them. Pure.

They are passed on as they are: addresses and CIDRs of Cilium's nodes are Cilium's to hand out. What a reader of the
mesh would refuse is left out here, with a fault, because nobody would say so there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from clustermesh import model
from clustermesh.address import Address, is_ipv4
from clustermesh.errors import Invalid
from clustermesh.model import Cluster, Endpoint, Identity, Label, NodeAddress
from clustermesh.sources.cilium_objects import (
    AddressPair,
    CiliumEndpoint,
    CiliumEndpointSlice,
    CiliumIdentity,
    CiliumNode,
    Networking,
)
from clustermesh.sources.faults import Faults
from clustermesh.sources.nodes import wireguard_key
from clustermesh.sources.objects import Ref
from clustermesh.sources.rules import parse_cidr, parse_ip
from clustermesh.wire.identity import CLUSTER_LABEL, KUBERNETES, NAMESPACE_LABEL
from clustermesh.wire.node import ADDRESS_TYPES
from clustermesh.wire.numbering import identity_range

_RESERVED: Final = range(1, 256)


def translate_cilium_node(cluster: Cluster, ref: Ref, node: CiliumNode, faults: Faults) -> model.Node:
    spec, metadata = node.spec, node.metadata
    cidrs = [faults.check(ref, parse_cidr, "spec.ipam.podCIDRs", text) for text in spec.ipam.pod_cidrs]
    return model.Node(
        cluster=cluster.name,
        cluster_id=cluster.id,
        name=ref.name,
        addresses=tuple(_addresses(ref, node, faults)),
        pod_cidrs=tuple(sorted(filter(None, cidrs), key=lambda cidr: not is_ipv4(cidr.address))),
        health_ips=_pair(ref, "spec.health", spec.health, faults),
        ingress_ips=_pair(ref, "spec.ingress", spec.ingress, faults),
        encryption_key=spec.encryption.key,
        labels=metadata.labels or None,
        annotations=metadata.annotations or None,
        wireguard_public_key=wireguard_key(ref, metadata.annotations, faults),
        boot_id=spec.boot_id,
    )


def translate_identity(cluster: Cluster, ref: Ref, found: CiliumIdentity, faults: Faults) -> Identity | None:
    """None where no reader would take it."""
    number = faults.check(ref, lambda field, name: _number(field, name, cluster), "metadata.name", ref.name)
    labels = tuple(_labels(ref, found, faults))
    owner = found.security_labels.get(f"{KUBERNETES}:{CLUSTER_LABEL}")
    if owner != cluster.name:
        field = f"security-labels[{KUBERNETES}:{CLUSTER_LABEL}]"
        faults.note(ref, Invalid(field, owner, f"must be {cluster.name}: it is no identity of this cluster"))
        return None
    return None if number is None else Identity(id=number, labels=labels)


def identity_namespace(found: CiliumIdentity) -> str:
    """The namespace whose pods have the identity."""
    return found.security_labels.get(f"{KUBERNETES}:{NAMESPACE_LABEL}", "")


def translate_endpoint(cluster: Cluster, ref: Ref, found: CiliumEndpoint, faults: Faults) -> dict[Address, Endpoint]:
    """The addresses of one endpoint; none while it has no identity yet."""
    status = found.status
    number = status.identity.id if status.identity else 0
    return _endpoints(cluster, ref, (ref.namespace, ref.name, number, status.encryption.key), status.networking, faults)


def translate_slice(cluster: Cluster, ref: Ref, found: CiliumEndpointSlice, faults: Faults) -> dict[Address, Endpoint]:
    """The addresses of every endpoint in a slice; of two with one address the first has it."""
    addresses: dict[Address, Endpoint] = {}
    for each in found.endpoints:
        who = (found.namespace, each.name, each.id, each.encryption.key)
        addresses = _endpoints(cluster, ref, who, each.networking, faults) | addresses
    return addresses


def _endpoints(
    cluster: Cluster, ref: Ref, who: tuple[str, str, int, int], networking: Networking | None, faults: Faults
) -> dict[Address, Endpoint]:
    namespace, pod, number, key = who
    if networking is None or not number:
        return {}
    if not faults.check(ref, lambda field, value: _published(field, value, cluster), "identity.id", number):
        return {}
    host = faults.check(ref, parse_ip, "networking.node", networking.node) if networking.node else None
    return {
        ip: Endpoint(ip=ip, identity=number, host_ip=host, key=key, namespace=namespace, pod_name=pod)
        for pair in networking.addressing
        for ip in _pair(ref, "networking.addressing", pair, faults)
    }


def _published(field: str, number: int, cluster: Cluster) -> int:
    allotted = identity_range(cluster.id, cluster.max_clusters)
    if number not in allotted and number not in _RESERVED:
        raise Invalid(field, number, f"must be reserved, or {allotted.start} to {allotted.stop - 1}")
    return number


def _number(field: str, name: str, cluster: Cluster) -> int:
    allotted = identity_range(cluster.id, cluster.max_clusters)
    if not (name.isascii() and name.isdigit() and str(int(name)) == name and int(name) in allotted):
        raise Invalid(field, name, f"must be a number of this cluster, {allotted.start} to {allotted.stop - 1}")
    return int(name)


def _labels(ref: Ref, found: CiliumIdentity, faults: Faults) -> Iterator[Label]:
    """Sorted by key alone."""
    labels = []
    for spelled, value in found.security_labels.items():
        source, colon, key = spelled.partition(":")
        if colon and source and key:
            labels.append(Label(source=source, key=key, value=value))
        else:
            faults.note(ref, Invalid("security-labels", spelled, "must be spelled source:key"))
    return iter(sorted(labels, key=lambda label: label.key))


def _addresses(ref: Ref, node: CiliumNode, faults: Faults) -> Iterator[NodeAddress]:
    for number, address in enumerate(node.spec.addresses):
        ip = faults.check(ref, parse_ip, f"spec.addresses[{number}].ip", address.ip) if address.ip else None
        if ip is None:
            continue
        if address.type in ADDRESS_TYPES:
            yield NodeAddress(type=address.type, ip=ip)
        else:
            rule = f"must be one of {', '.join(ADDRESS_TYPES)}"
            faults.note(ref, Invalid(f"spec.addresses[{number}].type", address.type, rule))


def _pair(ref: Ref, field: str, pair: AddressPair, faults: Faults) -> tuple[Address, ...]:
    texts = (("ipv4", pair.ipv4), ("ipv6", pair.ipv6))
    found = (faults.check(ref, parse_ip, f"{field}.{family}", text) for family, text in texts if text)
    return tuple(ip for ip in found if ip is not None)
