"""One service over all clusters: which backends of which cluster answer behind each of its frontends. Pure.

The rules are Cilium's (global services) and kube-proxy's: a local service takes remote backends when it is global
itself; ports meet by NAME; who of them answers is decided in answering.py, for each address family by itself. Every
remote backend on the wire is ready or serving: "healthy" is "present".

Who calls from outside finds a service with a policy Local under SCOPE_EXTERNAL, with the backends of this node; who
calls the same address from inside has all of them. A policy Local for those inside holds at cluster IPs only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, Final

from msgspec import Struct

from clustermesh.address import V4, Address, Prefix, is_ipv4, parse
from clustermesh.mesh.answering import NOWHERE, Candidate, Here, answer
from clustermesh.model import (
    NOT_OUTSIDE,
    Affinity,
    Algorithm,
    BackendDetail,
    BackendState,
    LocalService,
    Port,
    Protocol,
    Service,
    Zone,
)


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
LOOPBACK: Final = (parse("127.0.0.1"), parse("::1"))
_MANY_GROUPS: Final = 64  # beyond that weights are told apart by their powers of two: a look-up goes over all groups

_Ports = Mapping[str, Port]
_Answer = tuple[tuple[Group, ...], tuple[Group, ...]]
"""Those that are given, and those that rest."""


def resolve(local: LocalService, remotes: Iterable[Service], here: Here = NOWHERE) -> list[ServiceEntry]:
    """The entries of `local` on the node `here`, with the backends of the same service in other clusters where it is
    global; an entry of SCOPE_EXTERNAL before the other at its address. A frontend nobody answers has no group: calls to
    it are refused rather than leaked."""
    shared = [remote for remote in remotes if remote.shared] if local.is_global else []
    if asks_more(local, shared):
        return list(_Resolution(local, shared, here).entries())
    known: dict[tuple[str, Protocol, bool], tuple[Group, ...]] = {}
    kind, seconds, algorithm = Kind.CLUSTER_IP, local.affinity_seconds, local.algorithm
    entries = []
    for address, ports in local.service.frontends.items():
        for name, port in ports.items():
            if port.protocol not in _PORTS:
                continue
            asked = name, port.protocol, is_ipv4(address)
            if asked not in known:  # IPv4 frontends of one port have one answer
                known[asked] = _groups(local, shared, *asked)
            at = Frontend(address, port.port, port.protocol)
            entries.append(ServiceEntry(at, known[asked], kind, 0, seconds, algorithm))
    return entries


def asks_more(local: LocalService, remotes: Sequence[Service]) -> bool:
    """Whether it takes more than who is there to say who answers: what each backend is like, and which node this is."""
    return bool(
        local.details
        or local.draining
        or local.local_only
        or local.affinity is not Affinity.NONE
        or local.host_ports is not None
        or local.outside != NOT_OUTSIDE
        or any(remote.terminating for remote in remotes)
        or (remotes and any(zone.for_zones for remote in remotes for zone in remote.zones.values()))
    )


class _Resolution:
    """The long way: for a service of which anything special is said."""

    def __init__(self, local: LocalService, remotes: Sequence[Service], here: Here) -> None:
        self._local, self._remotes, self._here = local, remotes, here
        self._answers: dict[tuple[str, Protocol, bool, bool], _Answer] = {}

    def entries(self) -> Iterator[ServiceEntry]:
        local, outside = self._local, self._local.outside
        families = {is_ipv4(address): ports for address, ports in local.service.frontends.items()}
        for kind, addresses in (
            (Kind.EXTERNAL_IP, outside.external_ips),
            (Kind.LOAD_BALANCER, outside.load_balancer_ips),
        ):
            for address in addresses:
                yield from self._from_outside(address, families.get(is_ipv4(address), {}), kind)
        for address in self._here.addresses if outside.node_ports else ():
            if is_ipv4(address) in families:
                yield from self._from_outside(address, outside.node_ports, Kind.NODE_PORT)
        for address in LOOPBACK if outside.node_ports else ():
            if is_ipv4(address) in families:
                yield from self._at(address, outside.node_ports, Kind.NODE_PORT)
        yield from self._host_ports()
        for address, ports in local.service.frontends.items():
            yield from self._at(address, ports, Kind.CLUSTER_IP, only_here=local.local_only)

    def _from_outside(self, address: Address, ports: _Ports, kind: Kind) -> Iterator[ServiceEntry]:
        flags, outside = ServiceFlag(0), self._local.outside
        ranges = outside.source_ranges if kind is Kind.LOAD_BALANCER else None
        if ranges is not None:
            flags |= ServiceFlag.SOURCE_RANGES
        if outside.local_only:
            keep = flags | ServiceFlag.KEEP_SOURCE
            yield from self._at(address, ports, kind, keep, ranges or (), scope=Scope.EXTERNAL, only_here=True)
            flags |= ServiceFlag.EXTERNAL
        yield from self._at(address, ports, kind, flags, ranges or ())

    def _host_ports(self) -> Iterator[ServiceEntry]:
        """A pod in the network of its node is called there without us."""
        said, pod = self._local.host_ports, self._local.service.backends
        if said is None or said.node != self._here.name or not pod.keys().isdisjoint(self._here.addresses):
            return
        everywhere = (*self._here.addresses, *LOOPBACK)
        for name, port in said.ports.items():
            for address in (said.addresses[name],) if name in said.addresses else everywhere:
                for entry in self._at(address, {name: port}, Kind.HOST_PORT, ServiceFlag.KEEP_SOURCE):
                    if entry.groups or entry.resting:  # the pod has an address of this family
                        yield entry

    def _at(
        self,
        address: Address,
        ports: _Ports,
        kind: Kind,
        flags: int = 0,
        ranges: tuple[Prefix, ...] = (),
        *,
        scope: Scope = Scope.ANY,
        only_here: bool = False,
    ) -> Iterator[ServiceEntry]:
        local = self._local
        for name, port in ports.items():
            if port.protocol in _PORTS:
                given, resting = self._answer(name, port.protocol, is_ipv4(address), only_here)
                at = Frontend(address, port.port, port.protocol, scope)
                yield ServiceEntry(
                    at, given, kind, int(flags), local.affinity_seconds, local.algorithm, resting, ranges
                )

    def _answer(self, *asked: Any) -> _Answer:
        """Of the port's name and protocol, whether it is called over IPv4, and whether by a policy Local."""
        if asked not in self._answers:
            *port, only_here = asked
            own, others = self._own(*port), [each for remote in self._remotes for each in _remote(remote, *port)]
            found = answer(own, others, self._local.affinity, self._here, only_here=only_here)
            self._answers[asked] = _grouped(found.given), _grouped(found.resting, weighed=False)
        return self._answers[asked]

    def _own(self, name: str, protocol: Protocol, ipv4: bool) -> list[Candidate]:
        service, details, found = self._local.service, self._local.details, []
        for draining, backends in ((False, service.backends), (True, self._local.draining)):
            for address, number in _answering(backends, name, protocol, ipv4):
                of = details.get(address, _PLAIN)
                state = BackendState.TERMINATING if draining else of.state
                hints = of.for_zones, of.for_nodes
                found.append(
                    Candidate(service.cluster_id, address, number, state, of.weight, of.node, *hints, draining)
                )
        return found


