"""Services as map entries, looked up as the program looks them up, against the merged services they come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import Backend as BackendEntry
from agent.bpf.layouts import BackendKey, ServiceKey, ServiceValue, ipv4, ipv4_text
from agent.plan.services import ServicePlanner
from clustermesh.mesh.merge import Backend, Frontend
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler, Tracker

TCP = Protocol.TCP
Name = tuple[str, str]


class Map:
    """A map of the kernel, which calls `watch` after every single entry it takes or drops."""

    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}
        self.watch = lambda: None

    async def dump(self) -> Mapping[Any, Any]:
        return dict(self.held)

    async def upsert(self, entries: Mapping[Any, Any]) -> None:
        for key, value in self._ordered(entries):
            self.held[key] = value
            self.watch()

    async def delete(self, keys: Collection[Any]) -> None:
        for key in sorted(keys, key=lambda key: getattr(key, "slot", 0) != 0):
            self.held.pop(key, None)
            self.watch()

    @staticmethod
    def _ordered(entries: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        return sorted(entries.items(), key=lambda entry: getattr(entry[0], "slot", 1) == 0)


class Node:
    """A planner over two maps, as an agent has them; a second one over the same maps is the agent started again."""

    def __init__(self, services: Map, backends: Map) -> None:
        self.services, self.backends = services, backends
        self.on_services = Tracker[ServiceKey, ServiceValue]("services", services)
        self.on_backends = Tracker[BackendKey, BackendEntry]("backends", backends)
        self.reconciler = Reconciler(self.on_backends, self.on_services)
        self.planner = ServicePlanner(self.on_services, self.on_backends)

    async def start(self) -> None:
        await self.reconciler.adopt()
        self.planner.adopt()

    async def flush(self) -> None:
        self.reconciler.may_delete = True
        await self.reconciler.flush()

    def answers(self, frontend: Frontend) -> set[str] | None:
        """Every address a connection to `frontend` can reach now; None where there is no such service."""
        key = ServiceKey(ipv4(frontend.address), frontend.port, 0, 6)
        master = self.services.held.get(key)
        if master is None:
            return None
        found = set()
        for slot in range(1, master.slots + 1):
            entry = self.backends.held[BackendKey(self.services.held[key._replace(slot=slot)].backend_id)]
            found.add(f"{ipv4_text(entry.address)}:{entry.port}")
        return found


def frontend(number: int) -> Frontend:
    return Frontend(f"10.96.0.{number}", 80, TCP)


def backends(numbers: Collection[int]) -> tuple[Backend, ...]:
    return tuple(Backend(1 + n % 2, f"10.0.0.{n}", 8080, TCP) for n in sorted(numbers))


merged = st.dictionaries(st.builds(frontend, st.integers(1, 3)), st.builds(backends, st.sets(st.integers(1, 6))))
updates = st.lists(st.tuples(st.sampled_from([("n", "a"), ("n", "b")]), merged, st.booleans()), max_size=12)


@given(updates)
async def test_lookups_agree_with_the_merged_services_and_never_meet_a_gap(
    script: list[tuple[Name, dict[Frontend, tuple[Backend, ...]], bool]],
) -> None:
    node = Node(Map(), Map())
    await node.start()
    wanted: dict[Name, dict[Frontend, tuple[Backend, ...]]] = {}

    def no_gap() -> None:
        for number in (1, 2, 3):
            node.answers(frontend(number))  # a slot or backend that is not there raises KeyError

    for name, services, restart in script:
        node.services.watch = node.backends.watch = no_gap
        if restart:
            node = Node(node.services, node.backends)
            await node.start()
            for known, held in wanted.items():
                node.planner.update(known, held)
        node.planner.update(name, services)
        wanted[name] = services
        await node.flush()
        for number in (1, 2, 3):
            claimants = [wanted[n][frontend(number)] for n in sorted(wanted) if frontend(number) in wanted[n]]
            expected = {f"{b.address}:{b.port}" for b in claimants[0]} if claimants else None
            assert node.answers(frontend(number)) == expected
    used = {b for held in node.planner.programmed.values() for b in held}
    assert len(node.backends.held) == len(used), "no backend is left behind"


async def test_a_restart_changes_no_entry() -> None:
    node = Node(Map(), Map())
    await node.start()
    for n in (3, 1, 2):
        node.planner.update(("n", f"s{n}"), {frontend(n): backends({n, n + 1, 5})})
    await node.flush()
    before = dict(node.services.held), dict(node.backends.held)
    again = Node(node.services, node.backends)
    await again.start()
    for n in (1, 2, 3):
        again.planner.update(("n", f"s{n}"), {frontend(n): backends({n, n + 1, 5})})
    writes: list[int] = []
    node.services.watch = node.backends.watch = lambda: writes.append(1)
    await again.flush()
    assert writes == []
    assert (node.services.held, node.backends.held) == before


async def test_a_backends_number_is_not_used_again_at_once() -> None:
    node = Node(Map(), Map())
    await node.start()
    node.planner.update(("n", "s"), {frontend(1): backends({1})})
    await node.flush()
    (first,) = node.backends.held
    node.planner.update(("n", "s"), {frontend(1): backends({2})})
    await node.flush()
    (second,) = node.backends.held
    assert first != second


async def test_two_services_with_one_frontend_are_a_conflict_and_the_first_is_served() -> None:
    node = Node(Map(), Map())
    node.planner.update(("n", "b"), {frontend(1): backends({2})})
    node.planner.update(("n", "a"), {frontend(1): backends({1})})
    await node.flush()
    assert node.answers(frontend(1)) == {"10.0.0.1:8080"}
    assert node.planner.conflicts() == {frontend(1): [("n", "a"), ("n", "b")]}
    node.planner.update(("n", "a"), {})
    await node.flush()
    assert node.answers(frontend(1)) == {"10.0.0.2:8080"}
    assert node.planner.conflicts() == {}


async def test_a_service_without_backends_is_there_and_empty() -> None:
    node = Node(Map(), Map())
    node.planner.update(("n", "s"), {frontend(1): ()})
    await node.flush()
    assert node.answers(frontend(1)) == set()
