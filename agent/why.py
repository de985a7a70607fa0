"""What this node knows of a service, an address or an identity, kernel included, for `clustermesh why`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from msgspec.structs import replace

from agent.bpf.layouts import (
    NO_ADDRESS,
    PROTOCOL_NUMBERS,
    BackendValue,
    IpcacheValue,
    ServiceKey,
    pack,
    pack_cidr,
    unpack,
)
from agent.bpf.programs import map_info
from agent.bpf.syscalls import map_lookup
from agent.bpf.walk import groups_behind
from agent.domains.domains import Domains
from agent.propagation import Propagation, Times
from agent.targets.maps import MapTarget
from clustermesh.address import BITS, Address, Prefix, masked, parse, prefix_text, text
from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.line import Line
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.state import MeshState
from clustermesh.model import Protocol
from clustermesh.reconcile import Tracker
from clustermesh.why.facts import (
    AddressCase,
    ClusterFacts,
    EntryFacts,
    Facts,
    FrontendFacts,
    Hop,
    IdentityFacts,
    Seen,
    ServiceCase,
)
from clustermesh.why.held import Held
from clustermesh.why.subject import OfAddress, OfIdentity, OfLabels, OfService, Subject
from clustermesh.wire.kinds import ENDPOINTS, IDENTITIES, LOCAL_SERVICES, SERVICES
from clustermesh.wire.numbering import identity_range

_PATIENCE = 1.0  # seconds for the device; without its answer nothing is said of handshakes


class Looker:
    """Looks, and changes nothing."""

    def __init__(self, node: str, state: MeshState, domains: Domains, propagation: Propagation) -> None:
        self._node, self._state, self._domains, self._propagation = node, state, domains, propagation
        self._line = Line(_PATIENCE)

    async def look(self, subject: Subject, readers: list[ClusterReader], waiting: str) -> Facts:
        """Everything this node knows. Raises Unavailable where the kernel cannot be asked."""
        shaken = await self._shaken()
        here = self._domains.services.here
        held = Held(self._state, lambda cluster, node: self._way(cluster, node, shaken), here)
        facts = Facts(
            own=self._state.own,
            node=self._node,
            waiting=waiting,
            clusters=tuple(map(self._cluster, readers)),
        )
        match subject:
            case OfService(namespace, name):
                cases = (self._service(held.service(namespace, name), _ids(readers)),)
                return replace(facts, services=cases, hops=tuple(self._service_hops(cases[0])))
            case OfAddress(address):
                found = self._address(held.address(address), address, _ids(readers))
                return replace(facts, address=found, hops=tuple(self._address_hops(found, address)))
            case OfIdentity(number):
                numbers = [number]
            case OfLabels(labels):
                numbers = held.with_labels(labels)
        identities = tuple(self._identity(held.identity(each), readers) for each in numbers)
        return replace(facts, identities=identities, hops=tuple(self._identity_hops(identities)))

    def _cluster(self, reader: ClusterReader) -> ClusterFacts:
        session = reader.session
        return ClusterFacts(
            name=reader.name,
            own=reader.name == self._state.own,
            state=str(session.state),
            since=session.since,
            error=session.error or "; ".join(f"{what}: {why}" for what, why in reader.brain.behind.items()),
            withheld=reader.name in self._state.withheld,
        )

    async def _shaken(self) -> Mapping[str, float]:
        """The last handshake by key, as far as the device says."""
        if not self._domains.tunnels.underlay.current:
            return {}
        try:
            peers = await self._line.call(self._domains.node.device.peers())
        except ClusterMeshError:
            return {}
        return {key: float(peer.last_handshake) for key, peer in peers.items()}

    def _way(self, cluster: str, name: str, shaken: Mapping[str, float]) -> tuple[str, float | None]:
        node = self._state.node(cluster, name)
        problem = self._domains.network.planner.problems.get(f"{cluster}/{name}", "")
        return problem, None if node is None else shaken.get(node.wireguard_public_key)

    # -- the kernel ----------------------------------------------------------------------------------------------------

    def _service(self, case: ServiceCase, clusters: Mapping[int, str]) -> ServiceCase:
        problem = self._domains.services.problems.get((case.namespace, case.name))
        return replace(
            case,
            frontends=tuple(self._frontend(each, clusters) for each in case.frontends),
            problem="" if problem is None else problem.sentence,
        )

    def _frontend(self, at: FrontendFacts, clusters: Mapping[int, str]) -> FrontendFacts:
        place, _, protocol = at.at.partition("/")
        address, _, port = place.rpartition(":")
        key = ServiceKey(parse(address), int(port), PROTOCOL_NUMBERS[Protocol(protocol)])
        errors = (tracker.error for tracker in self._domains.services.tables if tracker.error)
        kernel = tuple(
            f"{text(each.address)}:{each.port} {clusters.get(each.cluster_id, each.cluster_id)}"
            for each in self._answering(key)
        )
        return replace(at, kernel=kernel, error=next(errors, ""))

    def _answering(self, key: ServiceKey) -> Iterator[BackendValue]:
        """The backends that a look-up of `key` may end at."""
        tables = self._domains.services.tables
        groups, slots, backends = (partial(_lookup, each) for each in (tables.groups, tables.slots, tables.backends))
        if (head := _lookup(tables.services, pack(key))) is not None:
            for _, numbers in groups_behind(head, groups, slots):
                yield from (unpack(BackendValue, found) for each in numbers if (found := backends(each)) is not None)

    def _address(self, case: AddressCase, address: Address, clusters: Mapping[int, str]) -> AddressCase:
        pod = self._domains.attached_pods.at(address)
        return replace(
            case,
            services=tuple(self._service(each, clusters) for each in case.services),
            kernel=self._entry(address),
            asked_kernel=True,
            attached="" if pod is None else f"{pod.namespace}/{pod.name}",
        )

    def _entry(self, address: Address) -> EntryFacts | None:
        """What a look-up of the ipcache finds: the address itself, or the longest CIDR around it."""
        if (found := _lookup(self._domains.addresses.ipcache, address)) is not None:
            return _entry(text(address), found)
        held = self._domains.network.cidrs.actual
        for length in range(BITS, -1, -1):
            prefix = Prefix(masked(address, length), length)
            if (value := held.get(pack_cidr(prefix))) is not None:
                return _entry(prefix_text(prefix), value)
        return None

    def _identity(self, found: IdentityFacts, readers: list[ClusterReader]) -> IdentityFacts:
        entries = {each: self._entry(parse(each)) for each in found.addresses}
        kernel = [each for each, entry in entries.items() if entry is not None and entry.identity == found.number]
        owner = (each.name for each in readers if _allots(each, found.number))
        return replace(found, kernel=tuple(kernel), owner=next(owner, ""))

    # -- when ----------------------------------------------------------------------------------------------------------

    def _service_hops(self, case: ServiceCase) -> Iterator[Hop]:
        applied = list[int]()
        for said in case.said:
            kinds = [LOCAL_SERVICES, SERVICES] if said.cluster == self._state.own else [SERVICES]
            known = (self._propagation.times(said.cluster, kind, (case.namespace, case.name)) for kind in kinds)
            times = next(filter(None, known), None)
            says = f"{len(said.backends)} backends{f', {said.refused}' if said.refused else ''}"
            if times is not None and times.observed:
                yield Hop(hop="source", cluster=said.cluster, what=case.shown, seen=Seen(at=times.observed / 1e9))
            yield self._hop(said.cluster, case.shown, says, times)
            applied.append(times.applied if times else 0)
        for at in case.frontends:
            says = ", ".join(at.kernel or ()) or "nothing"
            yield Hop(
                hop="kernel",
                cluster=self._state.own,
                what=f"lb_services {at.at}",
                says=says,
                present=bool(at.kernel),
                seen=Seen(at=max(applied) / 1e9) if all(applied) else Seen(),  # else the last may be one not known
            )

    def _address_hops(self, case: AddressCase, address: Address) -> Iterator[Hop]:
        for endpoint in case.endpoints:
            times = self._propagation.times(endpoint.cluster, ENDPOINTS, address)
            yield self._hop(endpoint.cluster, case.address, f"identity {endpoint.identity}", times)
        entry = case.kernel
        says = "" if entry is None else f"identity {entry.identity} at {entry.node or 'this node'}"
        what = f"ipcache {case.address if entry is None else entry.prefix}"
        yield Hop(hop="kernel", cluster=self._state.own, what=what, says=says, present=entry is not None)

    def _identity_hops(self, identities: tuple[IdentityFacts, ...]) -> Iterator[Hop]:
        for found in identities:
            for cluster in found.clusters:
                times = self._propagation.times(cluster, IDENTITIES, found.number)
                yield self._hop(cluster, str(found.number), ", ".join(found.labels), times)

    def _hop(self, cluster: str, what: str, says: str, times: Times | None) -> Hop:
        seen = Seen() if times is None else Seen(at=times.heard / 1e9)
        return Hop(hop="agent", cluster=cluster, what=what, says=says, seen=seen)


def _lookup(tracker: Tracker[bytes, bytes], key: bytes) -> bytes | None:
    """What the kernel's map has now."""
    target = tracker.target
    if not isinstance(target, MapTarget):
        return tracker.actual.get(key)
    try:
        return map_lookup(target.fd, key, map_info(target.fd).value_size)
    except OSError as e:
        raise Unavailable(f"cannot read the map {target.name}: {e}") from e


def _entry(prefix: str, value: bytes) -> EntryFacts:
    found = unpack(IpcacheValue, value)
    node = "" if found.tunnel_endpoint == NO_ADDRESS else text(found.tunnel_endpoint)
    return EntryFacts(prefix=prefix, identity=found.identity, node=node, encrypted=found.key == 255)


def _ids(readers: list[ClusterReader]) -> dict[int, str]:
    return {reader.config.id: reader.name for reader in readers if reader.config is not None}


def _allots(reader: ClusterReader, number: int) -> bool:
    most = reader.brain.terms.max_clusters
    return reader.config is not None and number in identity_range(reader.config.id, most)
