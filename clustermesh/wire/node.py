"""cilium/state/nodes/v1/<cluster>/<node>: a machine (Cilium: pkg/node/types/node.go). Go's names, nothing left out."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from clustermesh.address import Address, Prefix, is_ipv4, parse, text
from clustermesh.errors import Invalid
from clustermesh.model import Node, NodeAddress, check_cluster_id
from clustermesh.wire import go_json
from clustermesh.wire.address import WireCIDR, read_cidr, write_cidr
from clustermesh.wire.decoding import decodes
from clustermesh.wire.go_json import UInt8, UInt32
from clustermesh.wire.keys import check_name

ADDRESS_TYPES: Final = ("InternalIP", "ExternalIP", "CiliumInternalIP", "Hostname", "InternalDNS", "ExternalDNS")
_LARGEST_ID: Final = 511


class _Address(Struct, frozen=True, gc=False):
    type: str = field(name="Type", default="")
    ip: str | None = field(name="IP", default="")


class _Node(Struct, frozen=True, gc=False):
    """The fields in the order in which they are written; those that old releases lack have Go's zero value."""

    name: str = field(name="Name")
    cluster: str = field(name="Cluster")
    addresses: list[_Address] | None = field(name="IPAddresses", default=None)
    ipv4_cidr: WireCIDR | None = field(name="IPv4AllocCIDR", default=None)
    ipv4_more: list[WireCIDR | None] | None = field(name="IPv4SecondaryAllocCIDRs", default=None)
    ipv6_cidr: WireCIDR | None = field(name="IPv6AllocCIDR", default=None)
    ipv6_more: list[WireCIDR | None] | None = field(name="IPv6SecondaryAllocCIDRs", default=None)
    ipv4_health: str | None = field(name="IPv4HealthIP", default="")
    ipv6_health: str | None = field(name="IPv6HealthIP", default="")
    ipv4_ingress: str | None = field(name="IPv4IngressIP", default="")
    ipv6_ingress: str | None = field(name="IPv6IngressIP", default="")
    cluster_id: UInt32 = field(name="ClusterID", default=0)
    source: str = field(name="Source", default="")
    encryption_key: UInt8 = field(name="EncryptionKey", default=0)
    labels: dict[str, str] | None = field(name="Labels", default=None)
    annotations: dict[str, str] | None = field(name="Annotations", default=None)
    node_identity: UInt32 = field(name="NodeIdentity", default=0)
    wireguard_public_key: str = field(name="WireguardPubKey", default="")
    boot_id: str = field(name="BootID", default="")


_DECODER: Final = msgspec.json.Decoder(_Node)


def encode(node: Node) -> bytes:
    """JSON; Invalid for what a reader would refuse or misread."""
    _check(node)
    ipv4: list[WireCIDR | None] = [write_cidr(cidr) for cidr in node.pod_cidrs if is_ipv4(cidr.address)]
    ipv6: list[WireCIDR | None] = [write_cidr(cidr) for cidr in node.pod_cidrs if not is_ipv4(cidr.address)]
    return go_json.encode(
        _Node(
            node.name,
            node.cluster,
            [_write_address(address) for address in node.addresses] or None,
            next(iter(ipv4), None),
            ipv4[1:] or None,
            next(iter(ipv6), None),
            ipv6[1:] or None,
            *_write_ips(node.health_ips),
            *_write_ips(node.ingress_ips),
            node.cluster_id,
            node.source,
            node.encryption_key,
            None if node.labels is None else dict(node.labels),
            None if node.annotations is None else dict(node.annotations),
            node.node_identity,
            node.wireguard_public_key,
            node.boot_id,
        )
    )


@decodes("node")
def decode(data: bytes) -> Node:
    """Raises DecodeError. An address without IP, which Cilium's reader skips, is left out."""
    wire = _DECODER.decode(data)
    node = Node(
        cluster=wire.cluster,
        cluster_id=wire.cluster_id,
        name=wire.name,
        addresses=tuple(NodeAddress(type=a.type, ip=parse(a.ip)) for a in wire.addresses or () if a.ip),
        pod_cidrs=tuple(_read_cidrs(wire)),
        health_ips=_read_ips(wire.ipv4_health, wire.ipv6_health),
        ingress_ips=_read_ips(wire.ipv4_ingress, wire.ipv6_ingress),
        source=wire.source,
        encryption_key=wire.encryption_key,
        labels=wire.labels,
        annotations=wire.annotations,
        node_identity=wire.node_identity,
        wireguard_public_key=wire.wireguard_public_key,
        boot_id=wire.boot_id,
    )
    _check(node)
    return node


def check_wireguard_key(key: str) -> str:
    """`key`, or Invalid unless it is the base64 of 32 bytes, in the one way to spell it."""
    try:
        raw = b64decode(key, validate=True)
    except ValueError as e:
        raise Invalid("WireGuard key", key, "must be base64") from e
    if len(raw) != 32:
        raise Invalid("WireGuard key", key, f"must be 32 bytes, not {len(raw)}")
    if b64encode(raw).decode() != key:
        raise Invalid("WireGuard key", key, "must have no bits set beyond its 32 bytes")
    return key


def _check(node: Node) -> None:
    check_name(node.cluster, "cluster")
    check_name(node.name, "name")
    check_cluster_id(node.cluster_id, _LARGEST_ID)
    if node.wireguard_public_key:
        check_wireguard_key(node.wireguard_public_key)
    for where, number, limit in (
        ("key", node.encryption_key, 0xFF),
        ("node identity", node.node_identity, 0xFFFF_FFFF),
    ):
        if not 0 <= number <= limit:
            raise Invalid(where, number, f"must be 0 to {limit}")


def _write_address(address: NodeAddress) -> _Address:
    if address.type not in ADDRESS_TYPES:
        raise Invalid("address type", address.type, f"must be one of {', '.join(ADDRESS_TYPES)}")
    return _Address(address.type, text(address.ip))


def _write_ips(ips: Sequence[Address]) -> tuple[str, str]:
    """The IPv4 and the IPv6 address, "" where there is none."""
    ipv4 = [text(ip) for ip in ips if is_ipv4(ip)]
    ipv6 = [text(ip) for ip in ips if not is_ipv4(ip)]
    if len(ipv4) > 1 or len(ipv6) > 1:
        raise Invalid("health or ingress addresses", [*ipv4, *ipv6], "must be at most one of each family")
    return "".join(ipv4), "".join(ipv6)


def _read_ips(ipv4: str | None, ipv6: str | None) -> tuple[Address, ...]:
    return tuple(parse(found) for found in (ipv4, ipv6) if found)


def _read_cidrs(wire: _Node) -> Iterator[Prefix]:
    for cidr in (wire.ipv4_cidr, *(wire.ipv4_more or ())):
        if cidr is not None:
            yield read_cidr(cidr, "IPv4 pod CIDR", ipv4=True)
    for cidr in (wire.ipv6_cidr, *(wire.ipv6_more or ())):
        if cidr is not None:
            yield read_cidr(cidr, "IPv6 pod CIDR", ipv4=False)
