"""The last good states as the agent of layout v1 reads them: addresses in them are text.

That agent begins to delete once every cluster's lists are in, also those of a cluster that came in while it was busy
and that it has not planned yet; the routes and peers of such a cluster are gone for a moment. What it restored from its
disk it has planned before it hears anything, so a downgrade leaves it that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import asdict

from clustermesh.address import Address, Prefix, family_length, is_ipv4, prefix_text, text
from clustermesh.mesh import last_good
from clustermesh.mesh.state import View
from clustermesh.model import ClusterConfig, Endpoint, LocalService, Node, Service

FORMAT: Final = 1
T = TypeVar("T")


def rewrite(folder: Path) -> list[str]:
    """Write the states kept in `folder` anew; returns the clusters. One that cannot be read stays. OSError."""
    kept = {path.stem: last_good.load(folder, path.stem) for path in sorted(folder.glob("*.state"))}
    found = {cluster: each for cluster, each in kept.items() if each is not None}
    for cluster, each in found.items():
        last_good.save(folder, cluster, encode(each.config, each.view))
    return list(found)


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
    return asdict(local) | {"service": _service(local.service)}
