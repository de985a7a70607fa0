"""This project's own values, under clustermesh/v1/: the own cluster's services, its agents' keys, times of changes.

An own service that Cilium's key describes in full has no key here: `shared` is what stands there, `from_shared` what an
agent makes of it, and `is_told` whether the two are one another's inverse.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix, prefix_text, text
from clustermesh.errors import Invalid
from clustermesh.model import (
    MAX_WEIGHT,
    NOT_OUTSIDE,
    USUAL_WEIGHT,
    Affinity,
    AgentRecord,
    Algorithm,
    BackendDetail,
    BackendState,
    HostPorts,
    LocalService,
    Outside,
    Port,
    Service,
    ServiceType,
    Stamp,
)
from clustermesh.wire import go_json, identity, service
from clustermesh.wire.decoding import decodes
from clustermesh.wire.go_json import UInt16
from clustermesh.wire.keys import check_name
from clustermesh.wire.node import check_wireguard_key
from clustermesh.wire.ports import WirePort, check_port, read_ports, write_ports
from clustermesh.wire.service import PortsByIP

MAX_AFFINITY: Final = 86_400
"""Seconds for which a client may keep its backend, as Kubernetes has it."""

_Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[int, Meta(ge=0, le=MAX_AFFINITY)]
_Weight = Annotated[int, Meta(ge=1, le=MAX_WEIGHT)]


class _Detail(Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    state: Literal["active", "terminating", "quarantined", "maintenance"] = "active"
    weight: _Weight = USUAL_WEIGHT
    node: str = ""
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()


class _Outside(Struct, frozen=True, gc=False, omit_defaults=True, rename="camel"):
    node_ports: dict[str, WirePort] | UnsetType = UNSET
    external_ips: tuple[str, ...] | UnsetType = field(name="externalIPs", default=UNSET)
    load_balancer_ips: tuple[str, ...] | UnsetType = field(name="loadBalancerIPs", default=UNSET)
    source_ranges: tuple[str, ...] | UnsetType = UNSET
    local_only: bool = False
    health_check_port: UInt16 = 0


class _HostPorts(Struct, frozen=True, gc=False, omit_defaults=True):
    node: str
    ports: dict[str, WirePort]
    addresses: dict[str, str] | UnsetType = UNSET


class _LocalService(Struct, frozen=True, gc=False, rename="camel"):
    """What is left out is as of a service that is only called inside, with backends that are all alike."""

    service: service.WireService
    is_global: bool = field(name="global", default=False)
    affinity: Affinity = Affinity.NONE
    type: ServiceType | UnsetType = UNSET
    outside: _Outside | UnsetType = UNSET
    local_only: bool | UnsetType = UNSET
    affinity_seconds: _Seconds | UnsetType = UNSET
    algorithm: Literal["random", "maglev"] | UnsetType = UNSET
    details: dict[str, _Detail] | UnsetType = UNSET
    draining: PortsByIP | UnsetType = UNSET
    host_ports: _HostPorts | UnsetType = UNSET


class _Identity(Struct, frozen=True, gc=False):
    id: go_json.UInt32
    labels: str


class _AgentRecord(Struct, frozen=True, gc=False):
    node: str
    wireguard_public_key: str = field(name="wireguardPublicKey")
    boot_id: str = field(name="bootID", default="")
    reads_shared: bool = field(name="readsShared", default=False)
    identities: tuple[_Identity, ...] = ()


class _Stamps(Struct, frozen=True, gc=False):
    published: _Nanoseconds
    observed: dict[str, _Nanoseconds]


_STATE_NAMES: Final[Mapping[BackendState, Literal["active", "terminating", "quarantined", "maintenance"]]] = {
    BackendState.ACTIVE: "active",
    BackendState.TERMINATING: "terminating",
    BackendState.QUARANTINED: "quarantined",
    BackendState.MAINTENANCE: "maintenance",
}
_OUT: Final = (BackendState.QUARANTINED, BackendState.MAINTENANCE)
_MORE: Final = attrgetter(*_LocalService.__struct_fields__[3:])
_NO_MORE: Final = (UNSET,) * len(_LocalService.__struct_fields__[3:])
_SERVICES: Final = msgspec.json.Decoder(_LocalService)
_AGENTS: Final = msgspec.json.Decoder(_AgentRecord)
_STAMPS: Final = msgspec.json.Decoder(_Stamps)


def encode_service(local: LocalService) -> bytes:
    """JSON, the service inside it as Cilium has it; Invalid as in service.encode."""
    plain = local.type is ServiceType.CLUSTER_IP
    wire = _LocalService(
        service.to_wire(local.service),
        local.is_global,
        local.affinity,
        UNSET if plain else local.type,
        UNSET if local.outside == NOT_OUTSIDE else _write_outside(local.outside),
        local.local_only or UNSET,
        _check_seconds(local.affinity_seconds) or UNSET,
        "maglev" if local.algorithm is Algorithm.MAGLEV else UNSET,
        {text(ip): _write_detail(each) for ip, each in local.details.items()} or UNSET,
        service.write_addresses(local.draining) or UNSET,
        UNSET if local.host_ports is None else _write_host_ports(local.host_ports),
    )
    return go_json.encode(wire)


@decodes("local service")
def decode_service(data: bytes) -> LocalService:
    """Raises DecodeError."""
    wire = _SERVICES.decode(data)
    found = service.from_wire(wire.service)
    if _MORE(wire) == _NO_MORE:  # of nearly all there is nothing more to say
        return LocalService(service=found, is_global=wire.is_global, affinity=wire.affinity)
    return LocalService(
        service=found,
        is_global=wire.is_global,
        affinity=wire.affinity,
        type=wire.type or ServiceType.CLUSTER_IP,
        outside=_read_outside(wire.outside) if wire.outside else NOT_OUTSIDE,
        local_only=wire.local_only or False,
        affinity_seconds=wire.affinity_seconds or 0,
        algorithm=Algorithm.MAGLEV if wire.algorithm == "maglev" else Algorithm.RANDOM,
        details={parse(ip, "backend address"): _read_detail(each) for ip, each in (wire.details or {}).items()},
        draining=service.read_addresses(wire.draining or {}, "backend address"),
        host_ports=_read_host_ports(wire.host_ports) if wire.host_ports else None,
    )


def _write_detail(detail: BackendDetail) -> _Detail:
    if not 1 <= detail.weight <= MAX_WEIGHT:
        raise Invalid("weight", detail.weight, f"must be 1 to {MAX_WEIGHT}")
    state = _STATE_NAMES[detail.state]
    return _Detail(state, detail.weight, detail.node, detail.for_zones, detail.for_nodes)


def _read_detail(wire: _Detail) -> BackendDetail:
    return _detail(wire.state, wire.weight, wire.node, wire.for_zones, wire.for_nodes)


@lru_cache(4096)
def _detail(state: str, weight: int, node: str, zones: tuple[str, ...], nodes: tuple[str, ...]) -> BackendDetail:
    """Many backends have the same: equal ones are one object."""
    return BackendDetail(state=BackendState[state.upper()], weight=weight, node=node, for_zones=zones, for_nodes=nodes)


def _write_outside(outside: Outside) -> _Outside:
    ranges = outside.source_ranges
    return _Outside(
        _write_places(outside.node_ports) or UNSET,
        tuple(map(text, outside.external_ips)) or UNSET,
        tuple(map(text, outside.load_balancer_ips)) or UNSET,
        UNSET if ranges is None else tuple(map(prefix_text, ranges)),
        outside.local_only,
        check_port(outside.health_check_port),
    )


def _read_outside(wire: _Outside) -> Outside:
    ranges = wire.source_ranges
    return Outside(
        node_ports=_read_places(wire.node_ports or {}),
        external_ips=tuple(parse(ip, "external address") for ip in wire.external_ips or ()),
        load_balancer_ips=tuple(parse(ip, "load balancer's address") for ip in wire.load_balancer_ips or ()),
        source_ranges=None if ranges is UNSET else tuple(parse_prefix(each, "source range") for each in ranges),
        local_only=wire.local_only,
        health_check_port=wire.health_check_port,
    )


def _write_host_ports(host: HostPorts) -> _HostPorts:
    addresses = {name: text(ip) for name, ip in host.addresses.items()}
    return _HostPorts(check_name(host.node, "node"), _write_places(host.ports), addresses or UNSET)


def _read_host_ports(wire: _HostPorts) -> HostPorts:
    addresses = {name: parse(ip, "host address") for name, ip in (wire.addresses or {}).items()}
    return HostPorts(node=check_name(wire.node, "node"), ports=_read_places(wire.ports), addresses=addresses)


def _write_places(ports: Mapping[str, Port]) -> dict[str, WirePort]:
    """Ports of a node, which can be called."""
    for port in ports.values():
        if not port.port:
            raise Invalid("port", port.port, "must be 1 to 65535")
    return write_ports(ports)


def _read_places(wire: Mapping[str, WirePort]) -> Mapping[str, Port]:
    ports = read_ports(wire)
    _write_places(ports)
    return ports


def _check_seconds(seconds: int) -> int:
    if not 0 <= seconds <= MAX_AFFINITY:
        raise Invalid("session affinity", seconds, f"must be 0 to {MAX_AFFINITY} seconds")
    return seconds


def shared(local: LocalService) -> Service | None:
    """What other clusters are told of `local`; None where they are told nothing. A backend that is not to be used is
    not there: to Cilium, who is there is well. What terminates is there, as Cilium has it, and ours are told so."""
    if not (local.is_global and local.service.shared):
        return None
    out = {ip for ip, detail in local.details.items() if detail.state in _OUT}
    terminating = frozenset(ip for ip, of in local.details.items() if of.state is BackendState.TERMINATING)
    if not out and not terminating:
        return local.service
    backends = {ip: p for ip, p in local.service.backends.items() if ip not in out}
    return replace(local.service, backends=backends, terminating=terminating)


def from_shared(service: Service | None) -> LocalService | None:
    """The own service that Cilium's key says `service` of; one that is not shared is as good as absent."""
    return LocalService(service=service, is_global=True) if service is not None and service.shared else None


