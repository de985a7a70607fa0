"""What etcds say of a subject: when each wrote it, and what an agent would make of it that began now.

etcd keeps no times but revisions. What was there at the revision of an entry says when that was: the stamps of the
services that were written with it, to the nanosecond; else the last heartbeat before it, which is within a minute. Once
that revision is compacted no more is known than that the entry is older than the heartbeat there is now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from clustermesh.errors import ClusterMeshError, DecodeError, Invalid, Unavailable, sentence
from clustermesh.mesh.authority import Authority
from clustermesh.mesh.peer_files import PeerFile, PeersFolder
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.state import MeshState
from clustermesh.model import Cluster, ClusterConfig, Endpoint, Identity, LocalService, Service
from clustermesh.standalone.context import Context
from clustermesh.store.client import EtcdClient
from clustermesh.store.operations import KeyValue
from clustermesh.store.tls import Tls
from clustermesh.why.facts import ClusterFacts, Facts, Hop, Seen
from clustermesh.why.held import Held
from clustermesh.why.subject import OfAddress, OfIdentity, OfLabels, OfService, Subject
from clustermesh.wire import RESOURCES, Resource, cluster_config, keys
from clustermesh.wire.kinds import ENDPOINTS, IDENTITIES, LOCAL_SERVICES, NODES, SERVICES, STAMPS
from clustermesh.wire.timestamp import parse_time

_AT_ONCE: Final = 16  # peers
_TIMES: Final = 10  # the patience for one answer, for all that a peer has to say
_MOST_BYTES: Final = 128 << 20  # of a list; 10,000 services are some 20 MB
_ORDER: Final = ("source", "etcd", "peer", "cache", "agent", "kernel")
_JUDGED_BY: Final[Mapping[type, Sequence[str]]] = {
    OfService: (NODES, LOCAL_SERVICES, SERVICES),
    OfAddress: (NODES, IDENTITIES, ENDPOINTS, LOCAL_SERVICES, SERVICES),
    OfIdentity: (IDENTITIES, ENDPOINTS),
    OfLabels: (IDENTITIES, ENDPOINTS),
}
"""What an agent would need to know to judge a subject."""


class _Place(NamedTuple):
    """The etcd where `cluster` is read; `config` is what it says there, `cached` whether the etcd holds copies.

    A list there is read up to `most_bytes`.
    """

    client: EtcdClient
    cluster: Cluster
    config: ClusterConfig
    most_bytes: int | None = None


class Etcds:
    """The own cluster's etcd and its peers'. No question takes longer than `patience` seconds, and a peer's lists
    together ten times as long."""

    def __init__(self, own: Context, folder: PeersFolder, patience: float) -> None:
        self._own, self._peers, self._problems, self._patience = own, folder.peers, folder.problems, patience
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def stand_in(self, subject: Subject) -> Facts:
        """What an agent would make of it. Raises Unavailable or Refused where the own etcd cannot be read."""
        state = MeshState(self._own.name)
        clusters = [ClusterFacts(name=self._own.name, own=True, state="fresh")]
        async with self._own_etcd() as place:
            await _fill(state, place, subject, own=True)
        state.admit_peers()
        clusters += [ClusterFacts(name=each.name, state="connecting", error=str(each.error)) for each in self._problems]
        clusters += await asyncio.gather(*(self._read(state, file, subject) for file in self._peers.values()))
        while state.judge():
            pass
        return _judged(state, subject, Facts(own=self._own.name, clusters=tuple(clusters)))

    async def hops(self, facts: Facts) -> tuple[Hop, ...]:
        """Where what `facts` are about is written, in the order in which it travels, and what they had before."""
        own, *peers = await asyncio.gather(
            self._own_hops(facts), *(self._peer_hops(file, facts) for file in self._peers.values())
        )
        found = [*own, *(hop for each in peers for hop in each), *facts.hops]
        unique = {(hop.hop, hop.cluster, hop.what): hop for hop in found}  # of two sources etcd's is as good
        return in_order(unique.values(), facts.own)

    async def _read(self, state: MeshState, file: PeerFile, subject: Subject) -> ClusterFacts:
        try:
            async with self._turn, asyncio.timeout(self._patience * _TIMES), self._etcd_of(file) as place:
                state.authorize(Authority.of(place.cluster, file.allowed, file.limits))
                await _fill(state, place, subject, own=False)
        except TimeoutError:
            said = f"has not sent all of what it has in {self._patience * _TIMES:g} s: a larger --timeout waits longer"
            return ClusterFacts(name=file.name, state="connecting", error=f"etcd at {file.endpoints[0]} {said}")
        except ClusterMeshError as e:
            return ClusterFacts(name=file.name, state="connecting", error=sentence(e))
        return ClusterFacts(name=file.name, state="fresh")

    async def _own_hops(self, facts: Facts) -> list[Hop]:
        name, found = self._own.name, list[Hop]()
        try:
            async with self._own_etcd() as place:
                found += await _sightings(place, "etcd", _keys(facts, name, cached=False, own=True))
                for peer in self._peers:
                    if await place.client.get(keys.cluster_config_key(peer)) is not None:  # a mirror is at work
                        copies = place._replace(cluster=Cluster(name=peer, id=0))
                        found += await _sightings(copies, "cache", _keys(facts, peer, cached=True, own=False))
        except ClusterMeshError as e:
            found.append(Hop(hop="etcd", cluster=name, what=self._own.endpoint, present=False, error=sentence(e)))
        return found

    async def _peer_hops(self, file: PeerFile, facts: Facts) -> list[Hop]:
        try:
            async with self._turn, self._etcd_of(file) as place:
                return await _sightings(place, "peer", _keys(facts, file.name, place.config.cached, own=False))
        except ClusterMeshError as e:
            return [Hop(hop="peer", cluster=file.name, what=file.endpoints[0], present=False, error=sentence(e))]

    @asynccontextmanager
    async def _own_etcd(self) -> AsyncIterator[_Place]:
        own = self._own
        tls = Tls(own.ca, own.certificate("local"), own.key("local"))
        async with EtcdClient([own.endpoint], tls, timeout=self._patience) as client:
            yield _Place(client, own.cluster, ClusterConfig(id=own.id))

    @asynccontextmanager
    async def _etcd_of(self, file: PeerFile) -> AsyncIterator[_Place]:
        async with client_of(file, self._patience) as client:
            if (found := await client.get(keys.cluster_config_key(file.name))) is None:
                raise Unavailable(
                    f"there is no {keys.cluster_config_key(file.name).decode()}: its API server has not run"
                )
            config = cluster_config.decode(found.value)
            cluster = Cluster(name=file.name, id=config.id, max_clusters=self._own.max_clusters)
            yield _Place(client, cluster, config, min(file.limits.listing_bytes, _MOST_BYTES))


def in_order(hops: Collection[Hop], own: str) -> tuple[Hop, ...]:
    """As it travels; of what is not there only what is missed, as where another hop of that cluster has it."""
    there = {(hop.hop, hop.cluster) for hop in hops if hop.present}
    having = {cluster for _, cluster in there} or {hop.cluster for hop in hops}
    missed = {own, *having}
    shown = [
        hop
        for hop in hops
        if hop.present or hop.error or (hop.cluster in missed and (hop.hop, hop.cluster) not in there)
    ]
    return tuple(sorted(shown, key=lambda hop: (_ORDER.index(hop.hop), hop.cluster != own, hop.cluster)))


def _judged(state: MeshState, subject: Subject, facts: Facts) -> Facts:
    held = Held(state)
    match subject:
        case OfService(namespace, name):
            return replace(facts, services=(held.service(namespace, name),))
        case OfAddress(address):
            return replace(facts, address=held.address(address))
        case OfIdentity(number):
            return replace(facts, identities=(held.identity(number),))
        case OfLabels(labels):
            return replace(facts, identities=tuple(map(held.identity, held.with_labels(labels))))


async def _fill(state: MeshState, place: _Place, subject: Subject, *, own: bool) -> None:
    """Everything that `subject` is judged by, one kind after the other as an agent takes them in."""
    for kind in _JUDGED_BY[type(subject)]:
        resource = RESOURCES[kind]
        if resource.of_own if own else resource.of_peers:
            await _fill_table(state, place, resource, _narrowed(resource, place, subject, own))


def _narrowed(resource: Resource, place: _Place, subject: Subject, own: bool) -> bytes:
    """Where the entries are that matter: of a peer's services one, of our own those at the same address, too."""
    whole = resource.prefix(place.cluster.name, place.config.cached)
    if isinstance(subject, OfService) and resource.name == SERVICES and not own:
        return whole + f"{subject.namespace}/{subject.name}".encode()
    if isinstance(subject, OfAddress) and resource.name == ENDPOINTS:
        return whole + keys.endpoint_key(subject.address).rpartition(b"/")[2]
    return (
        whole + str(subject.number).encode()
        if isinstance(subject, OfIdentity) and resource.name == IDENTITIES
        else whole
    )


