"""One service over all clusters: which backends of which cluster answer behind each of its frontends. Pure.

The rules are Cilium's (global services): a local service takes remote backends when it is global itself; ports meet by
NAME; affinity decides whose backends are used, for each address family by itself. Every backend on the wire is ready or
serving: "healthy" is "present".

An entry says more than any source fills in today: what is left at its default here has its place in the maps already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from itertools import repeat
from operator import attrgetter, is_
from typing import Final

from msgspec import Struct

from clustermesh.address import V4, Address, Prefix, is_ipv4
from clustermesh.model import Affinity, Algorithm, BackendState, LocalService, Port, Protocol, Service


class Kind(IntEnum):
    """What a frontend's address is: of the cluster, or a way in from outside. Numbers as in bpf/layouts.h."""

    CLUSTER_IP = 0
    NODE_PORT = 1
    LOAD_BALANCER = 2
    EXTERNAL_IP = 3
    HOST_PORT = 4


class Scope(IntEnum):
    """Who asks: an address may have other backends for those outside than for those inside."""

    ANY = 0
    INTERNAL = 1
    EXTERNAL = 2


class ServiceFlag(IntFlag):
    """What else holds where a service is called. SOURCE_RANGES: who calls from outside must be in one of them.
    EXTERNAL: they have an entry of their own. KEEP_SOURCE: its backends are on this node, and see who called."""

    SOURCE_RANGES = 1
    EXTERNAL = 2
    KEEP_SOURCE = 4


class Frontend(Struct, frozen=True, order=True, gc=False):
    """Where a service is called: TCP, UDP or SCTP."""

    address: Address
    port: int
    protocol: Protocol
    scope: Scope = Scope.ANY


class Backend(Struct, frozen=True, gc=False):
    """Who answers, over its frontend's protocol."""

    address: Address
    port: int


class Backends(Struct, frozen=True, gc=False):
    """Those of a group that have all but their addresses, which are in order, in common."""

    addresses: tuple[Address, ...]
    port: int
    state: BackendState = BackendState.ACTIVE


class Group(Struct, frozen=True, gc=False):
    """Backends of one cluster and of one weight, nearly always at one port: there are too many of them for an object
    each. `weight` is its part among the groups: what all of its backends weigh together."""

    cluster_id: int
    weight: int
    alike: tuple[Backends, ...]

    @property
    def backends(self) -> list[Backend]:
        return [Backend(address, alike.port) for alike in self.alike for address in alike.addresses]


class ServiceEntry(Struct, frozen=True, gc=False):
    """One frontend and who answers there. Groups are in order, so that equal services are equal entries.

    `groups` are given to new connections, `resting` to none: their connections go on. `affinity_seconds` is for how
    long a client stays with its backend, 0 for not at all.
    """

    frontend: Frontend
    groups: tuple[Group, ...] = ()
    kind: Kind = Kind.CLUSTER_IP
    flags: int = 0
    affinity_seconds: int = 0
    algorithm: Algorithm = Algorithm.RANDOM
    resting: tuple[Group, ...] = ()
    source_ranges: tuple[Prefix, ...] = ()


_CLUSTER_ID: Final = attrgetter("cluster_id")
_V4: Final = V4.address[: V4.length // 8]
_PORTS: Final = frozenset({Protocol.TCP, Protocol.UDP, Protocol.SCTP})  # what a frontend can be called over


def resolve(local: LocalService, remotes: Iterable[Service]) -> list[ServiceEntry]:
    """The entries of `local`, one for each frontend, with the backends of the same service in other clusters where it
    is global. A frontend nobody answers has no group: calls to it are refused rather than leaked."""
    shared = [remote for remote in remotes if remote.shared] if local.is_global else []
    known: dict[tuple[str, Protocol, bool], tuple[Group, ...]] = {}
    entries = []
    for address, ports in local.service.frontends.items():
        for name, port in ports.items():
            if port.protocol not in _PORTS:
                continue
            asked = name, port.protocol, is_ipv4(address)
            if asked not in known:  # IPv4 frontends of one port have one answer
                known[asked] = _groups(local, shared, *asked)
            entries.append(ServiceEntry(Frontend(address, port.port, port.protocol), known[asked]))
    return entries


def _groups(
    local: LocalService, shared: Sequence[Service], name: str, protocol: Protocol, ipv4: bool
) -> tuple[Group, ...]:
    def answering(services: Iterable[Service]) -> list[Group]:
        groups = []
        for service in services:
            if found := _alike(service.backends, name, protocol, ipv4):
                groups.append(Group(service.cluster_id, sum([len(each.addresses) for each in found]), found))
        return groups

    own = answering([local.service])
    if not shared:
        return tuple(own)
    others = answering(shared)
    if local.affinity is Affinity.LOCAL:
        found = own or others
    else:
        found = others or own if local.affinity is Affinity.REMOTE else own + others
    return tuple(sorted(found, key=_CLUSTER_ID))


def _alike(
    backends: Mapping[Address, Mapping[str, Port]], name: str, protocol: Protocol, ipv4: bool
) -> tuple[Backends, ...]:
    """Those of one family that answer at the port of this name, by its number."""
    first: Mapping[str, Port] = next(iter(backends.values()), {})
    if all(map(is_, backends.values(), repeat(first))):  # as peers' are that spell them alike: looked up once
        port = first.get(name)
        wanted = [address for address in backends if address.startswith(_V4) is ipv4]
        if not wanted or port is None or port.protocol is not protocol:
            return ()
        return (Backends(tuple(sorted(wanted)), port.port),)
    found: dict[int, list[Address]] = {}
    for address, ports in backends.items():
        if (port := ports.get(name)) is not None and port.protocol is protocol and address.startswith(_V4) is ipv4:
            found.setdefault(port.port, []).append(address)
    return tuple([Backends(tuple(sorted(addresses)), number) for number, addresses in sorted(found.items())])