_PLAIN: Final = BackendDetail()
_NO_ZONE: Final = Zone()


def _remote(service: Service, name: str, protocol: Protocol, ipv4: bool) -> Iterator[Candidate]:
    for address, number in _answering(service.backends, name, protocol, ipv4):
        state = BackendState.TERMINATING if address in service.terminating else BackendState.ACTIVE
        zones = service.zones.get(address, _NO_ZONE).for_zones
        yield Candidate(service.cluster_id, address, number, state, for_zones=zones)


def _answering(
    backends: Mapping[Address, _Ports], name: str, protocol: Protocol, ipv4: bool
) -> Iterator[tuple[Address, int]]:
    for address, ports in backends.items():
        if (port := ports.get(name)) is not None and port.protocol is protocol and address.startswith(_V4) is ipv4:
            yield address, port.port


def _grouped(those: Sequence[Candidate], *, weighed: bool = True) -> tuple[Group, ...]:
    """By cluster and weight. Where all weigh the same each has a part of 1; where nobody is given, of none."""
    weights = {each.weight for each in those} if weighed else set[int]()
    is_even, are_many = len(weights) <= 1, len({(each.cluster_id, each.weight) for each in those}) > _MANY_GROUPS
    found: dict[tuple[int, int], dict[tuple[int, BackendState], list[Address]]] = {}
    for cluster_id, address, port, state, weight, *_ in those:
        part = int(weighed) if is_even else 1 << weight.bit_length() - 1 if are_many else weight
        found.setdefault((cluster_id, part), {}).setdefault((port, state), []).append(address)
    groups = []
    for (cluster_id, part), alike in sorted(found.items()):
        backends = tuple([Backends(tuple(sorted(of_one)), *at) for at, of_one in sorted(alike.items())])
        groups.append(Group(cluster_id, part * sum(map(len, alike.values())), backends))
    return tuple(groups)


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
    return tuple(sorted(own + answering(shared), key=_CLUSTER_ID)) if shared else tuple(own)


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
