"""cilium/state/services/v1/<cluster>/<namespace>/<name>: a global service (Cilium: pkg/clustermesh/store/store.go)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from clustermesh.address import Address, parse, text
from clustermesh.errors import Invalid
from clustermesh.model import Port, Service, Zone, check_cluster_id
from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes
from clustermesh.wire.go_json import UInt32
from clustermesh.wire.keys import check_name
from clustermesh.wire.ports import WirePort, read_ports, write_ports

_LARGEST_ID: Final = 511
PortsByIP = dict[str, msgspec.Raw]
"""The ports as they are spelled: thousands of backends spell theirs alike, and each spelling is read once."""


class _ForZone(Struct, frozen=True, gc=False):
    name: str = ""


class _Zone(Struct, frozen=True, gc=False):
    zone: str = ""
    for_zones: list[_ForZone] | None = field(name="forZones", default=None)


class WireService(Struct, frozen=True, gc=False):
    """The fields in the order in which they are written; the last is ours. Only `zones` and it are ever left out; a
    map may be read as null."""

    cluster: str
    namespace: str
    name: str
    frontends: PortsByIP | None = None
    backends: PortsByIP | None = None
    hostnames: dict[str, str] | None = None
    zones: dict[str, _Zone] | UnsetType | None = UNSET
    labels: dict[str, str] | None = None
    selector: dict[str, str] | None = None
    include_external: bool = field(name="includeExternal", default=False)
    shared: bool = False
    cluster_id: UInt32 = field(name="clusterID", default=0)
    terminating: list[str] | UnsetType | None = field(name="terminatingBackends", default=UNSET)


_DECODER: Final = msgspec.json.Decoder(WireService)
_PORTS: Final = msgspec.json.Decoder(dict[str, WirePort] | None)


def encode(service: Service) -> bytes:
    """JSON; Invalid for what a reader would refuse (no name, an address or a port that is none, no cluster id)."""
    return go_json.encode(to_wire(service))


@decodes("service")
def decode(data: bytes, most: int | None = None) -> Service:
    """Raises DecodeError, before it reads any of them where there are more than `most` addresses of one sort. An entry
    with `shared` false is to be treated as absent: this decodes it all the same."""
    wire = _DECODER.decode(data)
    for where in ("frontends", "backends", "hostnames", "zones", "terminating"):
        number = len(getattr(wire, where) or ())
        if most is not None and number > most:
            raise Invalid(where, f"{number} addresses", f"must be at most {most}")
    return from_wire(wire)


def to_wire(service: Service) -> WireService:
    _check_names(service.cluster, service.namespace, service.name, service.cluster_id)
    return WireService(
        service.cluster,
        service.namespace,
        service.name,
        write_addresses(service.frontends),
        write_addresses(service.backends),
        {text(ip): name for ip, name in service.hostnames.items()},
        {text(ip): _write_zone(zone) for ip, zone in service.zones.items()} if service.zones else UNSET,
        dict(service.labels),
        dict(service.selector),
        service.include_external,
        service.shared,
        service.cluster_id,
        sorted(map(text, service.terminating)) or UNSET,
    )


def from_wire(wire: WireService) -> Service:
    _check_names(wire.cluster, wire.namespace, wire.name, wire.cluster_id)
    return Service(
        cluster=wire.cluster,
        cluster_id=wire.cluster_id,
        namespace=wire.namespace,
        name=wire.name,
        frontends=read_addresses(wire.frontends, "frontend address"),
        backends=read_addresses(wire.backends, "backend address"),
        hostnames={parse(ip, "backend address"): name for ip, name in (wire.hostnames or {}).items()},
        zones={parse(ip, "backend address"): _read_zone(zone) for ip, zone in (wire.zones or {}).items()},
        labels=wire.labels or {},
        selector=wire.selector or {},
        include_external=wire.include_external,
        shared=wire.shared,
        terminating=frozenset(parse(ip, "backend address") for ip in wire.terminating or ()),
    )


def _check_names(cluster: str, namespace: str, name: str, cluster_id: int) -> None:
    check_name(cluster, "cluster")
    check_name(namespace, "namespace")
    check_name(name, "name")
    check_cluster_id(cluster_id, _LARGEST_ID)


def write_addresses(addresses: Mapping[Address, Mapping[str, Port]]) -> PortsByIP:
    """The inverse of `read_addresses`; Invalid for a port that no reader takes."""
    spelled = dict[tuple[tuple[str, Port], ...], msgspec.Raw]()
    written = dict[str, msgspec.Raw]()
    for ip, ports in addresses.items():
        if (raw := spelled.get(key := tuple(ports.items()))) is None:
            raw = spelled[key] = msgspec.Raw(go_json.encode(write_ports(ports)))
        written[text(ip)] = raw
    return written


def read_addresses(wire: PortsByIP | None, where: str) -> dict[Address, Mapping[str, Port]]:
    """Ports by address; Invalid for one that is none, or is there twice."""
    spelled = dict[bytes, Mapping[str, Port]]()
    read = dict[Address, Mapping[str, Port]]()
    for ip, raw in (wire or {}).items():
        if (ports := spelled.get(spelling := bytes(raw))) is None:
            ports = spelled[spelling] = read_ports(_PORTS.decode(raw))
        read[parse(ip, where)] = ports
    if wire and len(read) != len(wire):
        raise Invalid(where, next(iter(wire)), "must not be named twice")
    return read


def _write_zone(zone: Zone) -> _Zone:
    return _Zone(zone.zone, [_ForZone(name) for name in zone.for_zones] or None)


def _read_zone(wire: _Zone) -> Zone:
    return Zone(zone=wire.zone, for_zones=tuple(each.name for each in wire.for_zones or ()))
