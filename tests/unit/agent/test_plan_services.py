"""Services as map entries, looked up as the program looks them up, against the resolved services they come from."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructions import count_instructions

from agent.bpf.layouts import (
    BackendValue,
    GroupsKey,
    LbGroup,
    Number,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    pack,
    unpack,
    unpack_each,
)
from agent.plan.services import ServicePlanner, ServiceTrackers
from clustermesh.address import from_int, parse, text, to_int
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import BackendState, Protocol
from clustermesh.reconcile import Reconciler, Tracker

TCP = Protocol.TCP
Name = tuple[str, str]


def served_by(planner: ServicePlanner) -> list[tuple[tuple[str, str], ServiceEntry]]:
    return [each for each in map(planner.served, planner.programmed()) if each is not None]


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

    def __init__(self, maps: Mapping[str, Map] | None = None, most: Sequence[int] = (1 << 20,) * 4) -> None:
        self.maps = maps or {name: Map() for name in ServiceTrackers._fields}
        self.trackers = ServiceTrackers(*(Tracker(name, self.maps[name]) for name in ServiceTrackers._fields))
        self.reconciler = Reconciler(*self.trackers)
        self.planner = ServicePlanner(self.trackers, most)

    def watch(self, watch: Any) -> None:
        for each in self.maps.values():
            each.watch = watch

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
        held = self.maps["services"].held.get(pack(ServiceKey(frontend.address, frontend.port, 6)))
        if held is None:
            return None
        head = unpack(ServiceValue, held)
        found: dict[tuple[int, str], int] = {}
        before = 0
        for index in range(head.groups):
            group = unpack_each(LbGroup, self.maps["groups"].held[pack(GroupsKey(head.service_id, index // 8))])[
                index % 8
            ]
            weight, before = min(group.weight_end, head.weight) - before, group.weight_end
            for slot in range(group.slots if weight > 0 else 0):
                block = self.maps["slots"].held[pack(SlotsKey(head.service_id, index, slot // 16))]
                number = unpack_each(Number, block)[slot % 16]
                entry = unpack(BackendValue, self.maps["backends"].held[pack(number)])
                found[(entry.cluster_id, f"{text(entry.address)}:{entry.port}")] = weight
        return found


def frontend(number: int) -> Frontend:
    return Frontend(parse(f"10.96.0.{number}" if number % 2 else f"fd96::{number}"), 80, TCP)


def entry(number: int, backends: Collection[tuple[int, int]]) -> ServiceEntry:
    """A service at frontend(number); a backend is its cluster and a number."""
    groups = []
    for cluster in sorted({cluster for cluster, _ in backends}):
        own = tuple(parse(f"10.{cluster}.0.{n}") for c, n in sorted(backends) if c == cluster)
        groups.append(Group(cluster, len(own), (Backends(own, 8080),)))
    return ServiceEntry(frontend(number), tuple(groups))


def expected(found: ServiceEntry) -> dict[tuple[int, str], int]:
    return {
        (group.cluster_id, f"{text(backend.address)}:{backend.port}"): group.weight
        for group in found.groups
        for backend in group.backends
    }


few = st.sets(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=6)
many = st.builds(  # more groups than a block has, and more slots
    lambda clusters, backends: {(c, 1) for c in range(1, clusters + 1)} | {(1, n) for n in range(1, backends + 1)},
    st.integers(7, 10),
    st.integers(15, 18),
)
resolved = st.dictionaries(st.integers(1, 3), st.one_of(few, few, many))
updates = st.lists(st.tuples(st.sampled_from([("n", "a"), ("n", "b")]), resolved, st.booleans()), max_size=8)


@given(updates)
async def test_lookups_agree_with_the_resolved_services_and_never_meet_a_gap(
    script: list[tuple[Name, dict[int, set[tuple[int, int]]], bool]],
) -> None:
    node = Node()
    await node.start()
    wanted: dict[Name, dict[int, ServiceEntry]] = {}

    def no_gap() -> None:
        for number in (1, 2, 3):
            node.answers(frontend(number))

    for name, services, restart in script:
        node.watch(no_gap)
        if restart:
            node = Node(node.maps)
            await node.start()
            for known, held in wanted.items():
                node.planner.update(known, list(held.values()))
        wanted[name] = {number: entry(number, backends) for number, backends in services.items()}
        node.planner.update(name, list(wanted[name].values()))
        await node.flush()
        for number in (1, 2, 3):
            claimants = [wanted[n][number] for n in sorted(wanted) if number in wanted[n]]
            assert node.answers(frontend(number)) == (expected(claimants[0]) if claimants else None)
    used = {(g.cluster_id, b) for _, held in served_by(node.planner) for g in held.groups for b in g.backends}
    assert len(node.maps["backends"].held) == len(used), "no backend is left behind"
    ids = {unpack(ServiceValue, head).service_id for head in node.maps["services"].held.values()}
    kinds = {"slots": SlotsKey, "groups": GroupsKey}
    named = {unpack(kind, key).service_id for name, kind in kinds.items() for key in node.maps[name].held}
    assert named <= ids, "nor a slot"


async def test_a_restart_changes_no_entry() -> None:
    node = Node()
    await node.start()
    services = {n: entry(n, {(1, n), (2, n + 1), (3, 5)}) for n in (3, 1, 2)}
    for n, each in services.items():
        node.planner.update(("n", f"s{n}"), [each])
    await node.flush()
    before = node.content()
    again = Node(node.maps)
    await again.start()
    for n in (1, 2, 3):
        again.planner.update(("n", f"s{n}"), [services[n]])
    writes: list[int] = []
    node.watch(lambda: writes.append(1))
    await again.flush()
    assert writes == []
    assert node.content() == before


async def test_numbers_are_not_used_again_at_once() -> None:
    node = Node()
    await node.start()
    node.planner.update(("n", "s"), [entry(1, {(1, 1)})])
    await node.flush()
    (backend,), (head,) = node.maps["backends"].held, node.maps["services"].held.values()
    node.planner.update(("n", "s"), [])
    await node.flush()
    node = Node(node.maps)
    node.planner.update(("n", "s"), [entry(1, {(1, 2)})])
    node.planner.update(("n", "s"), [])
    node.planner.update(("n", "s"), [entry(1, {(1, 3)})])
    await node.flush()
    (second,), (second_head,) = node.maps["backends"].held, node.maps["services"].held.values()
    assert backend != second
    assert unpack(ServiceValue, head).service_id != unpack(ServiceValue, second_head).service_id


async def test_two_services_with_one_frontend_are_a_conflict_and_the_first_is_served() -> None:
    node = Node()
    node.planner.update(("n", "b"), [entry(1, {(1, 2)})])
    node.planner.update(("n", "a"), [entry(1, {(1, 1)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.1:8080"): 1}
    assert node.planner.conflicts() == {frontend(1): [("n", "a"), ("n", "b")]}
    node.planner.update(("n", "a"), [])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.2:8080"): 1}
    assert node.planner.conflicts() == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sets(st.integers(1, 4))), max_size=20))
def test_conflicts_are_the_frontends_that_several_services_claim(updates: list[tuple[str, set[int]]]) -> None:
    node, claims = Node(), dict[Name, set[int]]()
    for name, numbers in updates:
        claims["n", name] = numbers
        node.planner.update(("n", name), [entry(each, {(1, each)}) for each in numbers])
    claimants = {each: sorted(name for name, numbers in claims.items() if each in numbers) for each in range(5)}
    wanted = {frontend(each): names for each, names in claimants.items() if len(names) > 1}
    assert node.planner.conflicts() == wanted


def test_conflicts_are_told_at_the_same_cost_among_few_services_and_among_many() -> None:
    def cost(services: int) -> int:
        node = Node()
        for number in range(services):
            node.planner.update(("n", f"s{number}"), [entry(number, {(1, number % 200)})])
        node.planner.update(("n", "other"), [entry(7, {(1, 1)})])
        assert len(node.planner.conflicts()) == 1
        return count_instructions(node.planner.conflicts)

    assert cost(200) == cost(20)


async def test_a_service_without_backends_is_there_and_empty() -> None:
    node = Node()
    node.planner.update(("n", "s"), [entry(1, set())])
    await node.flush()
    assert node.answers(frontend(1)) == {}


async def test_one_address_in_two_clusters_is_two_backends() -> None:
    """Each goes with its own cluster when that is taken out."""
    node = Node()
    same = Backends((parse("10.9.0.1"),), 8080)
    node.planner.update(("n", "s"), [ServiceEntry(frontend(1), (Group(1, 1, (same,)), Group(2, 1, (same,))))])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.9.0.1:8080"): 1, (2, "10.9.0.1:8080"): 1}


async def test_backends_that_are_not_active_get_no_slot_and_no_weight() -> None:
    node = Node()
    leaving = Backends((parse("10.1.0.1"),), 8080, BackendState.TERMINATING)
    serving = Backends((parse("10.2.0.1"),), 8080)
    groups = (Group(1, 3, (leaving,)), Group(2, 1, (leaving, serving)))
    node.planner.update(("n", "s"), [ServiceEntry(frontend(1), groups)])
    await node.flush()
    assert node.answers(frontend(1)) == {(2, "10.2.0.1:8080"): 1}


_UNPACKABLE = (
    (Group(1, 1, (Backends((parse("10.1.0.9"),), 99_999),)),),
    (Group(1, 70_000, (Backends(tuple(from_int(to_int(parse("10.0.0.0")) + n) for n in range(70_000)), 80),)),),
    (Group(1, 1, (Backends((parse("10.1.0.9"),), 80),)), Group(1 << 40, 1, (Backends((parse("10.1.0.8"),), 80),))),
)


@pytest.mark.parametrize("groups", _UNPACKABLE, ids=["port", "backends", "cluster"])
@pytest.mark.parametrize("stood", [True, False])
async def test_what_cannot_be_planned_is_refused_each_time_and_changes_nothing(
    groups: tuple[Group, ...], stood: bool
) -> None:
    node = Node()
    good = entry(1, {(1, 1), (2, 2)})
    if stood:
        node.planner.update(("n", "s"), [good])
    before = [dict(each.desired) for each in node.trackers]
    for _ in range(3):
        with pytest.raises((struct.error, OverflowError, ValueError)):
            node.planner.update(("n", "s"), [ServiceEntry(frontend(1), groups)])
        assert [dict(each.desired) for each in node.trackers] == before
        assert [each for _, each in served_by(node.planner)] == ([good] if stood else [])
    node.planner.update(("n", "s"), [entry(1, {(1, 3)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.3:8080"): 1}
    node.planner.update(("n", "s"), [])
    assert not any(each.desired for each in node.trackers)


async def test_a_frontend_that_goes_while_another_cannot_be_planned_is_gone() -> None:
    node = Node()
    node.planner.update(("n", "s"), [entry(1, {(1, 1)}), entry(2, {(1, 1)})])
    for _ in range(2):
        with pytest.raises((struct.error, OverflowError, ValueError)):
            node.planner.update(("n", "s"), [ServiceEntry(frontend(2), _UNPACKABLE[0])])
    assert [each.frontend for _, each in served_by(node.planner)] == [frontend(2)], "as it was"
    node.planner.update(("n", "s"), [])
    assert not any(each.desired for each in node.trackers)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), resolved, st.booleans()), max_size=12),
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 4), st.integers(0, 4)),
)
async def test_in_maps_that_are_full_no_choice_falls_on_what_is_gone_or_found_no_room(
    script: list[tuple[str, dict[int, set[tuple[int, int]]], bool]], most: tuple[int, int, int, int]
) -> None:
    node, numbers = Node(most=most), {"a": 0, "b": 10, "c": 20, "d": 30}
    asked: dict[str, dict[Frontend, ServiceEntry]] = {}
    for name, services, may_delete in script:
        entries = [entry(numbers[name] + number, backends) for number, backends in services.items()]
        asked[name] = {each.frontend: each for each in entries}
        try:
            node.planner.update(("n", name), entries)
        except Unavailable:
            pass
        else:
            assert asked[name].items() <= {each.frontend: each for _, each in served_by(node.planner)}.items()
        served = {each.frontend: each for _, each in served_by(node.planner)}
        wanted = {key: each for of_one in asked.values() for key, each in of_one.items()}
        assert all(expected(found).keys() <= expected(wanted[key]).keys() for key, found in served.items())
        node.reconciler.may_delete = may_delete
        await node.reconciler.flush()
        assert all(len(held) <= size for held, size in zip(node.content().values(), most, strict=True))
        assert all((node.answers(each) or {}).keys() == expected(found).keys() for each, found in served.items())


async def test_while_nothing_is_deleted_a_service_keeps_what_it_had_and_wants_and_then_has_the_rest() -> None:
    node = Node(most=(3, 9, 9, 9))
    node.planner.update(("n", "a"), [entry(1, {(1, 1), (1, 2), (1, 3)})])
    await node.reconciler.flush()
    changed = [entry(1, {(1, 2), (1, 3), (1, 4), (1, 5)})]
    with pytest.raises(Unavailable, match="2 more entries of the map lb_backends, where 3 of 3 are taken"):
        node.planner.update(("n", "a"), changed)
    await node.reconciler.flush()
    assert (node.answers(frontend(1)) or {}).keys() == {(1, "10.1.0.2:8080"), (1, "10.1.0.3:8080")}
    await node.flush()
    with pytest.raises(Unavailable, match="2 more entries of the map lb_backends, where 2 of 3 are taken"):
        node.planner.update(("n", "a"), changed)
    await node.flush()
    assert (node.answers(frontend(1)) or {}).keys() == {(1, f"10.1.0.{n}:8080") for n in (2, 3, 4)}


async def test_all_of_a_services_backends_are_replaced_in_a_full_map() -> None:
    node = Node(most=(2, 9, 9, 9))
    node.planner.update(("n", "a"), [entry(1, {(1, 1), (1, 2)})])
    await node.flush()
    with pytest.raises(Unavailable):
        node.planner.update(("n", "a"), [entry(1, {(1, 3), (1, 4)})])
    await node.flush()
    assert node.answers(frontend(1)) == {}, "refused, rather than sent to who is gone"
    node.planner.update(("n", "a"), [entry(1, {(1, 3), (1, 4)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.3:8080"): 2, (1, "10.1.0.4:8080"): 2}


async def test_a_frontend_that_finds_no_room_does_not_hold_up_the_next_one() -> None:
    node = Node(most=(9, 2, 9, 9))
    node.planner.update(("n", "a"), [entry(2, {(1, 1), (2, 1)})])
    with pytest.raises(Unavailable, match="lb_slots"):
        node.planner.update(("n", "a"), [entry(1, {(1, 1)}), entry(2, {(1, 2)})])
    await node.flush()
    assert node.answers(frontend(1)) is None
    assert node.answers(frontend(2)) == {(1, "10.1.0.2:8080"): 1}
    node.planner.update(("n", "a"), [entry(1, {(1, 1)}), entry(2, {(1, 2)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.1:8080"): 1}


async def test_a_service_that_found_no_room_has_it_once_another_needs_less() -> None:
    node = Node(most=(40, 2, 2, 2))
    node.planner.update(("n", "a"), [entry(1, {(1, 1), (2, 1)})])
    with pytest.raises(Unavailable, match="1 more entries of the map lb_slots, where 2 of 2 are taken"):
        node.planner.update(("n", "b"), [entry(2, {(1, 1)})])
    node.planner.update(("n", "a"), [entry(1, {(1, 1)})])
    node.planner.update(("n", "b"), [entry(2, {(1, 1)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.1:8080"): 1} == node.answers(frontend(2))
