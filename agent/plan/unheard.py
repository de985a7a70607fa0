"""What the kernel holds of clusters that have said nothing yet, as the services they would say. Pure.

An agent that begins without what was kept of a cluster would else take its backends out of every service it plans, and
one that begins with what is older than the kernel would put back backends that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    PROTOCOL_NUMBERS,
    SLOTS_PER_BLOCK,
    BackendValue,
    GroupsKey,
    LbGroup,
    Number,
    ServiceValue,
    SlotsKey,
    pack_backends,
    pack_service_key,
    packer,
    unpack,
)
from agent.plan.services import ServiceTrackers
from clustermesh.address import Address
from clustermesh.deltas import Deltas
from clustermesh.mesh.resolve import Scope, ServiceEntry
from clustermesh.model import LocalService, Port, Service

Kernel = ServiceTrackers[Deltas[bytes, bytes]]
_NUMBER, _GROUP, _GROUPS_KEY, _SLOTS_KEY = map(packer, (Number, LbGroup, GroupsKey, SlotsKey))
_NUMBER_SIZE, _GROUP_SIZE = len(_NUMBER(0)), len(_GROUP(0, 0, 0, 0))


def services_found(kernel: Kernel, local: LocalService) -> dict[int, Service]:
    """One for each cluster that has backends behind the frontends of `local`, by its id."""
    own = local.service
    found: dict[int, dict[Address, dict[str, Port]]] = {}
    for address, ports in own.frontends.items():
        for name, port in ports.items():
            if (number := PROTOCOL_NUMBERS.get(port.protocol)) is None:
                continue
            for each in _behind(kernel, pack_service_key(address, port.port, number, Scope.ANY)):
                at = found.setdefault(each.cluster_id, {}).setdefault(each.address, {})
                at[name] = Port(protocol=port.protocol, port=each.port)
    return {cluster_id: as_found(own, cluster_id, backends) for cluster_id, backends in found.items()}


def as_found(own: Service, cluster_id: int, backends: Mapping[Address, Mapping[str, Port]]) -> Service:
    """The service that the own cluster knows as `own`, as another one has it in the kernel."""
    return Service(cluster="", cluster_id=cluster_id, namespace=own.namespace, name=own.name, backends=backends)


def has_any(kernel: Kernel, local: LocalService) -> bool:
    """Whether the kernel has a frontend of `local`."""
    return any(
        pack_service_key(address, port.port, PROTOCOL_NUMBERS[port.protocol], Scope.ANY) in kernel.services.actual
        for address, ports in local.service.frontends.items()
        for port in ports.values()
        if port.protocol in PROTOCOL_NUMBERS
    )


def doubtful(kernel: Kernel, entries: Iterable[ServiceEntry], clusters: Set[int]) -> set[int]:
    """Those of `clusters` that have other backends in `entries` than the kernel has, where it has the frontend."""
    found = set[int]()
    for entry in entries:
        at, number = entry.frontend, PROTOCOL_NUMBERS[entry.frontend.protocol]
        key = pack_service_key(at.address, at.port, number, at.scope)
        if key in kernel.services.actual:
            said = [value for each in entry.groups for value in pack_backends(each.alike, number, each.cluster_id)]
            if said != (held := _values(kernel, key)):  # the order is one and the same, as long as they are
                found.update(unpack(BackendValue, value).cluster_id for value in {*said} ^ {*held})
    return found & clusters


def _behind(kernel: Kernel, key: bytes) -> Iterator[BackendValue]:
    """The backends of one frontend."""
    for value in _values(kernel, key):
        yield unpack(BackendValue, value)


def _values(kernel: Kernel, key: bytes) -> list[bytes]:
    """As they are in the map. A list at a time: all of a large mesh are gone over at the start."""
    if (head := kernel.services.actual.get(key)) is None:
        return []
    service, values = unpack(ServiceValue, head), list[bytes]()
    for index in range(service.groups):
        values += filter(None, map(kernel.backends.actual.get, _numbers(kernel, service.service_id, index)))
    return values


def _numbers(kernel: Kernel, service_id: int, index: int) -> list[bytes]:
    """Those of one group, as the keys of its backends. The last block may be filled up with one of them."""
    groups = kernel.groups.actual.get(_GROUPS_KEY(service_id, index // GROUPS_PER_BLOCK))
    at = index % GROUPS_PER_BLOCK * _GROUP_SIZE
    slots = unpack(LbGroup, groups[at : at + _GROUP_SIZE]).slots if groups else 0
    numbers = list[bytes]()
    for block in range(-(-slots // SLOTS_PER_BLOCK)):
        ids = kernel.slots.actual.get(_SLOTS_KEY(service_id, index, block), b"")
        count = min(slots - block * SLOTS_PER_BLOCK, SLOTS_PER_BLOCK)
        numbers += [ids[at : at + _NUMBER_SIZE] for at in range(0, count * _NUMBER_SIZE, _NUMBER_SIZE)]
    return numbers
