"""Which endpoints and backends of a cluster are used: those where it holds the address. What is decided is kept, and
decided again when somebody says that an address changed hands. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from clustermesh.address import Address, Prefix, text
from clustermesh.mesh.address_index import AddressBook, AddressIndex
from clustermesh.mesh.holdings import Holdings
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.mesh.room import Room
from clustermesh.mesh.view import ServiceName, View
from clustermesh.model import Endpoint, Port, Service
from clustermesh.wire.numbering import REMOTE_NODE

_SHOWN: Final = 5
_FOREIGN: Final = Refusal(Reason.NOT_HELD, "is no address of a node of its cluster, nor in a pod CIDR of one")
_NO_POD: Final = Refusal(
    Reason.NOT_HELD, "is the address of a node: only the node itself, or what shares its network, can be there"
)


class Rulings:
    """What was decided about one cluster's entries, and what finds those that a moved prefix concerns."""

    def __init__(self, cluster: str, view: View, holdings: Holdings) -> None:
        self.refusals = Refusals()
        self.room = Room(self.refusals, holdings.together)
        self._cluster, self._view, self._holdings = cluster, view, holdings
        self._trimmed: dict[ServiceName, Service] = {}  # without the backends that are not its to name
        self._endpoints = AddressIndex()
        self._backends: AddressBook[ServiceName] = AddressBook()

    def take_endpoint(self, address: Address, before: Endpoint | None, endpoint: Endpoint | None) -> None:
        """The view has `endpoint` in the place of `before`."""
        if before is None:
            self._endpoints.add(address)
        elif endpoint is None:
            self._endpoints.discard(address)
        refusal = None if endpoint is None else self._judge_endpoint(address, endpoint)
        self.refusals.set("endpoints", address, refusal)

    def take_service(self, name: ServiceName, before: Service | None, service: Service | None) -> None:
        """The view has `service` in the place of `before`."""
        had, has = (set() if each is None else each.backends.keys() for each in (before, service))
        for address in had - has:
            self._backends.discard(address, name)
        for address in has - had:
            self._backends.add(address, name)
        self._rule_service(name, service)

    def rule(self, name: Address | ServiceName) -> None:
        """Decide on the endpoint, or the service, once more."""
        if isinstance(name, tuple):
            self._rule_service(name, self._view.services.get(name))
        elif (endpoint := self._view.endpoints.get(name)) is not None:
            self.refusals.set("endpoints", name, self._judge_endpoint(name, endpoint))

    def forget(self, kind: str) -> None:
        """The view has another, empty table of `kind`."""
        self.refusals.clear(kind)
        self.room.empty(kind)
        if kind == "endpoints":
            self._endpoints = AddressIndex()
        elif kind == "services":
            self._trimmed, self._backends = {}, AddressBook()

    def all_of(self, kind: str) -> Iterator[Address | ServiceName]:
        """The names of all that is judged of `kind`."""
        yield from self._endpoints.inside() if kind == "endpoints" else list(self._view.services)

    def concerned(self, prefix: Prefix) -> Iterator[Address | ServiceName]:
        """The endpoints in `prefix`, and the services that name a backend there, one for each."""
        yield from self._endpoints.inside(prefix)
        yield from self.services_in(prefix)

    def services_in(self, prefix: Prefix) -> Iterator[ServiceName]:
        """The services of a peer that name a backend in `prefix`."""
        return (name for _, name in (() if self._is_own else self._backends.inside(prefix)))

    def endpoint(self, address: Address) -> Endpoint | None:
        """The one that is used."""
        return None if address in self.refusals.of("endpoints") else self._view.endpoints.get(address)

    def service(self, name: ServiceName) -> Service:
        """As far as it is used."""
        return self._trimmed.get(name) or self._view.services[name]

    @property
    def _is_own(self) -> bool:
        return self._cluster == self._holdings.own

    def _judge_endpoint(self, address: Address, endpoint: Endpoint) -> Refusal | None:
        """Why it is not used. The own cluster's may be anywhere but at a peer's."""
        holdings, cluster = self._holdings, self._cluster
        holder = holdings.claims.owner(address)
        if cluster == holdings.own:
            taken = holder is not None and holder.cluster != cluster
            return Refusal(Reason.TAKEN, f"is at an address of {holder}") if taken else None
        if holder is None or holder.cluster != cluster:
            return _FOREIGN
        if endpoint.identity == REMOTE_NODE:
            return None
        if endpoint.host_ip != address and address in holdings.standing[holder].addresses:
            return _NO_POD
        allotted = holdings.authority(cluster).identities
        if endpoint.identity in allotted:
            return None
        whose = f"from {allotted[0]} to {allotted[-1]}, the range of" if allotted else "known to be of"
        return Refusal(Reason.IDENTITY, f"identity {endpoint.identity} is not {whose} {cluster}")

    def _rule_service(self, name: ServiceName, service: Service | None) -> None:
        """Decide which backends of a peer's service are used."""
        if self._is_own:
            return
        used, refusal = (None, None) if service is None else self._trim(service)
        self.refusals.set("services", name, refusal)
        if used is None or used is service:
            self._trimmed.pop(name, None)
        else:
            self._trimmed[name] = used

    def _trim(self, service: Service) -> tuple[Service, Refusal | None]:
        """`service` without the backends that are not its to name, itself where there are none; and why."""
        holdings, cluster = self._holdings, self._cluster
        backends, limit = service.backends, holdings.authority(cluster).limits.service_backends
        if len(backends) > limit:
            why = f"has {len(backends)} backends, and the limit is {limit}"
            return replace(service, backends={}), Refusal(Reason.LIMIT, why)
        owner = holdings.claims.owner
        foreign = {address for address in backends if (holder := owner(address)) is None or holder.cluster != cluster}
        foreign |= backends.keys() & holdings.served
        kept = {address: each for address, each in backends.items() if address not in foreign} if foreign else backends
        reachable = _without_port_zero(kept)
        if foreign:
            shown = ", ".join(text(address) for address in sorted(foreign)[:_SHOWN])
            why = f"{len(foreign)} of its backends are at no address of its cluster: {shown}"
            return replace(service, backends=reachable), Refusal(Reason.NOT_HELD, why)
        if reachable is backends:
            return service, None
        return replace(service, backends=reachable), Refusal(Reason.PORT, "some of its backends are at port 0")


def _without_port_zero(backends: Mapping[Address, Mapping[str, Port]]) -> Mapping[Address, Mapping[str, Port]]:
    """`backends` itself where there is none."""
    if all(port.port for ports in backends.values() for port in ports.values()):
        return backends
    return {address: {name: port for name, port in ports.items() if port.port} for address, ports in backends.items()}
