"""The maps of services as an agent fills them, in memory, and looked up as the programs look them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from agent.bpf.layouts import (
    PROTOCOL_NUMBERS,
    BackendValue,
    GroupsKey,
    LbGroup,
    Number,
    ServiceValue,
    SlotsKey,
    SourceRangeKey,
    pack,
    pack_service_key,
    unpack,
    unpack_each,
    unpack_numbers,
)
from agent.plan.services import ServicePlanner, ServiceTrackers
from clustermesh.address import Address, Prefix, prefix_text, text
from clustermesh.mesh.resolve import Frontend, ServiceFlag
from clustermesh.model import Algorithm, BackendState
from clustermesh.reconcile import Reconciler, Tracker


class Map:
    """A map of the kernel, which calls `watch` after every single entry it takes or drops."""

    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}
        self.watch = lambda: None

    async def dump(self) -> Mapping[Any, Any]:
        return dict(self.held)

    async def upsert(self, entries: Mapping[Any, Any]) -> None:
        for key, value in entries.items():
            self.held[key] = value
            self.watch()

    async def delete(self, keys: Collection[Any]) -> None:
        for key in keys:
            self.held.pop(key, None)
            self.watch()


class Node:
    """A planner over the maps, as an agent has them; a second one over the same maps is the agent started again."""

    def __init__(self, maps: Mapping[str, Map] | None = None, most: Sequence[int] = (1 << 20,) * 6) -> None:
        self.maps = maps or {name: Map() for name in ServiceTrackers._fields}
        self.trackers = ServiceTrackers(*(Tracker(name, self.maps[name]) for name in ServiceTrackers._fields))
        self.reconciler = Reconciler(*self.trackers, grants=[self.trackers.source_ranges])
        self.planner = ServicePlanner(self.trackers, most)

    def watch(self, watch: Any) -> None:
        for each in self.maps.values():
            each.watch = watch

    def keep_unclaimed(self) -> None:
        for each in self.trackers:
            each.keep_unclaimed()

    async def start(self) -> None:
        await self.reconciler.adopt()
        self.planner.adopt()

    async def flush(self) -> None:
        self.reconciler.may_delete = True
        await self.reconciler.flush()

    def content(self) -> dict[str, dict[Any, Any]]:
        return {name: dict(each.held) for name, each in self.maps.items()}

    def answers(self, frontend: Frontend) -> dict[tuple[int, str], int] | None:
        """Every cluster and address a connection to `frontend` can reach now, with its chance among the service's
        weight; None where there is no such service. A lookup that meets a gap raises KeyError."""
        head = self.head(frontend)
        if head is None:
            return None
        found: dict[tuple[int, str], int] = {}
        before = 0
        for index in range(head.groups):
            group = unpack_each(LbGroup, self.maps["groups"].held[pack(GroupsKey(head.service_id, index // 8))])[
                index % 8
            ]
            weight, before = min(group.weight_end, head.weight) - before, group.weight_end
            for slot in range(group.slots if weight > 0 else 0):
                block = self.maps["slots"].held[pack(SlotsKey(head.service_id, index, slot // 16))]
                found[self.backend(unpack_each(Number, block)[slot % 16])] = weight
        return found

    def chances(self, frontend: Frontend) -> dict[tuple[int, str], Fraction]:
        """Every backend a connection to `frontend` can reach, and how likely; groups may share none."""
        head, found, before = self.head(frontend), dict[tuple[int, str], Fraction](), 0
        assert head is not None
        for index in range(head.groups):
            block = self.maps["groups"].held[pack(GroupsKey(head.service_id, index // 8))]
            group = unpack_each(LbGroup, block)[index % 8]
            for slot in range(group.slots):
                ids = unpack_each(Number, self.maps["slots"].held[pack(SlotsKey(head.service_id, index, slot // 16))])
                at, chance = (
                    self.backend(ids[slot % 16]),
                    Fraction(group.weight_end - before, head.weight * group.slots),
                )
                assert at not in found
                found[at] = chance
            before = group.weight_end
        return found

    def backend(self, number: Number) -> tuple[int, str]:
        entry = unpack(BackendValue, self.maps["backends"].held[pack(number)])
        return entry.cluster_id, f"{text(entry.address)}:{entry.port}"

    def places(self, frontend: Frontend) -> Counter[tuple[int, str]] | None:
        """Every backend in the table of `frontend`, with how many places it has; None where it has no table."""
        head = self.head(frontend)
        if head is None or head.algorithm != Algorithm.MAGLEV or not head.weight:
            return None
        table = Counter(unpack_numbers([self.maps["maglev"].held[pack(Number(head.service_id))]]))
        return Counter({self.backend(Number(number)): places for number, places in table.items()})

    def may_ask(self, frontend: Frontend) -> set[str] | None:
        """The prefixes that may ask at `frontend`; None where all may."""
        head = self.head(frontend)
        if head is None or not head.flags & ServiceFlag.SOURCE_RANGES:
            return None
        keys = [unpack(SourceRangeKey, key) for key in self.maps["source_ranges"].held]
        return {
            prefix_text(Prefix(key.address, key.prefix_length - 32))
            for key in keys
            if key.service_id == head.service_id
        }

    def head(self, frontend: Frontend) -> ServiceValue | None:
        held = self.maps["services"].held.get(pack_service_key(*_where(frontend)))
        return None if held is None else unpack(ServiceValue, held)

    def states(self) -> dict[tuple[int, str], BackendState]:
        """Of every backend in the map."""
        found = {}
        for key, value in self.maps["backends"].held.items():
            found[self.backend(unpack(Number, key))] = BackendState(unpack(BackendValue, value).state)
        return found


def _where(at: Frontend) -> tuple[Address, int, int, int]:
    return at.address, at.port, PROTOCOL_NUMBERS[at.protocol], at.scope
