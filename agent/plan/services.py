"""Services -> entries of the load-balancing maps: numbers for services and backends, groups and slots. Pure but for its
trackers.

A backend keeps its number as long as any frontend uses it, a frontend its number as long as it is there; numbers found
in the kernel at start are taken over, so a restart changes no entry. A number is not used again until all others were,
so that a lookup under way never meets another service's backend.

Trackers are applied backends, slots, groups, services, and deleted from in the reverse order: what is named is there
before, and goes after, what names it, so that no lookup meets a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    PROTOCOL_NUMBERS,
    SLOTS_PER_BLOCK,
    BackendKey,
    BackendValue,
    GroupsKey,
    GroupsValue,
    LbGroup,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from clustermesh.address import Address
from clustermesh.mesh.resolve import Backend, BackendState, Frontend, Group, ServiceEntry
from clustermesh.reconcile import Tracker

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Name = tuple[str, str]
_MOST: Final = 0xFFFFFFFF
_ACTIVE: Final = BackendState.ACTIVE


class ServiceTrackers(NamedTuple):
    """In the order in which they are applied."""

    backends: Tracker[BackendKey, BackendValue]
    slots: Tracker[SlotsKey, SlotsValue]
    groups: Tracker[GroupsKey, GroupsValue]
    services: Tracker[ServiceKey, ServiceValue]


_Where = tuple[Address, int, int, int]
"""What tells one backend from another in the map: address, port, protocol and the cluster's id, since of two clusters
with one address each has its own. There are many, and a plain tuple is a fifth of the cost of a named one."""


class ServicePlanner:
    """Keeps the desired entries of the load-balancing maps in step with the resolved services."""

    def __init__(self, trackers: ServiceTrackers) -> None:
        self._trackers = trackers
        self._numbers: dict[_Where, int] = {}
        self._users: dict[_Where, int] = {}  # how many slots name it
        self._next_backend = self._next_service = 1
        self._ids: dict[ServiceKey, int] = {}
        self._claims: dict[Frontend, dict[Name, ServiceEntry]] = {}
        self._frontends: dict[Name, set[Frontend]] = {}
        self._programmed: dict[Frontend, ServiceEntry] = {}

    def adopt(self) -> None:
        """Take over the numbers the kernel holds (the trackers must have been audited)."""
        held = self._trackers
        for number, entry in held.backends.actual.items():
            self._numbers[entry.address, entry.port, entry.protocol, entry.cluster_id] = number.id
        self._ids = {key: value.service_id for key, value in held.services.actual.items()}
        used = {*self._ids.values(), *(key.service_id for key in held.slots.actual)}
        self._next_backend = max(self._numbers.values(), default=0) % _MOST + 1
        self._next_service = max(used, default=0) % _MOST + 1

    def update(self, name: Name, entries: Collection[ServiceEntry]) -> None:
        """Make `entries` the whole of what service `name` has. None removes the service."""
        wanted = {entry.frontend: entry for entry in entries}
        for frontend in self._frontends.get(name, set()) - wanted.keys():
            del self._claims[frontend][name]
            self._program(frontend)
        for frontend, entry in wanted.items():
            self._claims.setdefault(frontend, {})[name] = entry
            self._program(frontend)
        if wanted:
            self._frontends[name] = set(wanted)
        else:
            self._frontends.pop(name, None)

    def conflicts(self) -> dict[Frontend, list[Name]]:
        """Frontends that more than one service claims; the first name in order is served."""
        return {frontend: sorted(names) for frontend, names in self._claims.items() if len(names) > 1}

    @property
    def frontends(self) -> Mapping[Name, set[Frontend]]:
        """The frontends each service claims."""
        return self._frontends

    @property
    def programmed(self) -> Mapping[Frontend, ServiceEntry]:
        """What each frontend is wanted to have."""
        return self._programmed

    def _program(self, frontend: Frontend) -> None:
        names = self._claims[frontend]
        wanted = names[min(names)] if names else None
        if not names:
            del self._claims[frontend]
        held = self._programmed.get(frontend)
        if wanted == held:
            return
        if wanted is None:
            del self._programmed[frontend]
        else:
            self._programmed[frontend] = wanted
        self._write(frontend, wanted, held)
        for wheres in () if held is None else _wheres(held):
            for where in wheres:
                self._release(where)

    def _write(self, frontend: Frontend, wanted: ServiceEntry | None, held: ServiceEntry | None) -> None:
        _, slots, groups, services = self._trackers
        key = ServiceKey(frontend.address, frontend.port, PROTOCOL_NUMBERS[frontend.protocol], frontend.scope)
        number = self._service_id(key)
        kept_slots = self._set_slots(number, wanted) if wanted is not None else set()
        kept_groups = self._set_groups(number, wanted) if wanted is not None else set()
        if wanted is None:
            services.remove(key)
            del self._ids[key]
        else:
            services.set(key, _head(number, wanted))
        for groups_key in _groups_keys(number, held):
            if groups_key not in kept_groups:
                groups.remove(groups_key)
        for slots_key in _slots_keys(number, held):
            if slots_key not in kept_slots:
                slots.remove(slots_key)

    def _set_slots(self, number: int, wanted: ServiceEntry) -> set[SlotsKey]:
        kept = set()
        for index, wheres in enumerate(_wheres(wanted)):
            ids = [self._acquire(where) for where in wheres]
            for block, some in enumerate(_blocks(ids, SLOTS_PER_BLOCK)):
                key = SlotsKey(number, index, block)
                # Filled up with one of its own: no gap where the group is still counted as larger than it is.
                self._trackers.slots.set(key, SlotsValue(_filled(some, SLOTS_PER_BLOCK, some[0])))
                kept.add(key)
        return kept

    def _set_groups(self, number: int, wanted: ServiceEntry) -> set[GroupsKey]:
        kept, groups, weight = set(), [], 0
        for group in wanted.groups:
            active = len(_active(group))
            weight += group.weight if active else 0
            groups.append(LbGroup(weight, group.cluster_id, active))
        for block, some in enumerate(_blocks(groups, GROUPS_PER_BLOCK)):
            key = GroupsKey(number, block)
            self._trackers.groups.set(key, GroupsValue(_filled(some, GROUPS_PER_BLOCK, LbGroup(weight))))
            kept.add(key)
        return kept

    def _service_id(self, key: ServiceKey) -> int:
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = _unused(self._next_service, GroupsKey, self._trackers.groups).service_id
            self._next_service = number % _MOST + 1
        return number

    def _acquire(self, where: _Where) -> int:
        users = self._users.get(where, 0)
        self._users[where] = users + 1
        number = self._numbers.get(where)
        if users:
            assert number is not None
            return number
        backends = self._trackers.backends
        key = _unused(self._next_backend, BackendKey, backends) if number is None else BackendKey(number)
        if number is None:
            self._numbers[where] = key.id
            self._next_backend = key.id % _MOST + 1
        address, port, protocol, cluster_id = where
        backends.set(key, BackendValue(address, port, protocol, 0, cluster_id))
        return key.id

    def _release(self, where: _Where) -> None:
        self._users[where] -= 1
        if not self._users[where]:
            del self._users[where]
            self._trackers.backends.remove(BackendKey(self._numbers.pop(where)))


def _unused(number: int, key: Callable[[int], K], tracker: Tracker[K, Any]) -> K:
    """The first key from `number` on that is not in use; what else the kernel holds there goes, or is overwritten."""
    while (found := key(number)) in tracker.desired:
        number = number % _MOST + 1
    return found


def _active(group: Group) -> Sequence[Backend]:
    return [backend for backend in group.backends if backend.state is _ACTIVE]


def _wheres(entry: ServiceEntry) -> Iterator[list[_Where]]:
    """The backends of each group that new connections may be given."""
    protocol = PROTOCOL_NUMBERS[entry.frontend.protocol]
    for group in entry.groups:
        cluster = group.cluster_id
        yield [(address, port, protocol, cluster) for address, port, state, _ in group.backends if state is _ACTIVE]


def _head(number: int, entry: ServiceEntry) -> ServiceValue:
    return ServiceValue(
        number,
        sum(group.weight for group in entry.groups if _active(group)),
        entry.affinity_seconds,
        len(entry.groups),
        entry.flags,
        entry.kind,
        entry.algorithm,
    )


def _groups_keys(number: int, entry: ServiceEntry | None) -> Iterator[GroupsKey]:
    groups = 0 if entry is None else len(entry.groups)
    return (GroupsKey(number, block) for block in range(-(-groups // GROUPS_PER_BLOCK)))


def _slots_keys(number: int, entry: ServiceEntry | None) -> Iterator[SlotsKey]:
    for index, group in enumerate(() if entry is None else entry.groups):
        for block in range(-(-len(_active(group)) // SLOTS_PER_BLOCK)):
            yield SlotsKey(number, index, block)


def _blocks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _filled(items: Sequence[T], size: int, rest: T) -> tuple[T, ...]:
    return (*items, *[rest] * (size - len(items)))
