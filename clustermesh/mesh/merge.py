"""One service over all clusters: which backends answer behind each of its frontends. Pure.

The rules are Cilium's (global services): a local service takes remote backends when it is global itself; ports meet by
NAME; affinity decides whose backends are used. Every backend on the wire is ready or serving: "healthy" is "present".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from clustermesh.address import is_ipv4, text
from clustermesh.model import Affinity, LocalService, Protocol, Service


class Frontend(NamedTuple):
    """Where a service is called: an IPv4 or IPv6 address as text, a port, TCP, UDP or SCTP."""

    address: str
    port: int
    protocol: Protocol


class Backend(NamedTuple):
    """Who answers. Ordered by cluster, then address, so that equal sets are equal tuples."""

    cluster_id: int
    address: str
    port: int
    protocol: Protocol


def merge(local: LocalService, remotes: Iterable[Service]) -> dict[Frontend, tuple[Backend, ...]]:
    """The backends of each frontend of `local`, with those of the same service in other clusters where it is global.

    A frontend nobody answers has an empty tuple: calls to it are refused rather than leaked.
    """
    shared = [remote for remote in remotes if remote.shared] if local.is_global else []
    merged: dict[Frontend, tuple[Backend, ...]] = {}
    for address, ports in local.service.frontends.items():
        for name, port in ports.items():
            own = _backends(local.service, name, port.protocol)
            others = [backend for remote in shared for backend in _backends(remote, name, port.protocol)]
            chosen = sorted({*_prefer(local.affinity, own, others)})
            merged[Frontend(text(address), port.port, port.protocol)] = tuple(
                b for b in chosen if (":" not in b.address) is is_ipv4(address)
            )
    return merged


def _prefer(affinity: Affinity, own: list[Backend], others: list[Backend]) -> list[Backend]:
    if affinity is Affinity.LOCAL:
        return own or others
    if affinity is Affinity.REMOTE:
        return others or own
    return own + others


def _backends(service: Service, port_name: str, protocol: Protocol) -> list[Backend]:
    found: list[Backend] = []
    for address, ports in service.backends.items():
        port = ports.get(port_name)
        if port is not None and port.protocol is protocol:
            found.append(Backend(service.cluster_id, text(address), port.port, port.protocol))
    return found
