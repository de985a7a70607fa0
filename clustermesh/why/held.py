"""What a mesh state says about a subject: an agent's, or one filled from etcd. Pure; looks, changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from clustermesh.address import Address, contains, text
from clustermesh.mesh.answering import NOWHERE, Here
from clustermesh.mesh.refusals import Refusal
from clustermesh.mesh.resolve import Kind, Scope, resolve
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.view import View
from clustermesh.model import Endpoint, Identity, LocalService, Node, Port, Service
from clustermesh.why.facts import (
    AddressCase,
    BackendFacts,
    EndpointFacts,
    FrontendFacts,
    IdentityFacts,
    NodeFacts,
    ServiceCase,
    ServiceFacts,
)
from clustermesh.wire import keys
from clustermesh.wire.numbering import RESERVED, is_reserved

_LOOKED_AT: Final = 2_000  # refused nodes of a cluster: a person waits, and so does the agent
_SHOWN: Final = 5  # services at an address, identities with some labels, addresses of an identity
_SPELLED: Final = 200  # characters of a key that a refusal is called by

Tunnel = Callable[[str, str], tuple[str, float | None]]
"""By cluster and node: why there is no tunnel to it, and the last handshake."""


def _no_tunnel(_cluster: str, _node: str) -> tuple[str, float | None]:
    return "", None


class Held:
    """Asks `state`, as services are on the node `here`; `tunnel` knows the way to each node."""

    def __init__(self, state: MeshState, tunnel: Tunnel = _no_tunnel, here: Here = NOWHERE) -> None:
        self._state, self._tunnel, self._here = state, tunnel, here

    # -- services ------------------------------------------------------------------------------------------------------

    def service(self, namespace: str, name: str) -> ServiceCase:
        wanted, state = (namespace, name), self._state
        local = state.own_service(wanted)
        said = [] if local is None else [self._own_service(local)]
        said += [
            self._service(cluster, service)
            for cluster, view in state.views.items()
            if cluster != state.own and (service := view.services.get(wanted)) is not None
        ]
        return ServiceCase(
            namespace=namespace,
            name=name,
            said=tuple(said),
            frontends=() if local is None else tuple(self._frontends(wanted, local)),
            garbled=self._garbled(lambda cluster: _service_keys(cluster, namespace, name)),
            dropped=self._dropped("services", wanted),
        )

    def _own_service(self, local: LocalService) -> ServiceFacts:
        return ServiceFacts(
            cluster=self._state.own,
            is_global=local.is_global,
            shared=local.service.shared,
            affinity=str(local.affinity),
            frontends={text(address): _ports(ports) for address, ports in local.service.frontends.items()},
            backends=tuple(self._backends(local.service)),
        )

    def _service(self, cluster: str, service: Service) -> ServiceFacts:
        refusal = self._state.refusals(cluster).of("services").get((service.namespace, service.name))
        return ServiceFacts(
            cluster=cluster,
            shared=service.shared,
            backends=tuple(self._backends(service)),
            refused=_said(refusal),
        )

    def _backends(self, service: Service) -> Iterator[BackendFacts]:
        for address, ports in service.backends.items():
            nodes, standing = self._nodes_at(service.cluster, address)
            ours = service.cluster != self._state.own and bool(self._called_at(address))
            yield BackendFacts(address=text(address), ports=_ports(ports), nodes=nodes, standing=standing, ours=ours)

    def _frontends(self, name: tuple[str, str], local: LocalService) -> Iterator[FrontendFacts]:
        state = self._state
        clusters = {local.service.cluster_id: state.own}
        clusters |= {s.cluster_id: c for c, view in state.views.items() if (s := view.services.get(name)) is not None}
        for entry in resolve(local, state.remote_services(name), self._here):
            at = entry.frontend
            if at.scope is Scope.EXTERNAL:  # told of those inside
                continue
            own_address = entry.kind is Kind.CLUSTER_IP
            claimants = sorted({name, *self._called_at(at.address, f"{at.port}/{at.protocol}")})
            yield FrontendFacts(
                at=f"{text(at.address)}:{at.port}/{at.protocol}",
                wanted=tuple(
                    f"{text(each.address)}:{each.port} {clusters.get(group.cluster_id, group.cluster_id)}"
                    for group in entry.groups
                    for each in group.backends
                ),
                rivals=tuple("/".join(each) for each in claimants) if len(claimants) > 1 else (),
                left_out=state.holdings.lives_at(at.address) if own_address else "",
            )

    def _called_at(self, address: Address, port: str = "") -> set[tuple[str, str]]:
        """The own services that have a frontend there."""
        found = set()
        for name in self._state.services_at(address):
            local = self._state.own_service(name)
            ports = None if local is None else local.service.frontends.get(address)
            if ports is not None and (not port or port in _ports(ports).values()):
                found.add(name)
        return found

    # -- addresses -----------------------------------------------------------------------------------------------------

    def address(self, address: Address) -> AddressCase:
        state, views = self._state, self._state.views
        own = {name: state.own_service(name) for name in views[state.own].own_names()}
        behind = {name for name, local in own.items() if local is not None and address in local.service.backends}
        names = state.services_at(address) | behind
        nodes = [node for cluster in views for node in self._claimants(cluster, address)]
        return AddressCase(
            address=text(address),
            endpoints=tuple(
                self._endpoint(cluster, address, endpoint)
                for cluster, view in views.items()
                if (endpoint := view.endpoints.get(address)) is not None
            ),
            at=tuple(facts for node, facts in nodes if address in _addresses(node)),
            around=tuple(facts for node, facts in nodes if address not in _addresses(node)),
            services=tuple(self.service(*name) for name in sorted(names)[:_SHOWN]),
            lifeline=state.holdings.lives_at(address) if state.holdings.claims.owner(address) is None else "",
            garbled=self._garbled(lambda cluster: _endpoint_keys(cluster, address)),
            dropped=self._dropped("endpoints", address),
        )

    def _endpoint(self, cluster: str, address: Address, endpoint: Endpoint) -> EndpointFacts:
        nodes, standing = self._nodes_at(cluster, address)
        return EndpointFacts(
            cluster=cluster,
            identity=endpoint.identity,
            labels=self._labels(endpoint.identity),
            pod=f"{endpoint.namespace}/{endpoint.pod_name}" if endpoint.pod_name else "",
            refused=_said(self._state.refusals(cluster).of("endpoints").get(address)),
            nodes=nodes,
            standing=standing,
        )

    def _nodes_at(self, cluster: str, address: Address) -> tuple[tuple[NodeFacts, ...], NodeFacts | None]:
        """Those of `cluster` that want the address, if they are refused; and who has it, of any cluster."""
        holder = self._state.holdings.claims.owner(address)
        refused = tuple(facts for _, facts in self._refused(cluster, address))
        return refused, None if holder is None else self._node(holder.cluster, holder.node)

    def _claimants(self, cluster: str, address: Address) -> Iterator[tuple[Node, NodeFacts]]:
        holder = self._state.holdings.claims.owner(address)
        if holder is not None and holder.cluster == cluster and (node := self._state.node(*holder)) is not None:
            yield node, self._node(*holder)
        yield from self._refused(cluster, address)

    def _refused(self, cluster: str, address: Address) -> Iterator[tuple[Node, NodeFacts]]:
        view = self._state.views.get(cluster, View())
        for name in islice(self._state.refusals(cluster).of("nodes"), _LOOKED_AT):
            node = view.nodes.get(str(name))
            if (
                node is not None
                and self._wants(node, address)
                and (cluster, name) != self._state.holdings.claims.owner(address)
            ):
                yield node, self._node(cluster, node.name)

    def _wants(self, node: Node, address: Address) -> bool:
        return address in _addresses(node) or any(contains(cidr, address) for cidr in node.pod_cidrs)

    def _node(self, cluster: str, name: str) -> NodeFacts:
        tunnel, handshake = self._tunnel(cluster, name)
        refusal = self._state.refusals(cluster).of("nodes").get(name)
        return NodeFacts(cluster=cluster, name=name, refused=_said(refusal), tunnel=tunnel, handshake=handshake)

    # -- identities ----------------------------------------------------------------------------------------------------

    def with_labels(self, wanted: tuple[str, ...]) -> list[int]:
        """The first identities, by number, that have all of these labels."""
        found = {
            number
            for view in self._state.views.values()
            for number, identity in view.identities.items()
            if all(any(_is(label, each) for each in _spell(identity)) for label in wanted)
        }
        found |= {n for n, labels in RESERVED.items() if [f"reserved:{each.key}" for each in labels] == [*wanted]}
        return sorted(found)[:_SHOWN]

    def identity(self, number: int) -> IdentityFacts:
        views = self._state.views
        having = [
            name
            for view in views.values()
            for name, endpoint in view.endpoints.items()
            if endpoint.identity == number and isinstance(name, bytes)
        ]
        garbled = self._garbled(lambda cluster: _identity_keys(cluster, number))
        return IdentityFacts(
            number=number,
            labels=self._labels(number),
            clusters=tuple(cluster for cluster, view in views.items() if number in view.identities),
            reserved=is_reserved(number),
            endpoints=len(having),
            addresses=tuple(text(Address(each)) for each in having[:_SHOWN]),
            refused=next((f"{cluster}: {why}" for cluster, why in garbled.items()), ""),
        )

    def _labels(self, number: int) -> tuple[str, ...]:
        if is_reserved(number):
            return tuple(f"reserved:{each.key}" for each in RESERVED.get(number, ()))
        views = self._state.views.values()
        found = next((known for view in views if (known := view.identities.get(number)) is not None), None)
        return () if found is None else _spell(found)

    # -- what was not taken in -----------------------------------------------------------------------------------------

    def _garbled(self, spelled: Callable[[str], list[bytes]]) -> dict[str, str]:
        """By cluster, why what it has there could not be understood."""
        found: dict[str, str] = {}
        for cluster in self._state.views:
            refusals = self._state.refusals(cluster).of("keys")
            for key in spelled(cluster) if refusals else ():
                if (refusal := refusals.get(key.decode()[:_SPELLED])) is not None:
                    found[cluster] = refusal.why
        return found

    def _dropped(self, kind: str, name: Any) -> dict[str, str]:
        """By cluster, the limit for which there was no room for it."""
        return {
            cluster: _said(self._state.refusals(cluster).of("tables").get(kind))
            for cluster, view in self._state.views.items()
            if name not in view.table(kind) and name in self._state.names(cluster, kind)
        }


def _ports(ports: Mapping[str, Port]) -> dict[str, str]:
    return {name: f"{port.port}/{port.protocol}" for name, port in ports.items()}


def _addresses(node: Node) -> tuple[Address, ...]:
    return tuple(each.ip for each in node.addresses)


def _said(refusal: Refusal | None) -> str:
    return "" if refusal is None else f"{refusal.why} ({refusal.reason})"


def _spell(identity: Identity) -> tuple[str, ...]:
    return tuple(f"{label.source}:{label.key}={label.value}" for label in identity.labels)


def _is(wanted: str, label: str) -> bool:
    return wanted in (label, label.partition(":")[2])


def _service_keys(cluster: str, namespace: str, name: str) -> list[bytes]:
    key = keys.service_key(cluster, namespace, name)
    return [key, keys.cache_key(key, cluster), keys.local_service_key(namespace, name)]


def _endpoint_keys(cluster: str, address: Address) -> list[bytes]:
    key = keys.endpoint_key(address)
    return [key, keys.cache_key(key, cluster)]


def _identity_keys(cluster: str, number: int) -> list[bytes]:
    key = keys.identity_key(number)
    return [key, keys.cache_key(key, cluster)]