async def _fill_table(state: MeshState, place: _Place, resource: Resource, prefix: bytes) -> None:
    cluster = place.cluster
    async with aclosing(place.client.pages(prefix, most_bytes=place.most_bytes)) as pages:
        async for page, _ in pages:
            for kv in page.kvs:
                try:
                    name, value = resource.name_of(kv.key), resource.decode(kv.key, kv.value, cluster)
                except Invalid as e:
                    state.refuse(cluster.name, kv.key.decode(errors="replace"), str(e))
                else:
                    state.put(cluster.name, resource.name, name, value)


# -- what was written where, and when ----------------------------------------------------------------------------------


def _keys(facts: Facts, cluster: str, cached: bool, own: bool) -> list[tuple[bytes, str]]:
    """The keys that the subject, and the services it is part of, have in the etcd of `cluster`, each with its kind."""
    services = [*facts.services, *(facts.address.services if facts.address else ())]
    found = list[tuple[bytes, str]]()
    for each in services:
        found += [(keys.local_service_key(each.namespace, each.name), LOCAL_SERVICES)] if own else []
        found.append((keys.service_key(cluster, each.namespace, each.name), SERVICES))
    if facts.address is not None:
        found.append((keys.state_prefix("ip", cluster) + facts.address.address.encode(), ENDPOINTS))
    for identity in facts.identities:
        if not identity.reserved and cluster in (identity.clusters or (cluster,)):
            found.append((keys.identity_key(identity.number), IDENTITIES))
    return [(keys.cache_key(key, cluster) if cached else key, kind) for key, kind in found]


