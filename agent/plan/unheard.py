"""What the kernel holds of clusters that have said nothing yet, as the services they would say. Pure.

An agent that begins without what was kept of a cluster would else take its backends out of every service it plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    PROTOCOL_NUMBERS,
    SLOTS_PER_BLOCK,
    BackendValue,
    GroupsKey,
    LbGroup,
    ServiceValue,
    SlotsKey,
    pack,
    pack_service_key,
    unpack,
    unpack_each,
)
from agent.plan.services import ServiceTrackers
from clustermesh.address import Address
from clustermesh.mesh.resolve import Scope
from clustermesh.model import LocalService, Port, Service

_NUMBER_SIZE = 4


def services_found(kernel: ServiceTrackers, local: LocalService) -> list[Service]:
    """One for each other cluster that has backends behind the frontends of `local`."""
    own = local.service
    found: dict[int, dict[Address, dict[str, Port]]] = {}
    for address, ports in own.frontends.items():
        for name, port in ports.items():
            if (number := PROTOCOL_NUMBERS.get(port.protocol)) is None:
                continue
            for each in _behind(kernel, pack_service_key(address, port.port, number, Scope.ANY)):
                at = found.setdefault(each.cluster_id, {}).setdefault(each.address, {})
                at[name] = Port(protocol=port.protocol, port=each.port)
    found.pop(own.cluster_id, None)
    return [
        Service(cluster="", cluster_id=cluster_id, namespace=own.namespace, name=own.name, backends=backends)
        for cluster_id, backends in found.items()
    ]


def _behind(kernel: ServiceTrackers, key: bytes) -> Iterator[BackendValue]:
    """The backends of one frontend."""
    if (head := kernel.services.actual.get(key)) is None:
        return
    service = unpack(ServiceValue, head)
    for index in range(service.groups):
        for number in _numbers(kernel, service.service_id, index):
            if (value := kernel.backends.actual.get(number)) is not None:
                yield unpack(BackendValue, value)


def _numbers(kernel: ServiceTrackers, service_id: int, index: int) -> Iterator[bytes]:
    """Those of one group, as the keys of its backends. The last block may be filled up with one of them."""
    groups = kernel.groups.actual.get(pack(GroupsKey(service_id, index // GROUPS_PER_BLOCK)))
    slots = unpack_each(LbGroup, groups)[index % GROUPS_PER_BLOCK].slots if groups else 0
    for block in range(-(-slots // SLOTS_PER_BLOCK)):
        ids = kernel.slots.actual.get(pack(SlotsKey(service_id, index, block)), b"")
        count = min(slots - block * SLOTS_PER_BLOCK, SLOTS_PER_BLOCK)
        for at in range(0, count * _NUMBER_SIZE, _NUMBER_SIZE):
            yield ids[at : at + _NUMBER_SIZE]
