"""Which sockets lose their backend, and when they are looked for: over sockets and services that are only said."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from fake_kernel import VIP, Bed
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import MeantValue, pack_service_key
from agent.domains import eviction
from agent.domains.eviction import Eviction
from agent.eviction import verdict
from agent.eviction.evictor import Evicted, Outcome
from agent.eviction.meaning import Meant
from agent.eviction.verdict import Reason
from clustermesh.address import from_int, parse
from clustermesh.mesh.resolve import Backends, Frontend, Group, Scope, ServiceEntry
from clustermesh.model import BackendState, Endpoint, Protocol

OTHER = parse("10.96.0.2")
KEY = pack_service_key(VIP, 80, 6, Scope.ANY)


def meaning(backend: str, port: int = 80, service: Any = VIP, service_port: int = 80, protocol: int = 6) -> MeantValue:
    return MeantValue(service, parse(backend), service_port, port, 1, protocol)


def entry(*groups: Group, resting: Iterable[Group] = ()) -> ServiceEntry:
    return ServiceEntry(Frontend(VIP, 80, Protocol.TCP), groups, resting=tuple(resting))


def group(cluster: int, *backends: str, port: int = 80, state: BackendState = BackendState.ACTIVE) -> Group:
    return Group(cluster, len(backends), (Backends(tuple(map(parse, backends)), port, state),))


WEB = entry(
    group(1, "10.1.1.5", "10.1.1.6"),
    group(2, "10.2.2.5", "10.1.1.6"),
    resting=[group(1, "10.1.1.7", state=BackendState.TERMINATING)],
)


@pytest.mark.parametrize(
    ("asked", "evicted", "why"),
    [
        (meaning("10.1.1.5"), set(), None),
        (meaning("10.1.1.5"), {2}, None),
        (meaning("10.1.1.7"), set(), None),
        (meaning("10.1.1.8"), set(), Reason.BACKEND),
        (meaning("10.1.1.5", port=81), set(), Reason.BACKEND),
        (meaning("10.2.2.5"), set(), None),
        (meaning("10.2.2.5"), {2}, Reason.CLUSTER),
        (meaning("10.1.1.6"), {2}, None),
        (meaning("10.1.1.6"), {1, 2}, Reason.CLUSTER),
        (meaning("10.1.1.5", service_port=81), set(), Reason.SERVICE),
        (meaning("10.1.1.5", protocol=17), set(), Reason.SERVICE),
        (meaning("10.1.1.5", service=OTHER), set(), None),  # the kernel has it still, and nobody spoke of it yet
    ],
    ids=str,
)
def test_what_went_is_the_service_the_backend_or_its_whole_cluster(
    asked: MeantValue, evicted: set[int], why: Reason | None
) -> None:
    held = {pack_service_key(OTHER, 80, 6, Scope.ANY)}
    assert dict(verdict.gone([asked], {KEY: WEB}.get, held, evicted)) == {asked: why}


_NUMBERS = st.integers(1, 6)
_GROUPS = st.lists(st.tuples(st.integers(1, 3), st.lists(_NUMBERS, max_size=4)), max_size=4)


@given(
    services=st.dictionaries(_NUMBERS, st.tuples(_GROUPS, _GROUPS), max_size=5),
    sockets=st.sets(st.tuples(_NUMBERS, _NUMBERS)),
    held=st.sets(_NUMBERS),
    evicted=st.sets(st.integers(1, 3)),
)
def test_it_is_as_if_each_socket_were_looked_up_in_every_service(
    services: dict[int, Any], sockets: set[tuple[int, int]], held: set[int], evicted: set[int]
) -> None:
    def groups(of: Any) -> tuple[Group, ...]:
        return tuple(Group(c, len(n), (Backends(tuple(map(from_int, n)), 80),)) for c, n in of)

    def key(service: int) -> bytes:
        return pack_service_key(from_int(service), 80, 6, Scope.ANY)

    wanted = {
        key(each): ServiceEntry(Frontend(from_int(each), 80, Protocol.TCP), groups(used), resting=groups(rest))
        for each, (used, rest) in services.items()
    }
    asked = {MeantValue(from_int(s), from_int(b), 80, 80, b, 6): (s, b) for s, b in sockets}
    for each, why in verdict.gone(asked, wanted.get, {*map(key, held)}, evicted):
        service, backend = asked.pop(each)
        has = [c for part in services.get(service, ()) for c, numbers in part if backend in numbers]
        if service not in services:
            assert why == (None if service in held else Reason.SERVICE)
        elif not has:
            assert why == Reason.BACKEND
        else:
            assert why == (Reason.CLUSTER if set(has) <= evicted else None)
    assert not asked


class FakeTracked:
    """`connections` are those that are translated packet by packet, by what they mean."""

    def __init__(self) -> None:
        self.connections = Counter[MeantValue]()
        self.looks = 0

    def find(self) -> dict[MeantValue, int]:
        self.looks += 1
        return {asked: count for asked, count in self.connections.items() if count}

    def end(self, gone: Iterable[MeantValue]) -> int:
        return sum(self.connections.pop(asked) for asked in gone)


class FakeEvictor:
    """`sockets` are open, by what they mean. `fail` is raised while it is set, `unswept` what a sweep says."""

    def __init__(self, *sockets: MeantValue) -> None:
        self.sockets = Counter(sockets)
        self.looks = 0
        self.fail: Exception | None = None
        self.tracked = FakeTracked()
        self.swept: Meant | None = None
        self.unswept = ""

    def find(self) -> Meant:
        self.looks += 1
        if self.fail is not None:
            raise self.fail
        return {asked: [1] * count for asked, count in self.sockets.items() if count}

    def evict(self, gone: Meant, may_move: bool) -> Evicted:
        for asked in gone:
            del self.sockets[asked]
        return Evicted(Counter({Outcome.RESET: sum(map(len, gone.values()))}))

    def sweep(self, found: Meant) -> str:
        self.swept = found
        return self.unswept

    def close(self) -> None:
        pass


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    monkeypatch.setattr(eviction, "_IDLE", 0)
    made = Bed()
    made.add_node("alpha", 1)
    made.add_node("beta", 2)
    made.add_web("10.1.1.5", "10.1.1.6")
    made.connect("beta")
    made.add_remote_web("beta", "10.2.2.6")
    return made


@asynccontextmanager
async def looking(bed: Bed, evictor: FakeEvictor) -> AsyncIterator[Eviction]:
    made = Eviction(bed.domains.services, lambda: evictor)  # type: ignore[arg-type, return-value]
    await bed.step()
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


LOCAL, GOING, REMOTE = meaning("10.1.1.5"), meaning("10.1.1.6"), meaning("10.2.2.6")


async def test_what_went_while_no_agent_ran_is_found_by_the_next(bed: Bed) -> None:
    evictor = FakeEvictor(LOCAL, LOCAL, meaning("10.1.1.9"), REMOTE)
    async with looking(bed, evictor) as eviction:
        await until(lambda: eviction.counts)
    assert eviction.counts == {(Reason.BACKEND, Outcome.RESET): 1}
    assert evictor.sockets == {LOCAL: 2, REMOTE: 1}


async def test_a_change_of_services_ends_what_it_leaves_without_a_backend(bed: Bed) -> None:
    evictor = FakeEvictor(LOCAL, GOING, GOING, REMOTE)
    async with looking(bed, evictor) as eviction:
        await until(lambda: evictor.looks)
        assert eviction.counts == {}
        bed.add_web("10.1.1.5")
        await bed.step()
        await until(lambda: eviction.counts)
        assert evictor.sockets == {LOCAL: 1, REMOTE: 1}
        bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
        await bed.step()
        await until(lambda: eviction.counts.total() == 4)
    assert eviction.counts == {(Reason.BACKEND, Outcome.RESET): 2, (Reason.SERVICE, Outcome.RESET): 2}


async def test_connections_are_gone_over_at_first_and_where_a_backend_leaves_one_of_its_services(bed: Bed) -> None:
    evictor = FakeEvictor()
    tracked = evictor.tracked
    tracked.connections.update([LOCAL, GOING, meaning("10.1.1.9")])
    async with looking(bed, evictor) as eviction:
        await until(lambda: eviction.counts)
        assert (tracked.connections, tracked.looks) == ({LOCAL: 1, GOING: 1}, 1)
        bed.add_web("10.1.1.5")
        await bed.step()
        await until(lambda: evictor.looks > 1)
        assert tracked.looks == 1, "it is nobody's any more, which the programs see"
        bed.add_web("10.1.1.5", "10.1.1.6")
        bed.add_web("10.1.1.5", "10.1.1.6", name="too", vip=OTHER)
        await bed.step()
        bed.add_web("10.1.1.5")
        await bed.step()
        await until(lambda: tracked.looks == 2)
        await until(lambda: eviction.counts[Reason.BACKEND, "forgotten"] == 2)
        assert tracked.connections == {LOCAL: 1}
        bed.sink.remove("alpha", "local_services", ("n", "web"), 0)
        await bed.step()
        await until(lambda: eviction.counts[Reason.SERVICE, "forgotten"])
    assert (+tracked.connections, tracked.looks) == ({}, 3)


async def test_a_cluster_that_is_drained_keeps_its_sockets_and_one_that_is_evicted_does_not(bed: Bed) -> None:
    evictor = FakeEvictor(LOCAL, REMOTE)
    services = bed.domains.services
    async with looking(bed, evictor) as eviction:
        for factors in ({2: 0.5}, {2: 0.0}):
            looks = evictor.looks
            services.set_factors(factors, evicted={2} if factors[2] else set())
            await bed.step()
            await until(lambda looks=looks: evictor.looks > looks)  # type: ignore[misc]
            assert evictor.sockets == {LOCAL: 1, REMOTE: 1}
        services.set_factors({2: 0.0}, evicted={2})
        await bed.step()
        await until(lambda: eviction.counts)
    assert eviction.counts == {(Reason.CLUSTER, Outcome.RESET): 1}
    assert evictor.sockets == {LOCAL: 1}


async def test_a_socket_that_is_only_remembered_goes_on_while_there_is_a_pod_unless_the_cluster_is_evicted(
    bed: Bed,
) -> None:
    """It may speak with the pod itself by now."""
    left, of_beta, unknown = (each._replace(backend_id=0) for each in (meaning("10.1.1.9"), REMOTE, GOING))
    for address, cluster in ((left.backend, "alpha"), (of_beta.backend, "beta")):
        pod = Endpoint(ip=address, identity=0x10001, host_ip=parse("192.0.2.1"), namespace="n", pod_name="web")
        bed.say(cluster, "endpoints", address, pod)
    evictor = FakeEvictor(left, of_beta, unknown, meaning("10.1.1.9"))
    async with looking(bed, evictor) as eviction:
        await until(lambda: eviction.counts)
        assert evictor.sockets == {left: 1, of_beta: 1, unknown: 1}, "what lb_meant has is known to be so"
        bed.add_web("10.1.1.5")
        bed.domains.services.set_factors({2: 0.0}, evicted={2})
        await bed.step()
        await until(lambda: evictor.sockets == {left: 1})
        bed.sink.remove("alpha", "endpoints", left.backend)
        bed.add_web("10.1.1.6")
        await bed.step()
        await until(lambda: not evictor.sockets)


@pytest.mark.parametrize("failure", [OSError(1, "no"), RuntimeError("a bug")])
async def test_a_look_that_fails_is_a_problem_until_one_does_not(bed: Bed, failure: Exception) -> None:
    evictor = FakeEvictor(LOCAL)
    evictor.fail = failure
    async with looking(bed, evictor) as eviction:
        await until(lambda: eviction.error)
        evictor.fail = None
        await bed.step()
        await until(lambda: not eviction.error)


async def test_each_look_has_what_is_closed_taken_out_of_what_was_found(bed: Bed) -> None:
    evictor = FakeEvictor(LOCAL)
    evictor.unswept = "it is not known"
    async with looking(bed, evictor) as eviction:
        await until(lambda: eviction.error == "it is not known")
        assert evictor.swept == {LOCAL: [1]}
        evictor.unswept = ""
        await bed.step()
        await until(lambda: not eviction.error)