def is_told(local: LocalService) -> bool:
    """Whether `shared` says all there is to say of `local`, and `from_shared` gives it back."""
    return shared(local) is not None and local == from_shared(local.service)


def encode_agent(record: AgentRecord) -> bytes:
    """JSON; Invalid unless node and key are what they must be."""
    _check_agent(record)
    identities = tuple(_Identity(each.id, identity.encode(each).decode()) for each in record.identities)
    return go_json.encode(
        _AgentRecord(record.node, record.wireguard_public_key, record.boot_id, record.reads_shared, identities)
    )


@decodes("agent record")
def decode_agent(data: bytes) -> AgentRecord:
    """Raises DecodeError."""
    wire = _AGENTS.decode(data)
    record = AgentRecord(
        node=wire.node,
        wireguard_public_key=wire.wireguard_public_key,
        boot_id=wire.boot_id,
        reads_shared=wire.reads_shared,
        identities=tuple(identity.decode(each.labels.encode(), each.id) for each in wire.identities),
    )
    _check_agent(record)
    return record


def encode_stamps(observed: Mapping[tuple[str, str], int], published: int) -> bytes:
    """JSON: when the services written in one transaction were observed, and when they were written.

    Invalid for a time before 1970 or after 2262.
    """
    for where, moment in (("published", published), *(("observed", at) for at in observed.values())):
        if not 0 <= moment < 2**63:
            raise Invalid(where, moment, "must be Unix time in nanoseconds")
    return go_json.encode(_Stamps(published, {f"{space}/{name}": at for (space, name), at in observed.items()}))


@decodes("stamps")
def decode_stamps(data: bytes) -> dict[tuple[str, str], Stamp]:
    """By namespace and name of the service. Raises DecodeError."""
    wire = _STAMPS.decode(data)
    stamps = {}
    for named, observed in wire.observed.items():
        namespace, _, name = named.partition("/")
        where = (check_name(namespace, "namespace"), check_name(name, "name"))
        stamps[where] = Stamp(observed=observed, published=wire.published)
    return stamps


def _check_agent(record: AgentRecord) -> None:
    check_name(record.node, "node")
    check_wireguard_key(record.wireguard_public_key)
