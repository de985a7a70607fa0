"""Services -> entries of the load-balancing maps: numbers for services and backends, groups and slots. Pure but for its
trackers.

A backend keeps its number as long as any frontend uses it, a frontend its number as long as it is there; numbers found
in the kernel at start are taken over, so a restart changes no entry. A number is not used again until all others were,
so that a lookup under way never meets another service's backend.

Trackers are applied backends, slots, groups, services, and deleted from in the reverse order: what is named is there
before, and goes after, what names it, so that no lookup meets a gap.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, filterfalse, repeat
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    PROTOCOL_NUMBERS,
    SLOTS_PER_BLOCK,
    GroupsKey,
    LbGroup,
    Number,
    ServiceValue,
    SlotsKey,
    pack_backends,
    pack_service_key,
    pack_slots,
    packer,
    unpack_numbers,
)
from agent.plan.room import Room
from clustermesh.deltas import Deltas
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Frontend, Group, ServiceEntry

Name = tuple[str, str]
Table_co = TypeVar("Table_co", bound=Deltas[bytes, bytes], covariant=True)
_MOST: Final = 0xFFFFFFFF
_ID_SIZE: Final = 4
_NUMBER, _SLOTS_KEY, _GROUPS_KEY, _GROUP, _SERVICE = map(packer, (Number, SlotsKey, GroupsKey, LbGroup, ServiceValue))
_PART: Final = attrgetter("weight", "cluster_id")

_Backends = Sequence[Sequence[bytes]]
"""The active backends of a service, group by group, as values of the map."""


class ServiceTrackers(NamedTuple, Generic[Table_co]):
    """In the order in which they are applied."""

    backends: Table_co
    slots: Table_co
    groups: Table_co
    services: Table_co


class ServicePlanner:
    """Keeps the desired entries of the load-balancing maps in step with the resolved services."""

    def __init__(self, trackers: ServiceTrackers[Deltas[bytes, bytes]], most: Sequence[int] = (_MOST,) * 4) -> None:
        """`most` is how many entries each of the maps holds."""
        self._trackers = trackers
        self._room = Room(trackers._asdict(), most)
        # By value: of two clusters with a backend at one address each has its own.
        self._numbers: dict[bytes, bytes] = {}
        self._more_users: dict[bytes, int] = {}  # how many slots name it beyond the first
        self._unused = _unused(trackers.backends.desired, 1)
        self._next_service = 1
        # By the key of the map.
        self._ids: dict[bytes, int] = {}
        self._claims: dict[bytes, dict[Name, ServiceEntry]] = {}
        self._contested: dict[bytes, None] = {}  # those that several services claim
        self._programmed: dict[bytes, ServiceEntry] = {}
        self._keys: dict[Name, Collection[bytes]] = {}

    def adopt(self) -> None:
        """Take over the numbers the kernel holds (the trackers must have been audited)."""
        held = self._trackers
        self._numbers = {value: key for key, value in held.backends.actual.items()}
        self._ids = dict(zip(held.services.actual, _service_ids(held.services.actual.values()), strict=True))
        used = chain(_service_ids(held.slots.actual), self._ids.values())
        self._next_service = max(used, default=0) % _MOST + 1
        self._unused = _unused(held.backends.desired, max(unpack_numbers(held.backends.actual), default=0) % _MOST + 1)

    def plans(self, name: Name) -> bool:
        """Whether service `name` has anything of what was planned so far."""
        return name in self._keys

    def update(self, name: Name, entries: Iterable[ServiceEntry]) -> None:
        """Make `entries` the whole of what service `name` has. None removes the service."""
        wanted = {_key(entry.frontend): entry for entry in entries}
        gone = [key for key in self._keys.get(name, ()) if key not in wanted]
        self._keys[name] = keys = (*gone, *wanted)  # where something raises all of it is gone over again
        for key in gone:
            self._claims.get(key, {}).pop(name, None)
        for key, entry in wanted.items():
            self._claims.setdefault(key, {})[name] = entry
        full = [why for key in keys if (why := self._program(key))]
        if full:
            raise Unavailable(full[0])
        if not wanted:
            self._keys.pop(name)
        elif gone:
            self._keys[name] = tuple(wanted)

    def conflicts(self) -> dict[Frontend, list[Name]]:
        """Frontends that more than one service claims; the first name in order is served."""
        claims = [self._claims.get(key, {}) for key in self._contested]
        return {next(iter(names.values())).frontend: sorted(names) for names in claims if len(names) > 1}

    def programmed(self) -> Iterable[bytes]:
        """The frontends, as keys of the map."""
        return self._programmed.keys()

    def served(self, key: bytes) -> tuple[Name, ServiceEntry] | None:
        """What the frontend is wanted to have, and the service whose it is."""
        entry, names = self._programmed.get(key), self._claims.get(key)
        return (min(names), entry) if names and entry is not None else None

    def _program(self, key: bytes) -> str:
        """Why it is not all there, if it finds no room. What raises has changed nothing, and what was cut is not as
        wanted: who asks again is told again."""
        names = self._claims.get(key)
        wanted = names[min(names)] if names else None
        if names and len(names) > 1:
            self._contested[key] = None
        else:
            self._contested.pop(key, None)
        if not names:
            self._claims.pop(key, None)
        held = self._programmed.get(key)
        if wanted == held:
            return ""
        before, after, full = _backends(held), _backends(wanted), ""
        if wanted is not None and (full := self._lacks(key, after)):
            if key not in self._ids:
                return f"is not there: {full}"
            full = f"has as many of its backends as there is room for: {full}"
            wanted = self._cut(key, wanted)
            if wanted == held:
                return full
            after = _backends(wanted)
        if wanted is None:
            self._remove(key, before)
        else:
            self._write(key, wanted, before, after)
        for group in before:
            self._release(group)
        return full

    def _remove(self, key: bytes, before: _Backends) -> None:
        self._trackers.services.remove(key)
        self._drop_rest(self._ids.pop(key), before, ())
        del self._programmed[key]

    def _write(self, key: bytes, wanted: ServiceEntry, before: _Backends, after: _Backends) -> None:
        """What cannot be packed raises before anything is set."""
        number = self._service_id(key)
        weight, blocks = _pack_groups(tuple(map(_PART, wanted.groups)), tuple(map(len, after)))
        head = _head(number, wanted, weight)
        self._acquire(chain.from_iterable(after))
        for index, values in enumerate(after):
            for block, value in enumerate(pack_slots([*map(self._numbers.__getitem__, values)])):
                self._trackers.slots.set(_SLOTS_KEY(number, index, block), value)
        for block, value in enumerate(blocks):
            self._trackers.groups.set(_GROUPS_KEY(number, block), value)
        self._trackers.services.set(key, head)
        if key not in self._ids:
            self._ids[key], self._next_service = number, number % _MOST + 1
        self._drop_rest(number, before, after)
        self._programmed[key] = wanted

    def _lacks(self, key: bytes, after: _Backends) -> str:
        """What a map lacks to take these. In part it would be worse: what is missing would be chosen."""
        if not self._room.may_lack(sum(map(len, after)) + len(after) + 1):  # no map gets more of it
            return ""
        number = self._service_id(key)
        blocks = [range(_count(values, SLOTS_PER_BLOCK)) for values in after]
        wanted = {
            "backends": {self._numbers.get(value, value) for value in chain.from_iterable(after)},
            "slots": [_SLOTS_KEY(number, index, block) for index, of_one in enumerate(blocks) for block in of_one],
            "groups": [_GROUPS_KEY(number, block) for block in range(_count(after, GROUPS_PER_BLOCK))],
            "services": [key],
        }
        return self._room.lack(wanted)

    def _cut(self, key: bytes, wanted: ServiceEntry) -> ServiceEntry:
        """`wanted` with those of its backends that need no room or find it."""
        number, fits, groups = self._ids[key], self._room.filler(), list[Group]()
        protocol = PROTOCOL_NUMBERS[wanted.frontend.protocol]
        for index, group in enumerate(wanted.groups):
            if not fits("groups", _GROUPS_KEY(number, index // GROUPS_PER_BLOCK)):
                break
            had, slots, kept = 0, 0, []
            for alike in group.alike:
                addresses, values = [], pack_backends((alike,), protocol, group.cluster_id)
                had += len(values)
                for address, value in zip(alike.addresses, values, strict=False):  # none of those that are not active
                    block = _SLOTS_KEY(number, index, slots // SLOTS_PER_BLOCK)
                    if fits("slots", block) and fits("backends", self._numbers.get(value, value)):
                        addresses.append(address)
                        slots += 1
                kept.append(replace(alike, addresses=tuple(addresses)))
            weight = -(-group.weight * slots // max(had, 1))  # as much for each
            groups.append(replace(group, weight=weight, alike=tuple(kept)))
        return replace(wanted, groups=tuple(groups))

    def _drop_rest(self, number: int, before: _Backends, after: _Backends) -> None:
        """What a service had beyond what it has."""
        if not before:
            return
        for block in range(_count(after, GROUPS_PER_BLOCK), _count(before, GROUPS_PER_BLOCK)):
            self._trackers.groups.remove(_GROUPS_KEY(number, block))
        for index, values in enumerate(before):
            kept = after[index] if index < len(after) else ()
            for block in range(_count(kept, SLOTS_PER_BLOCK), _count(values, SLOTS_PER_BLOCK)):
                self._trackers.slots.remove(_SLOTS_KEY(number, index, block))

    def _service_id(self, key: bytes) -> int:
        """Its number, or one that is free."""
        if (number := self._ids.get(key)) is not None:
            return number
        number = self._next_service
        while _GROUPS_KEY(number, 0) in self._trackers.groups.desired:
            number = number % _MOST + 1
        return number

    def _acquire(self, values: Iterable[bytes]) -> None:
        """Each of these backends has a number, and one more user."""
        numbers, add, used = self._numbers, self._trackers.backends.set, self._trackers.backends.desired
        for value in values:
            if (key := numbers.get(value)) is None:
                key = numbers[value] = next(self._unused)
            elif key in used:
                self._more_users[value] = self._more_users.get(value, 0) + 1
                continue
            add(key, value)

    def _release(self, values: Iterable[bytes]) -> None:
        for value in values:
            more = self._more_users.pop(value, 0)
            if more > 1:
                self._more_users[value] = more - 1
            elif not more:
                self._trackers.backends.remove(self._numbers.pop(value))


def _key(frontend: Frontend) -> bytes:
    return pack_service_key(frontend.address, frontend.port, PROTOCOL_NUMBERS[frontend.protocol], frontend.scope)


def _backends(entry: ServiceEntry | None) -> _Backends:
    """Those that new connections may be given."""
    if entry is None:
        return ()
    protocol = PROTOCOL_NUMBERS[entry.frontend.protocol]
    return [pack_backends(group.alike, protocol, group.cluster_id) for group in entry.groups]


def _service_ids(entries: Iterable[bytes]) -> Sequence[int]:
    """Of values of lb_services, or keys of lb_slots: both begin with one."""
    return unpack_numbers(each[:_ID_SIZE] for each in entries)


def _unused(used: Container[bytes], number: int) -> Iterator[bytes]:
    """Keys of backends from `number` on. What else the kernel holds there goes, or is overwritten."""
    numbers = chain(range(number, _MOST + 1), chain.from_iterable(repeat(range(1, _MOST + 1))))
    return filterfalse(used.__contains__, map(_NUMBER, numbers))


@lru_cache(1024)  # many services have as many backends of the same clusters
def _pack_groups(groups: Iterable[tuple[int, int]], sizes: Sequence[int]) -> tuple[int, Sequence[bytes]]:
    """Of groups with a weight, a cluster's id and so many backends: the weight of all together, and their blocks."""
    packed, weight = [], 0
    for (of_one, cluster_id), size in zip(groups, sizes, strict=True):
        weight += of_one if size else 0
        packed.append(_GROUP(weight, cluster_id, size, 0))
    packed += [_GROUP(weight, 0, 0, 0)] * (-len(packed) % GROUPS_PER_BLOCK)
    return weight, [b"".join(packed[at : at + GROUPS_PER_BLOCK]) for at in range(0, len(packed), GROUPS_PER_BLOCK)]


def _head(number: int, entry: ServiceEntry, weight: int) -> bytes:
    affinity, kind = entry.affinity_seconds, entry.kind
    return _SERVICE(number, weight, affinity, len(entry.groups), entry.flags, kind, entry.algorithm, 0)


def _count(items: Sequence[Any], size: int) -> int:
    """How many blocks these fill."""
    return -(-len(items) // size)
