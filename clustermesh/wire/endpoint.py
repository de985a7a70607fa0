"""cilium/state/ip/v1/default/<ip>: who is behind an address (Cilium: IPIdentityPair in pkg/identity/identity.go).

Cilium 1.18's API server writes neither NamedPorts nor K8sServiceAccount: leave both empty in what is published.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from clustermesh.address import Address, Prefix, parse, text
from clustermesh.errors import Invalid
from clustermesh.model import Endpoint, NamedPort
from clustermesh.wire import go_json
from clustermesh.wire.address import mask_of, read_prefix
from clustermesh.wire.decoding import decodes
from clustermesh.wire.go_json import UInt8, UInt16, UInt32
from clustermesh.wire.ports import check_port, read_protocol, write_protocol


class _NamedPort(Struct, frozen=True, gc=False):
    name: str = field(name="Name")
    port: UInt16 = field(name="Port")
    protocol: str = field(name="Protocol")


class _Pair(Struct, frozen=True, gc=False):
    ip: str = field(name="IP")
    mask: bytes | None = field(name="Mask", default=None)
    host_ip: str | None = field(name="HostIP", default="")
    identity: UInt32 = field(name="ID", default=0)
    key: UInt8 = field(name="Key", default=0)
    metadata: str = field(name="Metadata", default="")
    namespace: str | UnsetType = field(name="K8sNamespace", default=UNSET)
    pod_name: str | UnsetType = field(name="K8sPodName", default=UNSET)
    service_account: str | UnsetType = field(name="K8sServiceAccount", default=UNSET)
    named_ports: list[_NamedPort] | UnsetType | None = field(name="NamedPorts", default=UNSET)


_DECODER: Final = msgspec.json.Decoder(_Pair)


def encode(endpoint: Endpoint) -> bytes:
    """JSON; Invalid for a CIDR that is none or a number out of its range."""
    for where, number, limit in (("identity", endpoint.identity, 0xFFFF_FFFF), ("key", endpoint.key, 0xFF)):
        if not 0 <= number <= limit:
            raise Invalid(where, number, f"must be 0 to {limit}")
    ports = [_NamedPort(p.name, check_port(p.port), write_protocol(p.protocol)) for p in endpoint.named_ports]
    wire = _Pair(
        text(endpoint.ip),
        None if endpoint.prefix_length is None else mask_of(Prefix(endpoint.ip, endpoint.prefix_length)),
        text(endpoint.host_ip) if endpoint.host_ip else "",
        endpoint.identity,
        endpoint.key,
        endpoint.metadata,
        endpoint.namespace or UNSET,
        endpoint.pod_name or UNSET,
        endpoint.service_account or UNSET,
        ports or UNSET,
    )
    return go_json.encode(wire)


@decodes("endpoint")
def decode(data: bytes) -> Endpoint:
    """Raises DecodeError."""
    wire = _DECODER.decode(data)
    ip = parse(wire.ip)
    return Endpoint(
        ip=ip,
        identity=wire.identity,
        host_ip=_host(wire.host_ip) if wire.host_ip else None,
        prefix_length=None if wire.mask is None else read_prefix(ip, wire.mask, "address").length,
        key=wire.key,
        metadata=wire.metadata,
        namespace=intern(wire.namespace or ""),
        pod_name=wire.pod_name or "",
        service_account=wire.service_account or "",
        named_ports=tuple(map(_read_port, wire.named_ports)) if wire.named_ports else (),
    )


def _read_port(wire: _NamedPort) -> NamedPort:
    return NamedPort(name=wire.name, port=wire.port, protocol=read_protocol(wire.protocol))


def place_of(endpoint: Endpoint) -> Address | Prefix:
    """What `endpoint` is called in a table: its address, or its CIDR."""
    return endpoint.ip if endpoint.prefix_length is None else Prefix(endpoint.ip, endpoint.prefix_length)


@lru_cache(8192)
def _host(ip: str) -> Address:
    """One object for each node: hundreds of pods share it."""
    return parse(ip, "host address")
