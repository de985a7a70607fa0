"""What the kernel holds of clusters that have said nothing yet, as the services they would say. Pure.

An agent that begins without what was kept of a cluster would else take its backends out of every service it plans, and
one that begins with what is older than the kernel would put back backends that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from agent.bpf.layouts import PROTOCOL_NUMBERS, BackendValue, as_active, pack_backends, pack_service_key, unpack
from agent.bpf.walk import groups_behind
from agent.plan.services import ServiceTrackers
from clustermesh.address import Address, is_ipv4
from clustermesh.deltas import Deltas
from clustermesh.mesh.answering import NOWHERE, Here
from clustermesh.mesh.resolve import Scope, ServiceEntry
from clustermesh.model import BackendDetail, LocalService, Port, Service

Kernel = ServiceTrackers[Deltas[bytes, bytes]]


def services_found(kernel: Kernel, local: LocalService, here: Here) -> dict[int, Service]:
    """One for each cluster that has backends behind the frontends of `local`, by its id."""
    own = local.service
    found: dict[int, dict[Address, dict[str, Port]]] = {}
    for address, name, port in _called_at(local, here):
        for each in _behind(kernel, pack_service_key(address, port.port, PROTOCOL_NUMBERS[port.protocol], Scope.ANY)):
            at = found.setdefault(each.cluster_id, {}).setdefault(each.address, {})
            at[name] = Port(protocol=port.protocol, port=each.port)
    return {cluster_id: as_found(own, cluster_id, backends) for cluster_id, backends in found.items()}


def as_found(own: Service, cluster_id: int, backends: Mapping[Address, Mapping[str, Port]]) -> Service:
    """The service that the own cluster knows as `own`, as another one has it in the kernel."""
    return Service(cluster="", cluster_id=cluster_id, namespace=own.namespace, name=own.name, backends=backends)


def details_found(kernel: Kernel, local: LocalService, here: Here) -> dict[Address, BackendDetail]:
    """Of backends of which nobody has said anything yet: those that a policy Local has given are on this node."""
    found = dict[Address, BackendDetail]()
    for address, _, port in _called_at(local, here):
        for scope in Scope.ANY, Scope.EXTERNAL:
            number = PROTOCOL_NUMBERS[port.protocol]
            only_here = local.local_only if address in local.service.frontends else scope is Scope.EXTERNAL
            for each in _behind(kernel, pack_service_key(address, port.port, number, scope)) if only_here else ():
                if each.address not in local.details:
                    found[each.address] = BackendDetail(node=here.name)
    return found


def has_any(kernel: Kernel, local: LocalService) -> bool:
    """Whether the kernel has a frontend of `local`."""
    return any(
        pack_service_key(address, port.port, PROTOCOL_NUMBERS[port.protocol], Scope.ANY) in kernel.services.actual
        for address, _, port in _called_at(local, NOWHERE)
    )


def _called_at(local: LocalService, here: Here) -> Iterator[tuple[Address, str, Port]]:
    """Where those inside call it, by the names of its ports."""
    frontends, outside = local.service.frontends, local.outside
    families = {is_ipv4(address): ports for address, ports in frontends.items()}
    ways = [*frontends.items()]
    ways += [(ip, families.get(is_ipv4(ip), {})) for ip in (*outside.external_ips, *outside.load_balancer_ips)]
    ways += [(ip, outside.node_ports) for ip in here.addresses if is_ipv4(ip) in families]
    for address, ports in ways:
        for name, port in ports.items():
            if port.protocol in PROTOCOL_NUMBERS:
                yield address, name, port


def doubtful(kernel: Kernel, entries: Iterable[ServiceEntry], clusters: Set[int]) -> set[int]:
    """Those of `clusters` that have other backends in `entries` than the kernel has, where it has the frontend."""
    found = set[int]()
    for entry in entries:
        at, number = entry.frontend, PROTOCOL_NUMBERS[entry.frontend.protocol]
        key = pack_service_key(at.address, at.port, number, at.scope)
        if key in kernel.services.actual:
            said = [value for each in entry.groups for value in pack_backends(each.alike, number, each.cluster_id)]
            held = _values(kernel, key)
            if said != held:  # the order is one and the same, as long as they are; active are nearly all
                differ = {*said} ^ {*map(as_active, held)}
                found.update(unpack(BackendValue, value).cluster_id for value in differ)
    return found & clusters


def _behind(kernel: Kernel, key: bytes) -> Iterator[BackendValue]:
    """The backends of one frontend."""
    for value in _values(kernel, key):
        yield unpack(BackendValue, value)


def _values(kernel: Kernel, key: bytes) -> list[bytes]:
    """A list at a time: all of a large mesh are gone over at the start."""
    if (head := kernel.services.actual.get(key)) is None:
        return []
    values, backend = list[bytes](), kernel.backends.actual.get
    for _, numbers in groups_behind(head, kernel.groups.actual.get, kernel.slots.actual.get):
        values += filter(None, map(backend, numbers))
    return values
