"""Services as map entries, looked up as the program looks them up, against the resolved services they come from."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from instructions import count_instructions
from service_maps import Node

from agent.bpf.layouts import (
    GroupsKey,
    Number,
    ServiceValue,
    SlotsKey,
    SourceRangeKey,
    pack,
    unpack,
    unpack_each,
)
from agent.plan.services import ServicePlanner
from clustermesh.address import from_int, parse, parse_prefix, prefix_text, text, to_int
from clustermesh.errors import Unavailable
from clustermesh.mesh.resolve import Backends, Frontend, Group, Kind, ServiceEntry, ServiceFlag
from clustermesh.model import Algorithm, BackendState, Protocol

TCP = Protocol.TCP
Name = tuple[str, str]


def served_by(planner: ServicePlanner) -> list[tuple[tuple[str, str], ServiceEntry]]:
    return [each for each in map(planner.served, planner.programmed()) if each is not None]


def frontend(number: int) -> Frontend:
    return Frontend(parse(f"10.96.0.{number}" if number % 2 else f"fd96::{number}"), 80, TCP)


def groups(backends: Collection[tuple[int, int]], state: BackendState = BackendState.ACTIVE) -> tuple[Group, ...]:
    """A backend is its cluster and a number."""
    found = []
    for cluster in sorted({cluster for cluster, _ in backends}):
        own = tuple(parse(f"10.{cluster}.0.{n}") for c, n in sorted(backends) if c == cluster)
        found.append(Group(cluster, len(own), (Backends(own, 8080, state),)))
    return tuple(found)


def entry(number: int, backends: Collection[tuple[int, int]], **more: Any) -> ServiceEntry:
    """A service at frontend(number)."""
    return ServiceEntry(frontend(number), groups(backends), **more)


def expected(found: ServiceEntry) -> dict[tuple[int, str], int]:
    return {
        (group.cluster_id, f"{text(backend.address)}:{backend.port}"): group.weight
        for group in found.groups
        for backend in group.backends
    }


def named(groups: Iterable[Group]) -> dict[tuple[int, str], BackendState]:
    """Every backend with its state."""
    return {
        (group.cluster_id, f"{text(address)}:{alike.port}"): alike.state
        for group in groups
        for alike in group.alike
        for address in alike.addresses
    }


few = st.sets(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=6)
many = st.builds(  # more groups than a block has, and more slots
    lambda clusters, backends: {(c, 1) for c in range(1, clusters + 1)} | {(1, n) for n in range(1, backends + 1)},
    st.integers(7, 10),
    st.integers(15, 18),
)
ranges = st.sets(st.sampled_from(["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"]).map(parse_prefix)).map(sorted)
idle = st.tuples(few, st.sampled_from([BackendState.TERMINATING, BackendState.QUARANTINED, BackendState.MAINTENANCE]))


@st.composite
def drawn(draw: st.DrawFn, number: int) -> ServiceEntry:
    """One at frontend(number), of any algorithm, with and without those that rest."""
    given = groups(draw(st.one_of(few, few, many)), draw(st.sampled_from(list(BackendState)[:2])))
    allowed = draw(st.none() | ranges)
    return ServiceEntry(
        frontend(number),
        given,
        flags=0 if allowed is None else ServiceFlag.SOURCE_RANGES,
        affinity_seconds=draw(st.sampled_from([0, 10800])),
        algorithm=draw(st.sampled_from(Algorithm)),
        resting=draw(st.just(()) | idle.map(lambda drawn: groups(*drawn))),
        source_ranges=tuple(allowed or ()),
    )


def tables(first: int = 0) -> st.SearchStrategy[dict[int, ServiceEntry]]:
    return st.fixed_dictionaries({}, optional={number: drawn(first + number) for number in (1, 2, 3)})


resolved = tables()
updates = st.lists(st.tuples(st.sampled_from([("n", "a"), ("n", "b")]), resolved, st.booleans()), max_size=8)


@given(updates)
async def test_lookups_agree_with_the_resolved_services_and_never_meet_a_gap(
    script: list[tuple[Name, dict[int, ServiceEntry], bool]],
) -> None:
    node = Node()
    await node.start()
    wanted: dict[Name, dict[int, ServiceEntry]] = {}

    def no_gap() -> None:
        for number in (1, 2, 3):
            node.answers(frontend(number))
            node.places(frontend(number))

    for name, services, restart in script:
        node.watch(no_gap)
        if restart:
            node = Node(node.maps)
            await node.start()
            for known, held in wanted.items():
                node.planner.update(known, list(held.values()))
        wanted[name] = services
        node.planner.update(name, list(wanted[name].values()))
        await node.flush()
        for number in (1, 2, 3):
            claimants = [wanted[n][number] for n in sorted(wanted) if number in wanted[n]]
            at = frontend(number)
            if not claimants:
                assert node.head(at) is None
                continue
            first = claimants[0]
            assert node.answers(at) == expected(first)
            assert (node.places(at) or {}).keys() == (expected(first).keys() if first.algorithm else set())
            allowed = {prefix_text(each) for each in first.source_ranges} if first.flags else None
            assert node.may_ask(at) == allowed
            head = node.head(at)
            assert head is not None
            assert (head.affinity_seconds, head.algorithm) == (first.affinity_seconds, first.algorithm)
    states: dict[tuple[int, str], BackendState] = {}
    for _, held in served_by(node.planner):
        for backend, state in (*named(held.groups).items(), *named(held.resting).items()):
            states[backend] = min(state, states.get(backend, state))
    assert node.states() == states, "no backend is left behind, and each is in the best state that is said of it"
    ids = {unpack(ServiceValue, head).service_id for head in node.maps["services"].held.values()}
    kinds = {"slots": SlotsKey, "groups": GroupsKey, "source_ranges": SourceRangeKey}
    of = {unpack(kind, key).service_id for name, kind in kinds.items() for key in node.maps[name].held}
    of |= {unpack(Number, key).number for key in node.maps["maglev"].held}
    assert of <= ids, "nor a slot, a table or a range"


async def test_a_restart_changes_no_entry() -> None:
    node = Node()
    await node.start()
    more = {
        "algorithm": Algorithm.MAGLEV,
        "flags": ServiceFlag.SOURCE_RANGES,
        "resting": groups({(2, 1), (2, 2)}, BackendState.TERMINATING),
        "source_ranges": (parse_prefix("10.0.0.0/8"), parse_prefix("fd00::/8")),
    }
    services = {n: entry(n, {(1, n), (2, n + 1), (3, 5)}, **(more if n == 3 else {})) for n in (3, 1, 2)}
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


@pytest.mark.parametrize("state", [BackendState.TERMINATING, BackendState.QUARANTINED, BackendState.MAINTENANCE])
async def test_a_backend_that_rests_keeps_its_number_and_gets_no_slot(state: BackendState) -> None:
    node = Node()
    node.planner.update(("n", "s"), [entry(1, {(1, 1), (2, 1)})])
    await node.flush()
    numbers = node.maps["backends"].held.keys()
    for resting, served in (({(1, 1)}, {(2, 1)}), ({(1, 1), (2, 1)}, set()), (set(), {(1, 1), (2, 1)})):
        node.planner.update(("n", "s"), [entry(1, served, resting=groups(resting, state))])
        await node.flush()
        assert (node.answers(frontend(1)) or {}).keys() == {(c, f"10.{c}.0.{n}:8080") for c, n in served}
        assert node.maps["backends"].held.keys() == numbers
        assert [each for each in node.states().values() if each] == [state] * len(resting)


async def test_of_a_backend_in_two_states_the_map_says_the_better() -> None:
    node, at = Node(), (1, "10.1.0.1:8080")
    said = {"a": BackendState.ACTIVE, "b": BackendState.TERMINATING, "c": BackendState.MAINTENANCE}
    for number, (name, state) in enumerate(said.items()):
        here = groups({(1, 1)}, state)
        rests = state is not BackendState.ACTIVE
        each = entry(number, [], resting=here) if rests else ServiceEntry(frontend(number), here)
        node.planner.update(("n", name), [each])
    for name, state in said.items():
        await node.flush()
        assert node.states() == {at: state}
        node.planner.update(("n", name), [])
    await node.flush()
    assert node.states() == {}


async def test_a_table_has_as_many_places_of_each_as_its_weight_says() -> None:
    node = Node()
    those = (Group(1, 20, groups({(1, 1), (1, 2)})[0].alike), Group(1, 80, groups({(1, 3)})[0].alike))
    node.planner.update(("n", "s"), [ServiceEntry(frontend(1), those, algorithm=Algorithm.MAGLEV)])
    await node.flush()
    assert node.places(frontend(1)) == {(1, "10.1.0.1:8080"): 102, (1, "10.1.0.2:8080"): 102, (1, "10.1.0.3:8080"): 817}


async def test_nodes_that_know_of_services_in_another_order_have_the_same_table() -> None:
    nodes, found = [Node(), Node()], []
    services = [entry(n, {(1, n), (2, n + 1), (3, 5)}, algorithm=Algorithm.MAGLEV) for n in range(4)]
    for node, order in zip(nodes, (services, services[::-1]), strict=True):
        for each in order:
            node.planner.update(("n", text(each.frontend.address)), [each])
        await node.flush()
        heads = [node.head(each.frontend) for each in services]
        tables = [node.maps["maglev"].held[pack(Number(head.service_id))] for head in heads if head]
        found.append([[*map(node.backend, unpack_each(Number, table))] for table in tables])
    assert found[0] == found[1]


async def test_who_has_it_as_a_cluster_ip_is_served_before_who_says_that_it_is_reached_there() -> None:
    node = Node()
    node.planner.update(("n", "a"), [entry(1, {(1, 1)}, kind=Kind.EXTERNAL_IP)])
    node.planner.update(("n", "b"), [entry(1, {(1, 2)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.2:8080"): 1}
    assert node.planner.conflicts() == {frontend(1): [("n", "b"), ("n", "a")]}


async def test_a_number_that_ranges_are_left_of_is_not_given_to_another() -> None:
    node = Node()
    await node.start()
    node.planner.update(("n", "s"), [entry(1, [], flags=1, source_ranges=(parse_prefix("10.0.0.0/8"),))])
    await node.flush()
    node.maps["services"].held.clear()  # as an agent leaves them that is killed before it wrote the service
    node.maps["groups"].held.clear()
    node = Node(node.maps)
    await node.start()
    node.planner.update(("n", "t"), [entry(2, [], flags=1, source_ranges=(parse_prefix("192.0.2.0/24"),))])
    await node.reconciler.flush()
    assert node.may_ask(frontend(2)) == {"192.0.2.0/24"}


async def test_ranges_that_went_while_no_agent_ran_let_nobody_in_any_more_before_anything_else_is_deleted() -> None:
    wide, narrow, other = map(parse_prefix, ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"))
    node = Node()
    await node.start()
    node.planner.update(("n", "s"), [entry(1, {(1, 1)}, flags=1, source_ranges=(wide, other))])
    node.planner.update(("n", "t"), [entry(2, {(1, 1)}, flags=1, source_ranges=(wide,))])
    node.planner.update(("n", "u"), [entry(3, {(1, 1)}, flags=1, source_ranges=(wide,))])
    await node.flush()
    node = Node(node.maps)
    node.keep_unclaimed()
    await node.start()
    node.planner.update(("n", "s"), [entry(1, {(1, 1)}, flags=1, source_ranges=(narrow, other))])
    node.planner.update(("n", "t"), [entry(2, {(1, 1)})])
    await node.reconciler.flush()
    assert node.may_ask(frontend(1)) == {"10.1.0.0/16", "192.0.2.0/24"}
    assert node.may_ask(frontend(3)) == {"10.0.0.0/8"}, "nobody has spoken of it yet"
    assert len(node.maps["source_ranges"].held) == 3
    node.planner.update(("n", "s"), [entry(1, {(1, 1)}, flags=1, source_ranges=(narrow,))])
    await node.reconciler.flush()
    assert node.may_ask(frontend(1)) == {"10.1.0.0/16"}


async def test_more_groups_than_a_program_reads_are_refused() -> None:
    node = Node()
    those = tuple(Group(number, 1, groups({(1, 1)})[0].alike) for number in range(513))
    with pytest.raises(Unavailable, match="513 groups"):
        node.planner.update(("n", "s"), [ServiceEntry(frontend(1), those)])
    assert not any(each.desired for each in node.trackers)


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


def of_service(name: str) -> st.SearchStrategy[tuple[str, dict[int, ServiceEntry], bool]]:
    return st.tuples(st.just(name), tables(10 * "abcd".index(name)), st.booleans())


@given(
    st.lists(st.sampled_from("abcd").flatmap(of_service), max_size=12),
    st.tuples(*(st.integers(0, most) for most in (12, 12, 4, 2, 3, 4))),
)
async def test_in_maps_that_are_full_no_choice_falls_on_what_is_gone_or_found_no_room(
    script: list[tuple[str, dict[int, ServiceEntry], bool]], most: tuple[int, ...]
) -> None:
    node = Node(most=most)
    asked: dict[str, dict[Frontend, ServiceEntry]] = {}
    for name, services, may_delete in script:
        entries = [*services.values()]
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
        for at, found in served.items():
            assert (node.answers(at) or {}).keys() == expected(found).keys()
            assert (node.places(at) or {}).keys() <= expected(found).keys()
            allowed = {prefix_text(each) for each in wanted[at].source_ranges}
            assert (node.may_ask(at) is None) == (not wanted[at].flags)
            assert not may_delete or (node.may_ask(at) or set()) <= allowed


async def test_while_nothing_is_deleted_a_service_keeps_what_it_had_and_wants_and_then_has_the_rest() -> None:
    node = Node(most=(3, *[9] * 5))
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


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_a_service_whose_clusters_come_and_go_is_at_every_write_as_it_was_or_is(
    algorithm: Algorithm,
) -> None:
    node, before = Node(), dict[tuple[int, str], int]()
    for clusters in ({2, 3}, {1, 2, 3}, {3}, {1}, set(range(1, 12)), {5, 9}, {9}):
        backends = {(cluster, number) for cluster in clusters for number in range(1, 4)}
        more = {"algorithm": algorithm, "flags": 1, "source_ranges": (parse_prefix("10.0.0.0/8"),)}
        now = entry(1, backends, **more)
        found = list[dict[tuple[int, str], int] | None]()
        node.watch(lambda found=found: found.append(node.answers(frontend(1))))
        node.planner.update(("n", "s"), [now])
        await node.flush()
        assert all(each in (before or None, expected(now)) for each in found)
        assert (node.places(frontend(1)) or expected(now)).keys() == expected(now).keys()
        assert node.may_ask(frontend(1)) == {"10.0.0.0/8"}
        ids = {unpack(SlotsKey, key).service_id for key in node.maps["slots"].held}
        ids |= {unpack(GroupsKey, key).service_id for key in node.maps["groups"].held}
        assert len(ids) == len(node.maps["source_ranges"].held) == 1, "nothing is left of what it was"
        before = expected(now)


async def test_clients_that_stay_do_so_by_a_number_that_stays() -> None:
    node = Node()
    for clusters in ({2, 3}, {1, 2, 3}):
        node.planner.update(("n", "s"), [entry(1, {(each, 1) for each in clusters}, affinity_seconds=60)])
        await node.flush()
        head = node.head(frontend(1))
        assert head is not None
        assert head.service_id == 1


async def test_those_that_rest_take_no_room_from_new_connections() -> None:
    node = Node(most=(3, *[9] * 5))
    leaving = groups({(1, 7), (1, 8), (1, 9)}, BackendState.TERMINATING)
    with pytest.raises(Unavailable, match="does not know all of the backends that are given to nobody"):
        node.planner.update(("n", "a"), [entry(1, {(1, 1), (1, 2)}, resting=leaving)])
    await node.flush()
    assert (node.answers(frontend(1)) or {}).keys() == {(1, "10.1.0.1:8080"), (1, "10.1.0.2:8080")}
    assert sorted(node.states().values()) == [BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING]
    with pytest.raises(Unavailable, match="is not there"):
        node.planner.update(("n", "b"), [entry(2, {(2, 1)})])


async def test_all_of_a_services_backends_are_replaced_in_a_full_map() -> None:
    node = Node(most=(2, *[9] * 5))
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
    node = Node(most=(9, 2, *[9] * 4))
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
    node = Node(most=(40, 2, 2, 0, 0, 2))
    node.planner.update(("n", "a"), [entry(1, {(1, 1), (2, 1)})])
    with pytest.raises(Unavailable, match="1 more entries of the map lb_slots, where 2 of 2 are taken"):
        node.planner.update(("n", "b"), [entry(2, {(1, 1)})])
    node.planner.update(("n", "a"), [entry(1, {(1, 1)})])
    node.planner.update(("n", "b"), [entry(2, {(1, 1)})])
    await node.flush()
    assert node.answers(frontend(1)) == {(1, "10.1.0.1:8080"): 1} == node.answers(frontend(2))
