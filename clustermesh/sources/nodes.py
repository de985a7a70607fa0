"""Every Node of the cluster -> model nodes, at once, because no two may have or hand out the same addresses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from clustermesh import model
from clustermesh.address import BITS, Address, Prefix, from_int, is_ipv4, to_int
from clustermesh.errors import Invalid
from clustermesh.model import Cluster, NodeAddress
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Node, Ref
from clustermesh.sources.pod_cidrs import PodCidrs
from clustermesh.sources.rules import parse_cidr, parse_ip
from clustermesh.wire.node import check_wireguard_key

WIREGUARD_KEY: Final = "network.cilium.io/wg-pub-key"
WIREGUARD_KEY_ALIAS: Final = "io.cilium.network.wg-pub-key"
CILIUM_HOST: Final = "network.cilium.io/ipv4-cilium-host"
HEALTH_IPV4: Final = "network.cilium.io/ipv4-health-ip"
HEALTH_IPV6: Final = "network.cilium.io/ipv6-health-ip"
_ADDRESS_TYPES: Final = ("InternalIP", "ExternalIP", "CiliumInternalIP")  # the others are names, not addresses

ENCRYPTED: Final = 255
"""Cilium's encryption key index of everything that goes through WireGuard."""


def translate_nodes(cluster: Cluster, nodes: Mapping[Ref, Node], faults: Faults) -> dict[str, model.Node]:
    """Model nodes by name. Of two with one InternalIP, or overlapping pod CIDRs, the first by name has it."""
    internal: dict[Address, str] = {}
    addresses = {ref: _addresses(ref, nodes[ref], internal, faults) for ref in sorted(nodes)}
    external = {a.ip: ref.name for ref, found in addresses.items() for a in found if a.type == "ExternalIP"}
    cidrs = PodCidrs(external | internal)
    return {ref.name: _translate_node(cluster, ref, nodes[ref], addresses[ref], cidrs, faults) for ref in addresses}


def _translate_node(
    cluster: Cluster, ref: Ref, node: Node, addresses: Sequence[NodeAddress], taken: PodCidrs, faults: Faults
) -> model.Node:
    cidrs = _pod_cidrs(ref, node, taken, faults)
    annotations = node.metadata.annotations
    key = wireguard_key(ref, annotations, faults)
    return model.Node(
        cluster=cluster.name,
        cluster_id=cluster.id,
        name=ref.name,
        addresses=(*addresses, *_router(ref, node, addresses, cidrs, faults)),
        pod_cidrs=cidrs,
        health_ips=_health_ips(ref, annotations, faults),
        encryption_key=ENCRYPTED if key else 0,
        labels=node.metadata.labels or None,
        annotations={WIREGUARD_KEY: key} if key else None,
        wireguard_public_key=key,
        boot_id=node.status.node_info.boot_id,
    )


def _addresses(ref: Ref, node: Node, internal: dict[Address, str], faults: Faults) -> list[NodeAddress]:
    """What the Node says of itself, but for InternalIPs that another Node has in `internal` already."""
    addresses = []
    for number, address in enumerate(node.status.addresses):
        if address.type in _ADDRESS_TYPES:
            field = f"status.addresses[{number}].address"
            ip = faults.check(ref, parse_ip, field, address.address)
            owner = internal.setdefault(ip, ref.name) if ip and address.type == "InternalIP" else ref.name
            if owner != ref.name:
                faults.note(ref, Invalid(field, address.address, f"must not be the InternalIP of node {owner} too"))
            elif ip:
                addresses.append(NodeAddress(type=address.type, ip=ip))
    if not any(a.type == "InternalIP" for a in addresses):
        faults.note(ref, Invalid("status.addresses", "", "must hold an InternalIP, where other nodes reach this one"))
    return addresses


def _router(
    ref: Ref, node: Node, addresses: Sequence[NodeAddress], cidrs: Sequence[Prefix], faults: Faults
) -> list[NodeAddress]:
    """The node's own address among its pods, where `addresses` do not name one."""
    router = _annotated_ip(ref, node.metadata.annotations, CILIUM_HOST, faults) or _router_in(cidrs)
    if router is None or any(a.type == "CiliumInternalIP" for a in addresses):
        return []
    return [NodeAddress(type="CiliumInternalIP", ip=router)]


def _router_in(cidrs: Sequence[Prefix]) -> Address | None:
    """The address after the first one of the first IPv4 CIDR."""
    for address, length in cidrs:
        if is_ipv4(address):
            return from_int(to_int(address) + (length < BITS))
    return None


def _health_ips(ref: Ref, annotations: Mapping[str, str], faults: Faults) -> tuple[Address, ...]:
    found = (_annotated_ip(ref, annotations, name, faults) for name in (HEALTH_IPV4, HEALTH_IPV6))
    return tuple(ip for ip in found if ip is not None)


def _annotated_ip(ref: Ref, annotations: Mapping[str, str], name: str, faults: Faults) -> Address | None:
    text = annotations.get(name, "")
    return faults.check(ref, parse_ip, f"metadata.annotations[{name}]", text) if text else None


def wireguard_key(ref: Ref, annotations: Mapping[str, str], faults: Faults) -> str:
    """The node's public key if its annotation holds one, else ""."""
    text = annotations.get(WIREGUARD_KEY, annotations.get(WIREGUARD_KEY_ALIAS, ""))
    field = f"metadata.annotations[{WIREGUARD_KEY}]"
    return (faults.check(ref, lambda _, key: check_wireguard_key(key), field, text) or "") if text else ""


def _pod_cidrs(ref: Ref, node: Node, taken: PodCidrs, faults: Faults) -> tuple[Prefix, ...]:
    cidrs: list[Prefix] = []
    for text in node.spec.pod_cidrs or [node.spec.pod_cidr]:
        cidr = faults.check(ref, parse_cidr, "spec.podCIDRs", text) if text else None
        if cidr is None:
            continue
        if fault := taken.take(cidr, ref.name):
            faults.note(ref, Invalid("spec.podCIDRs", text, fault))
        else:
            cidrs.append(cidr)
    return tuple(sorted(cidrs, key=lambda cidr: not is_ipv4(cidr.address)))  # of each family in the order given