async def _sightings(place: _Place, hop: str, wanted: Iterable[tuple[bytes, str]]) -> list[Hop]:
    return [each for key, kind in wanted for each in await _sight(place, hop, key, kind)]


async def _sight(place: _Place, hop: str, key: bytes, kind: str) -> list[Hop]:
    cluster, what = place.cluster.name, key.decode()
    if (kv := await place.client.get(key)) is None:
        if kind == LOCAL_SERVICES:  # as usual: what peers are told says it all
            return []
        return [Hop(hop=hop, cluster=cluster, what=what, present=False)]
    observed, seen = None, None
    if kind in (SERVICES, LOCAL_SERVICES) and hop != "cache":
        observed, seen = await _stamped(place, kv, kind)
    says = f"{_summary(place.cluster, kv, kind)}, revision {kv.mod_revision}"
    found = Hop(hop=hop, cluster=cluster, what=what, says=says, seen=seen or await _beaten(place.client, kv))
    source = [] if observed is None else [Hop(hop="source", cluster=cluster, what=_name(key, kind), seen=observed)]
    return [*source, found]


async def _stamped(place: _Place, kv: KeyValue, kind: str) -> tuple[Seen | None, Seen | None]:
    """When the source saw the service, and when it was written; nothing where that is not known any more."""
    try:
        stamps = await place.client.get(keys.CHANGED_SERVICES, revision=kv.mod_revision)
        if stamps is None or stamps.mod_revision != kv.mod_revision:
            return None, None
        known = RESOURCES[STAMPS].decode(stamps.key, stamps.value, place.cluster)
        stamp = known.get(RESOURCES[kind].name_of(kv.key))
    except ClusterMeshError:  # compacted, or a Cilium's
        return None, None
    return (None, None) if stamp is None else (Seen(at=stamp.observed / 1e9), Seen(at=stamp.published / 1e9))


async def _beaten(client: EtcdClient, kv: KeyValue) -> Seen:
    """Between which heartbeats it was written, as far as that is known."""
    try:
        before = await client.get(keys.HEARTBEAT, revision=kv.mod_revision)
        if before is not None:
            return Seen(after=float(parse_time(before.value.decode("ascii", "replace"))))
    except ClusterMeshError:
        pass
    try:
        now = await client.get(keys.HEARTBEAT)
        if now is not None and now.mod_revision >= kv.mod_revision:
            return Seen(by=float(parse_time(now.value.decode("ascii", "replace"))))
    except ClusterMeshError:
        pass
    return Seen()


def _name(key: bytes, kind: str) -> str:
    return "/".join(map(str, RESOURCES[kind].name_of(key)))  # type: ignore[arg-type]  # of services only


def _summary(cluster: Cluster, kv: KeyValue, kind: str) -> str:
    """What the value says, in a word or two. Copies are taken as they are: nobody said the cluster's id."""
    try:
        value = RESOURCES[kind].decode(kv.key, kv.value, cluster)
    except DecodeError as e:
        return f"{len(kv.value)} bytes" if not cluster.id else f"cannot be understood: {e}"
    return ", ".join(_words(value))


def _words(value: Any) -> Iterator[str]:
    match value:
        case LocalService():
            yield "global" if value.is_global else "not global"
            yield f"affinity {value.affinity}"
            yield f"{len(value.service.backends)} backends"
        case Service():
            yield f"{len(value.backends)} backends"
        case Endpoint():
            yield f"identity {value.identity}"
        case Identity():
            yield from (f"{label.source}:{label.key}={label.value}" for label in value.labels)
