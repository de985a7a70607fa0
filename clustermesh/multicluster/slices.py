"""The EndpointSlices that a Service should have of its backends in other clusters. Pure.

They carry the labels that Cilium gives them, so its agents and ours know that these are no backends of here, and are
owned by the Service, so that they go with it whether we still run or not. A Service has them where it is global and
asks for them, and where it is headless unless it does not want them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from functools import partial
from itertools import groupby
from typing import Final

from msgspec import Struct

from clustermesh.address import Address, is_ipv4, text
from clustermesh.model import Port
from clustermesh.model import Service as RemoteService
from clustermesh.multicluster.documents import (
    MANAGED_BY,
    MESH,
    SERVICE_NAME,
    SERVICES,
    SLICES,
    SOURCE_CLUSTER,
    Document,
    Name,
    Write,
    labels_of,
    owned_by,
    settle,
    short,
)
from clustermesh.sources.index import SERVICE_NAME as OF_SERVICE
from clustermesh.sources.objects import Service
from clustermesh.sources.services import GLOBAL, SYNC_SLICES

MOST: Final = 100
"""Endpoints of one slice, as Kubernetes' own controller has it."""
_HEADLESS: Final = "service.kubernetes.io/headless"

_Group = tuple[bool, tuple[tuple[str, str, int], ...]]
"""Whether it is of IPv4, and its ports."""


class SliceFacts(Struct, frozen=True, kw_only=True):
    """Everything that the slices of one Service are decided by: `remotes` is what connected clusters share of it,
    `unheard` are those of which that is not known yet. `held` are its slices of this kind as the API has them."""

    name: Name
    service: Service | None
    in_mesh: bool
    remotes: Mapping[str, RemoteService] = {}
    unheard: Set[str] = frozenset()
    held: Mapping[Name, Document] = {}


def wants_slices(service: Service | None) -> bool:
    """Whether it is to have any."""
    if service is None or service.spec.type == "ExternalName":
        return False
    said = service.metadata.annotations
    if next((said[name] for name in GLOBAL if name in said), "").lower() != "true":
        return False
    return said.get(SYNC_SLICES, str(_is_headless(service))).lower() == "true"


def _is_headless(service: Service) -> bool:
    return "None" in (service.spec.cluster_ip, *service.spec.cluster_ips)


def slice_writes(facts: SliceFacts) -> list[Write]:
    """What is to be written: new ones first, so that no endpoint is missing in between."""
    wanted: dict[Name, Document] = {}
    wants = facts.in_mesh and wants_slices(facts.service)
    if facts.service is not None and wants:
        for cluster, remote in facts.remotes.items():
            wanted |= _slices(facts.name, facts.service, cluster, remote)
    made = [write for name, each in wanted.items() for write in settle(SLICES, name, facts.held.get(name), each)]
    gone = [
        Write("DELETE", SLICES, name)
        for name, held in facts.held.items()
        if name not in wanted and not (wants and labels_of(held).get(SOURCE_CLUSTER) in facts.unheard)
    ]
    return made + gone


def _slices(name: Name, service: Service, cluster: str, remote: RemoteService) -> Iterator[tuple[Name, Document]]:
    by = owned_by(SERVICES, name[1], service.metadata.uid)
    labels = {OF_SERVICE: name[1], SOURCE_CLUSTER: cluster, MANAGED_BY: MESH}
    if of := service.metadata.labels.get(SERVICE_NAME):
        labels[SERVICE_NAME] = of
    if _is_headless(service):
        labels[_HEADLESS] = ""
    of_group = partial(_group, remote)
    ordered = sorted(remote.backends, key=lambda ip: (of_group(ip), ip))
    for (ipv4, ports), members in groupby(ordered, of_group):
        ips = list(members)
        for begin in range(0, len(ips), MOST):
            digest = hashlib.sha256(repr((ipv4, ports, begin)).encode()).digest()
            yield (
                (name[0], f"{name[1]}-{cluster}-{short(digest)}"),
                {
                    "metadata": {"labels": labels, "ownerReferences": by},
                    "addressType": "IPv4" if ipv4 else "IPv6",
                    "endpoints": [_endpoint(ip, remote) for ip in ips[begin : begin + MOST]],
                    "ports": [{"name": of, "protocol": protocol, "port": port} for of, protocol, port in ports],
                },
            )


def _group(remote: RemoteService, ip: Address) -> _Group:
    return is_ipv4(ip), _ports(remote.backends[ip])


def _ports(ports: Mapping[str, Port]) -> tuple[tuple[str, str, int], ...]:
    return tuple(sorted((name, str(port.protocol), port.port) for name, port in ports.items()))


def _endpoint(ip: Address, of: RemoteService) -> Document:
    named = {"hostname": of.hostnames[ip]} if of.hostnames.get(ip) else {}
    conditions = {"ready": False, "serving": True, "terminating": True} if ip in of.terminating else {"ready": True}
    return {"addresses": [text(ip)], "conditions": conditions, **named}
