"""Services -> entries of the load-balancing maps: numbers for services and backends, groups, slots, Maglev's tables,
who may ask. Pure but for its trackers.

A frontend keeps its number as long as it is there, as backends do (backends.py); numbers found in the kernel at start
are taken over, so a restart changes no entry.

Trackers are applied backends first and services last, and deleted from in the reverse order: what is named is there
before, and goes after, what names it, so that no lookup meets a gap, and nobody is let in who may not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agent.bpf.layouts import (
    GROUPS_PER_BLOCK,
    MOST_GROUPS,
    PROTOCOL_NUMBERS,
    SLOTS_PER_BLOCK,
    Allowed,
    GroupsKey,
    LbGroup,
    Number,
    ServiceValue,
    SlotsKey,
    pack,
    pack_backends,
    pack_service_key,
    pack_slots,
    pack_source_range,
    packer,
    unpack_numbers,
)
from agent.plan.backends import BackendNumbers
from agent.plan.maglev import maglev
from agent.plan.room import Room
from clustermesh.address import Prefix, is_ipv4
from clustermesh.deltas import Deltas
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Algorithm, BackendState

Name = tuple[str, str]
Table_co = TypeVar("Table_co", bound=Deltas[bytes, bytes], covariant=True)
_MOST: Final = 0xFFFFFFFF
_ID_SIZE: Final = 4
_ALLOWED: Final = {is_ipv4: pack(Allowed(4 if is_ipv4 else 6)) for is_ipv4 in (True, False)}
_NUMBER, _SLOTS_KEY, _GROUPS_KEY, _GROUP, _SERVICE = map(packer, (Number, SlotsKey, GroupsKey, LbGroup, ServiceValue))
_PART: Final = attrgetter("weight", "cluster_id")


class ServiceTrackers(NamedTuple, Generic[Table_co]):
    """In the order in which they are applied."""

    backends: Table_co
    slots: Table_co
    groups: Table_co
    maglev: Table_co
    source_ranges: Table_co
    services: Table_co


class _Needs(Struct, frozen=True, gc=False):
    """What a frontend needs of the maps. Backends are values of lb_backends as of active ones: those that it gives,
    group by group; who of all it has as active ones; and all others, with their state."""

    slots: Sequence[Sequence[bytes]] = ()
    active: Sequence[bytes] = ()
    resting: Sequence[tuple[bytes, BackendState]] = ()
    source_ranges: Sequence[Prefix] = ()
    has_table: bool = False

    def backends(self) -> set[bytes]:
        """All of them, whatever their state."""
        return {*self.active, *(value for value, _ in self.resting)}


_NOTHING: Final = _Needs()


class ServicePlanner:
    """Keeps the desired entries of the load-balancing maps in step with the resolved services."""

    def __init__(self, trackers: ServiceTrackers[Deltas[bytes, bytes]], most: Sequence[int] = (_MOST,) * 6) -> None:
        """`most` is how many entries each of the maps holds."""
        self._trackers = trackers
        self._room = Room(trackers._asdict(), most)
        self._numbers = BackendNumbers(trackers.backends)
        self._next_service = 1
        # By the key of the map.
        self._ids: dict[bytes, int] = {}
        self._ranges_found: dict[int, list[bytes]] = {}  # of services that were not written since, by their numbers
        self._claims: dict[bytes, dict[Name, ServiceEntry]] = {}
        self._contested: dict[bytes, None] = {}  # those that several services claim
        self._programmed: dict[bytes, ServiceEntry] = {}
        self._keys: dict[Name, Collection[bytes]] = {}
        self.departures = 0  # how often a backend left a service, and something else has it still
        self._left = set[bytes]()  # by what is being planned

    def adopt(self) -> None:
        """Take over the numbers the kernel holds (the trackers must have been audited)."""
        held = self._trackers
        self._numbers.adopt()
        self._ids = dict(zip(held.services.actual, _service_ids(held.services.actual.values()), strict=True))
        allowed = unpack_numbers(key[_ID_SIZE : 2 * _ID_SIZE] for key in held.source_ranges.actual)
        for number, key in zip(allowed, held.source_ranges.actual, strict=True):
            self._ranges_found.setdefault(number, []).append(key)
        used = chain(_service_ids(held.slots.actual), allowed, self._ids.values())
        self._next_service = max(used, default=0) % _MOST + 1

    def plans(self, name: Name) -> bool:
        """Whether service `name` has anything of what was planned so far."""
        return name in self._keys

    def services_in(self, namespaces: Container[str]) -> set[Name]:
        """Those that have anything of what was planned so far."""
        return {name for name in self._keys if name[0] in namespaces}

    def claim(self, name: Name, frontend: Frontend) -> ServiceEntry | None:
        """What service `name` wants to have there, as it was planned last."""
        return self._claims.get(_key(frontend), {}).get(name)

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
        self.departures += any(map(self._numbers.__contains__, self._left))
        self._left.clear()
        if full:
            raise Unavailable(full[0])
        if not wanted:
            self._keys.pop(name)
        elif gone:
            self._keys[name] = tuple(wanted)

    def conflicts(self) -> dict[Frontend, list[Name]]:
        """Frontends that more than one service claims; the first of them is served: who has it as its cluster IP before
        who only says that it is reached there, by name where that is the same."""
        claims = [self._claims.get(key, {}) for key in self._contested]
        return {next(iter(names.values())).frontend: _in_order(names) for names in claims if len(names) > 1}

    def programmed(self) -> Iterable[bytes]:
        """The frontends, as keys of the map."""
        return self._programmed.keys()

    def wanted(self, key: bytes) -> ServiceEntry | None:
        """All that the frontend should have, also where there is not enough room for it."""
        names = self._claims.get(key)
        return names[_first(names)] if names else None

    def number(self, key: bytes) -> int:
        """The id of a frontend that is planned; 0 of any other."""
        return self._ids.get(key, 0)

    def served(self, key: bytes) -> tuple[Name, ServiceEntry] | None:
        """What the frontend is wanted to have, and the service whose it is."""
        entry, names = self._programmed.get(key), self._claims.get(key)
        return (_first(names), entry) if names and entry is not None else None

    def _program(self, key: bytes) -> str:
        """Why it is not all there, if it finds no room. What raises has changed nothing, and what was cut is not as
        wanted: who asks again is told again."""
        names = self._claims.get(key)
        wanted = names[_first(names)] if names else None
        if names and len(names) > 1:
            self._contested[key] = None
        else:
            self._contested.pop(key, None)
        if not names:
            self._claims.pop(key, None)
        held = self._programmed.get(key)
        if wanted == held:
            return ""
        before, after, full = _needs(held), _needs(wanted), ""
        if wanted is not None and (lack := self._lacks(key, wanted, after)):
            wanted, full = self._fitting(key, wanted, lack)
            if wanted == held:
                return full
            after = _needs(wanted)
        if wanted is None:
            self._remove(key, before)
        else:
            self._write(key, wanted, before, after)
        self._numbers.release(before.active)
        self._numbers.release_resting(before.resting)
        if held is not None:
            self._left |= before.backends() - after.backends()
        return full

    def _fitting(self, key: bytes, wanted: ServiceEntry, lack: str) -> tuple[ServiceEntry | None, str]:
        """As much of `wanted` as there is room for, and what is said of it: new connections come first, and what is not
        there yet comes as a whole or not at all."""
        cut = self._cut(key, wanted)
        if replace(cut, resting=wanted.resting) == wanted and not self._room.lack({"services": [key]}):
            return cut, f"does not know all of the backends that are given to nobody: {lack}"
        if key not in self._ids:
            return None, f"is not there: {lack}"
        return cut, f"has as many of its backends as there is room for: {lack}"

    def _remove(self, key: bytes, before: _Needs) -> None:
        self._trackers.services.remove(key)
        self._drop_rest(self._ids.pop(key), before, _NOTHING)
        del self._programmed[key]

    def _write(self, key: bytes, wanted: ServiceEntry, before: _Needs, after: _Needs) -> None:
        """What cannot be packed raises before anything is set."""
        if len(wanted.groups) > MOST_GROUPS:
            raise Unavailable(f"has {len(wanted.groups)} groups of backends: it must have {MOST_GROUPS} at most")
        had = self._service_id(key)
        number = self._free_id() if self._is_regrouped(key, wanted, after) else had
        weight, blocks = _pack_groups(tuple(map(_PART, wanted.groups)), tuple(map(len, after.slots)))
        head = _head(number, wanted, weight)
        self._numbers.acquire(after.active)
        self._numbers.acquire_resting(after.resting)
        for index, values in enumerate(after.slots):
            for block, value in enumerate(pack_slots(self._numbers.of(values))):
                self._trackers.slots.set(_SLOTS_KEY(number, index, block), value)
        for block, value in enumerate(blocks):
            self._trackers.groups.set(_GROUPS_KEY(number, block), value)
        if after.has_table:
            self._trackers.maglev.set(_NUMBER(number), self._table(wanted, after))
        self._write_ranges(number, after.source_ranges)
        self._trackers.services.set(key, head)
        if self._ids.get(key) != number:
            self._ids[key], self._next_service = number, number % _MOST + 1
        self._drop_rest(had, before, after if number == had else _NOTHING)
        self._programmed[key] = wanted

    def _write_ranges(self, number: int, ranges: Iterable[Prefix]) -> None:
        """What was found there and is not among them goes, too: it would let somebody in."""
        table, wanted = self._trackers.source_ranges, {pack_source_range(number, each): each for each in ranges}
        for key, each in wanted.items():
            table.set(key, _ALLOWED[is_ipv4(each.address)])
        for key in self._ranges_found.pop(number, ()):
            if key not in wanted and (found := table.actual.get(key)) is not None:
                table.set(key, found)
                table.remove(key)

    def _is_regrouped(self, key: bytes, wanted: ServiceEntry, after: _Needs) -> bool:
        """Whether it is written under another number, and called by it once all is there: where a place among its
        groups goes to another cluster, who looks it up meanwhile would take one's backends for the other's. Not where
        clients stay with a backend, which they do by the service's number, nor where there is no room for both."""
        held = self._programmed.get(key)
        if held is None or wanted.affinity_seconds or not held.groups:
            return False
        if all(had.cluster_id == has.cluster_id for had, has in zip(held.groups, wanted.groups, strict=False)):
            return False
        return not self._room.may_lack(sum(map(len, after.slots)) + len(after.slots) + len(after.source_ranges) + 1)

    def _table(self, wanted: ServiceEntry, after: _Needs) -> bytes:
        """As many backends as there are places, of each as many as its part is."""
        values, weights = [*chain.from_iterable(after.slots)], list[int]()
        for group, those in zip(wanted.groups, after.slots, strict=True):
            weights += [max(group.weight // len(those), 1)] * len(those) if those else []
        ids = self._numbers.of(values)
        return b"".join([ids[each] for each in maglev(tuple(values), tuple(weights))])

    def _lacks(self, key: bytes, wanted: ServiceEntry, after: _Needs) -> str:
        """What a map lacks to take these. In part it would be worse: what is missing would be chosen."""
        size = sum(map(len, after.slots)) + len(after.slots) + 1
        if not self._room.may_lack(size + len(after.resting) + len(after.source_ranges)):  # no map gets more of it
            return ""
        number = self._service_id(key)
        blocks = [range(_count(values, SLOTS_PER_BLOCK)) for values in after.slots]
        values = chain(chain.from_iterable(after.slots), (value for value, _ in after.resting))
        needed = {
            "backends": {self._numbers.get(value) for value in values},
            "slots": [_SLOTS_KEY(number, index, block) for index, of_one in enumerate(blocks) for block in of_one],
            "groups": [_GROUPS_KEY(number, block) for block in range(_count(after.slots, GROUPS_PER_BLOCK))],
            "maglev": [_NUMBER(number)] * after.has_table,
            "source_ranges": {pack_source_range(number, each) for each in after.source_ranges},
            "services": [key],
        }
        return self._room.lack(needed)

    def _cut(self, key: bytes, wanted: ServiceEntry) -> ServiceEntry:
        """`wanted` with those of its backends that need no room or find it. Those of whom is not known that they may
        ask may not; without a table it is drawn who answers."""
        number, fits, groups = self._service_id(key), self._room.filler(), list[Group]()
        protocol = PROTOCOL_NUMBERS[wanted.frontend.protocol]
        for index, group in enumerate(wanted.groups):
            if not fits("groups", _GROUPS_KEY(number, index // GROUPS_PER_BLOCK)):
                break
            had, slots, kept = 0, 0, []
            for alike in group.alike:
                addresses, values = [], pack_backends((alike,), protocol, group.cluster_id)
                had += len(values)
                for address, value in zip(alike.addresses, values, strict=True):
                    block = _SLOTS_KEY(number, index, slots // SLOTS_PER_BLOCK)
                    if fits("slots", block) and fits("backends", self._numbers.get(value)):
                        addresses.append(address)
                        slots += 1
                kept.append(replace(alike, addresses=tuple(addresses)))
            weight = -(-group.weight * slots // max(had, 1))  # as much for each
            groups.append(replace(group, weight=weight, alike=tuple(kept)))
        allowed = [each for each in wanted.source_ranges if fits("source_ranges", pack_source_range(number, each))]
        has_table = wanted.algorithm is Algorithm.MAGLEV and fits("maglev", _NUMBER(number))
        algorithm = Algorithm.MAGLEV if has_table else Algorithm.RANDOM
        cut = replace(wanted, groups=tuple(groups), source_ranges=tuple(allowed), algorithm=algorithm)
        return replace(cut, resting=self._cut_resting(wanted, protocol, fits))

    def _cut_resting(
        self, wanted: ServiceEntry, protocol: int, fits: Callable[[str, bytes], bool]
    ) -> tuple[Group, ...]:
        def kept(group: Group, alike: Backends) -> Backends:
            values = pack_backends((alike,), protocol, group.cluster_id)
            pairs = zip(alike.addresses, values, strict=True)
            found = tuple(each for each, value in pairs if fits("backends", self._numbers.get(value)))
            return replace(alike, addresses=found)

        return tuple(replace(g, alike=tuple(kept(g, alike) for alike in g.alike)) for g in wanted.resting)

    def _drop_rest(self, number: int, before: _Needs, after: _Needs) -> None:
        """What a service had beyond what it has."""
        if before is _NOTHING:
            return
        slots = after.slots
        for block in range(_count(slots, GROUPS_PER_BLOCK), _count(before.slots, GROUPS_PER_BLOCK)):
            self._trackers.groups.remove(_GROUPS_KEY(number, block))
        for index, values in enumerate(before.slots):
            kept = slots[index] if index < len(slots) else ()
            for block in range(_count(kept, SLOTS_PER_BLOCK), _count(values, SLOTS_PER_BLOCK)):
                self._trackers.slots.remove(_SLOTS_KEY(number, index, block))
        if before.has_table and not after.has_table:
            self._trackers.maglev.remove(_NUMBER(number))
        if before.source_ranges:
            had, has = ({pack_source_range(number, e) for e in each.source_ranges} for each in (before, after))
            for gone in had - has:
                self._trackers.source_ranges.remove(gone)

    def _service_id(self, key: bytes) -> int:
        """Its number, or one that is free."""
        number = self._ids.get(key)
        return self._free_id() if number is None else number

    def _free_id(self) -> int:
        number = self._next_service
        while _GROUPS_KEY(number, 0) in self._trackers.groups.desired:
            number = number % _MOST + 1
        return number


def _key(frontend: Frontend) -> bytes:
    return pack_service_key(frontend.address, frontend.port, PROTOCOL_NUMBERS[frontend.protocol], frontend.scope)


def _in_order(names: Mapping[Name, ServiceEntry]) -> list[Name]:
    return sorted(names, key=lambda name: (names[name].kind, name))


def _first(names: Mapping[Name, ServiceEntry]) -> Name:
    return next(iter(names)) if len(names) == 1 else _in_order(names)[0]


def _needs(entry: ServiceEntry | None) -> _Needs:
    if entry is None:
        return _NOTHING
    protocol = PROTOCOL_NUMBERS[entry.frontend.protocol]
    slots = [pack_backends(group.alike, protocol, group.cluster_id) for group in entry.groups]
    has_table = entry.algorithm is Algorithm.MAGLEV and any(slots)
    if not entry.resting and _are_active(entry.groups):  # as nearly all
        return _Needs(slots, [*chain.from_iterable(slots)], (), entry.source_ranges, has_table)
    active, resting = list[bytes](), list[tuple[bytes, BackendState]]()
    for group in (*entry.groups, *entry.resting):
        for alike in group.alike:
            values = pack_backends((alike,), protocol, group.cluster_id)
            if alike.state is BackendState.ACTIVE:
                active += values
            else:
                resting += [(value, alike.state) for value in values]
    return _Needs(slots, active, resting, entry.source_ranges, has_table)


def _are_active(groups: Iterable[Group]) -> bool:
    for group in groups:
        for alike in group.alike:
            if alike.state is not BackendState.ACTIVE:
                return False
    return True


def _service_ids(entries: Iterable[bytes]) -> Sequence[int]:
    """Of values of lb_services, or keys of lb_slots: both begin with one."""
    return unpack_numbers(each[:_ID_SIZE] for each in entries)


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
