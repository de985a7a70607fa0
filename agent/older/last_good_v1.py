"""The last good states as the agent of layout v1 reads and writes them: addresses in them are text.

That agent begins to delete once every cluster's lists are in, also those of a cluster that came in while it was busy
and that it has not planned yet; the routes and peers of such a cluster are gone for a moment. What it restored from its
disk it has planned before it hears anything, so a downgrade leaves it that. And the agent after it takes over what it
has kept: of a cluster whose etcd cannot be reached nothing is lost by an upgrade.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from clustermesh.address import Address, Prefix, family_length, is_ipv4, parse, parse_prefix, prefix_text, text
from clustermesh.mesh import last_good
from clustermesh.mesh.view import ServiceName, View
from clustermesh.model import ClusterConfig, Endpoint, Identity, LocalService, Node, Service

FORMAT: Final = 1
_HEAD: Final = b"\x83\xa6format" + bytes([FORMAT])  # of every state: a map of three, its format first
K = TypeVar("K")
S = TypeVar("S")
T = TypeVar("T")


def rewrite(folder: Path, own: str) -> list[str]:
    """Write the states kept in `folder` anew; returns the clusters. One that cannot be read stays. OSError.

    That agent knows of services of its `own` cluster only what is said to agents alone.
    """
    kept = {path.stem: last_good.load(folder, path.stem) for path in sorted(folder.glob("*.state"))}
    found = {cluster: each for cluster, each in kept.items() if each is not None}
    for cluster, each in found.items():
        view = _with_own_services(each.view) if cluster == own else each.view
        last_good.save(folder, cluster, encode(each.config, view))
    return list(found)


def _with_own_services(view: View) -> View:
    known = {name: each for name in view.own_names() if (each := view.own_service(name)) is not None}
    return replace(view, services={}, local_services=known)


class _View(Struct, kw_only=True):
    nodes: dict[str, dict[str, Any]] = {}
    identities: dict[int, Identity] = {}
    endpoints: dict[str, dict[str, Any]] = {}
    services: dict[ServiceName, dict[str, Any]] = {}
    local_services: dict[ServiceName, dict[str, Any]] = {}


class _State(Struct, kw_only=True):
    format: int
    config: ClusterConfig
    view: _View


def take_over(folder: Path) -> list[str]:
    """Write what the agent of v1 kept in `folder` as this one does; returns the clusters. What is neither stays as it
    is. OSError."""
    taken = []
    for path in sorted(folder.glob("*.state")):
        if _is_older(path) and (found := decode(path.read_bytes())) is not None:
            last_good.save(folder, path.stem, last_good.encode(*found))
            taken.append(path.stem)
    return taken


def _is_older(path: Path) -> bool:
    """Without reading all of it: every start looks."""
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD


def decode(encoded: bytes) -> tuple[ClusterConfig, View] | None:
    """The inverse of `encode`, without entries that are none; or None for a state of any other format."""
    try:
        state = msgspec.msgpack.decode(encoded, type=_State)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    if state.format != FORMAT:
        return None
    kept = state.view
    places = _read(dict(zip(kept.endpoints, kept.endpoints, strict=True)), _read_place)
    endpoints = _read({name: kept.endpoints[name] for name in places}, _read_endpoint)
    return state.config, View(
        nodes=_read(kept.nodes, _read_node),
        identities=kept.identities,
        endpoints={places[name]: each for name, each in endpoints.items()},
        services=_read(kept.services, _read_service),
        local_services=_read(kept.local_services, _read_local_service),
    )


def encode(config: ClusterConfig, view: View) -> bytes:
    """One state. The agent of v1 knows of no other tables."""
    services = {name: _service(each) for name, each in view.services.items()}
    local = {name: _local_service(each) for name, each in view.local_services.items()}
    endpoints = [_endpoint(each) for each in view.endpoints.values()]
    tables = {
        "nodes": {name: _node(each) for name, each in view.nodes.items()},
        "identities": view.identities,
        "endpoints": dict(zip(map(_place, view.endpoints), endpoints, strict=True)),
        "services": services,
        "local_services": local,
    }
    return msgspec.msgpack.encode({"format": FORMAT, "config": config, "view": tables})


def _place(key: Address | Prefix) -> str:
    return prefix_text(key) if isinstance(key, Prefix) else text(key)


def _node(node: Node) -> dict[str, Any]:
    known = asdict(node)
    cidrs, health, ingress = (known.pop(name) for name in ("pod_cidrs", "health_ips", "ingress_ips"))
    known["addresses"] = [{"type": each.type, "ip": text(each.ip)} for each in node.addresses]
    for family, ipv4 in (("ipv4", True), ("ipv6", False)):
        own = [prefix_text(cidr) for cidr in cidrs if is_ipv4(cidr.address) == ipv4]
        known[f"{family}_alloc_cidr"] = own[0] if own else None
        known[f"{family}_secondary_alloc_cidrs"] = own[1:]
        known[f"{family}_health_ip"] = _first(health, ipv4)
        known[f"{family}_ingress_ip"] = _first(ingress, ipv4)
    return known


def _first(addresses: tuple[Address, ...], ipv4: bool) -> str:
    return next((text(each) for each in addresses if is_ipv4(each) == ipv4), "")


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    length = endpoint.prefix_length
    return asdict(endpoint) | {
        "ip": text(endpoint.ip),
        "host_ip": "" if endpoint.host_ip is None else text(endpoint.host_ip),
        "prefix_length": None if length is None else family_length(Prefix(endpoint.ip, length)),
    }


def _service(service: Service) -> dict[str, Any]:
    tables = ("frontends", "backends", "hostnames", "zones")
    return asdict(service) | {name: _by_text(getattr(service, name)) for name in tables}


def _by_text(table: Mapping[Address, T]) -> dict[str, T]:
    return {text(address): value for address, value in table.items()}


def _local_service(local: LocalService) -> dict[str, Any]:
    """Only what that agent knows."""
    return {"service": _service(local.service), "is_global": local.is_global, "affinity": local.affinity}


def _read(table: Mapping[K, S], read: Callable[[S], T]) -> dict[K, T]:
    found = {}
    for name, each in table.items():
        with suppress(Exception):  # whatever a former agent has kept must not end this one
            found[name] = read(each)
    return found


def _read_place(name: str) -> Address | Prefix:
    return parse_prefix(name) if "/" in name else parse(name)


def _read_node(known: dict[str, Any]) -> Node:
    families = ("ipv4", "ipv6")
    cidrs = [[known.pop(f"{f}_alloc_cidr"), *known.pop(f"{f}_secondary_alloc_cidrs")] for f in families]
    known["pod_cidrs"] = [parse_prefix(each) for each in chain(*cidrs) if each]
    for kind in ("health", "ingress"):
        known[f"{kind}_ips"] = [parse(each) for f in families if (each := known.pop(f"{f}_{kind}_ip"))]
    known["addresses"] = [each | {"ip": parse(each["ip"])} for each in known["addresses"]]
    return msgspec.convert(known, Node)


def _read_endpoint(known: dict[str, Any]) -> Endpoint:
    ip, host, length = parse(known["ip"]), known["host_ip"], known["prefix_length"]
    prefix = None if length is None else parse_prefix(f"{known['ip']}/{length}")
    return msgspec.convert(
        known
        | {
            "ip": ip,
            "host_ip": parse(host) if host else None,
            "prefix_length": None if prefix is None else prefix.length,
        },
        Endpoint,
    )


def _read_service(known: dict[str, Any]) -> Service:
    tables = ("frontends", "backends", "hostnames", "zones")
    return msgspec.convert(
        known | {name: {parse(ip): value for ip, value in known[name].items()} for name in tables}, Service
    )


def _read_local_service(known: dict[str, Any]) -> LocalService:
    return msgspec.convert(known | {"service": _read_service(known["service"])}, LocalService)
