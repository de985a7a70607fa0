"""When an agent writes its report; and a cluster of 5,000 of them over hours, with a clock of its own."""

from __future__ import annotations

import asyncio
import functools
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from agent.registration import Registration
from agent.reporter import Reporter
from clustermesh.model import AgentRecord, Identity, Label
from clustermesh.store.operations import KeyValue
from clustermesh.wire import agent_report, local
from clustermesh.wire.agent_report import AgentReport, SeenCluster

LARGE = 5000


@functools.cache
def said(
    *own: str,
    shared: tuple[str, ...] = (),
    beta: str = "fresh",
    endpoints: int = 0,
    clusters: int = 2,
    since: int = 0,
    took: int = 0,
) -> AgentReport:
    names = ["alpha", "beta", *(f"cluster-{number}" for number in range(2, clusters))]
    seen = [
        SeenCluster(name, "fresh", number, 1.7e9 + number, nodes=100, services=40, endpoints=2000, identities=300)
        for number, name in enumerate(names, start=1)
    ]
    changes = {"state": beta, "since": 1.7e9 + since, "endpoints": endpoints, "error": "no answer" * (beta != "fresh")}
    changes["propagation_ms"] = took
    seen[1] = msgspec.structs.replace(seen[1], **changes)
    return AgentReport("0.1.0", "", own, tuple(seen), shared)


class Agent:
    """A reporter whose writes always succeed; `at` is the last second at which it was asked."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.5, nodes: int = LARGE) -> None:
        self.reporter, self.nodes, self.at = Reporter(draw), nodes, 0

    def hear(self, words: AgentReport, now: int) -> bool:
        self.at = now
        value = self.reporter.hear(words, now, self.nodes)
        if value is not None:
            self.reporter.wrote(words, value)
        return value is not None

    def until_it_writes(self, words: AgentReport, limit: int = 100_000) -> int:
        """After how many seconds of the same."""
        began = self.at
        return next(now - began for now in range(began, began + limit) if self.hear(words, now))


@pytest.fixture
def large() -> Agent:
    agent = Agent()
    agent.until_it_writes(said())
    agent.hear(said(), agent.at + 4000)
    return agent


def test_what_concerns_this_node_alone_is_written_at_once(large: Agent) -> None:
    assert large.until_it_writes(said("node set-up: no device")) == 0


def test_what_all_nodes_see_is_spread_over_them(large: Agent) -> None:
    assert large.until_it_writes(said(beta="stale")) == LARGE // 14 + 1
    assert large.until_it_writes(said(shared=("backends: full",), beta="stale")) >= LARGE // 14


def test_what_is_over_before_its_turn_is_never_written(large: Agent) -> None:
    for seconds in range(100):
        assert not large.hear(said(beta="stale"), large.at + 1), seconds
    assert not any(large.hear(said(), large.at + 1) for _ in range(1000))


def test_counts_are_written_seldom_and_so_are_numbers_in_sentences(large: Agent) -> None:
    assert large.until_it_writes(said(endpoints=7)) == LARGE * 0.72
    large.hear(said(endpoints=7), large.at + 4000)
    assert large.until_it_writes(said(endpoints=7, took=50)) == LARGE * 0.72
    assert large.until_it_writes(said("backends: 5 entries not applied", endpoints=7)) < 60
    large.hear(said("backends: 5 entries not applied", endpoints=7), large.at + 4000)
    assert large.until_it_writes(said("backends: 6 entries not applied", endpoints=7)) == LARGE * 0.72


def test_few_nodes_write_every_change_of_state_at_once() -> None:
    agent = Agent(nodes=4)
    for words in (said(), said(beta="stale"), said("x", beta="stale"), said(shared=("y",)), said()):
        assert agent.until_it_writes(words) == 0
    assert agent.until_it_writes(said(endpoints=1)) < 5


def test_a_report_that_an_earlier_agent_wrote_is_not_written_again() -> None:
    agent = Agent()
    agent.reporter.found(agent_report.encode(said()))
    assert not any(agent.hear(said(), now) for now in range(100_000))
    assert agent.until_it_writes(said(beta="stale")) == LARGE // 14 + 1


def test_a_report_that_is_gone_is_written_again_in_turn(large: Agent) -> None:
    large.reporter.found(b"")
    assert large.until_it_writes(said()) == LARGE // 7 + 1


def test_a_node_that_does_not_know_the_others_yet_waits_a_little_and_then_in_turn() -> None:
    agent = Agent(nodes=0)
    assert agent.until_it_writes(said()) == 5
    agent = Agent(nodes=0)
    assert not agent.hear(said(), 0)
    agent.nodes = LARGE
    assert agent.until_it_writes(said()) == LARGE // 7 + 1


def test_nodes_that_flap_write_no_more_than_their_share() -> None:
    agent, sizes = Agent(), []
    for now in range(4 * 3600):
        words = said(*(["it flaps"] * (now % 2)), clusters=50)
        if agent.hear(words, now):
            sizes.append((now, len(agent_report.encode(words))))
    for hour in range(0, 4 * 3600, 600):
        assert sum(size for now, size in sizes if hour <= now < hour + 3600) * LARGE <= 50e6
    assert len(sizes) >= 4


class World:
    """5,000 agents, 50 clusters. An agent is asked when something changed for it, and when it said that it is due."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.reporters = [Reporter(random.Random(self.rng.random()).random) for _ in range(LARGE)]
        self.own = [0] * LARGE
        self.beta, self.since, self.endpoints, self.shared = "fresh", 0, 0, ()
        self.asked: list[tuple[float, int]] = []
        self.writes: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()

    def act(self, now: int) -> None:
        """Nodes fail and recover by themselves; once in a while something changes for all."""
        match self.rng.randrange(400):
            case 0:
                self.beta, self.since = ("stale" if self.beta == "fresh" else "fresh"), now
            case 1:
                self.shared = () if self.shared else ("backends: the map is full",)
            case 2:
                self.endpoints += 1
            case 3:  # an etcd that came back empty
                for reporter in self.reporters:
                    reporter.found(b"")
            case _:
                number = self.rng.randrange(LARGE)
                self.own[number] ^= 1
                heapq.heappush(self.asked, (now, number))
                return
        for number in range(LARGE):
            heapq.heappush(self.asked, (now, number))

    def pass_by(self, until: int) -> None:
        while self.asked and self.asked[0][0] <= until:
            now, number = heapq.heappop(self.asked)
            reporter, words = self.reporters[number], self.words(self.own[number])
            value = reporter.hear(words, now, LARGE)
            if value is not None:
                reporter.wrote(words, value)
                self.writes[int(now)] += 1
                self.bytes[int(now)] += len(value) + 60
            elif reporter.due(LARGE) < math.inf:
                heapq.heappush(self.asked, (reporter.due(LARGE) + 1e-6, number))

    def words(self, own: int) -> AgentReport:
        fault = ["its own fault"] * own
        return said(*fault, shared=self.shared, beta=self.beta, endpoints=self.endpoints, since=self.since, clusters=50)


class Clock:
    """A clock that goes on when it is told to; who sleeps by it counts as one turn each time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._asleep: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._asleep, (self.now + seconds, next(self._order), future))
        await future

    async def pass_by(self, until: float) -> None:
        await self._let_go()
        while self._asleep and self._asleep[0][0] <= until:
            self.now, _, future = heapq.heappop(self._asleep)
            future.set_result(None)
            await self._let_go()
        self.now = until

    async def _let_go(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


class Record:
    """What etcd holds of one node; each write of it is counted, by its second."""

    def __init__(self, clock: Clock, writes: Counter[int], value: bytes) -> None:
        self._clock, self._writes, self.value = clock, writes, value

    async def get(self, key: bytes) -> KeyValue:
        return KeyValue(key, self.value, 1, 0, 1)

    async def swap(self, _key: bytes, _expected_mod_revision: int, value: bytes) -> bool:
        self.value = value
        self._writes[int(self._clock.now)] += 1
        return True


class Records:
    """The records of 5,000 agents, in whose pods' labels something changes for all of them at once."""

    def __init__(self, tasks: asyncio.TaskGroup, nodes: int) -> None:
        self.clock, self.writes, self._rng = Clock(), Counter[int](), random.Random(1)
        records = [AgentRecord(node=f"n{n}", wireguard_public_key="A" * 43 + "=", boot_id="b") for n in range(nodes)]
        self._agents = [Registration(each, sleep=self.clock.sleep, draw=self._rng.random) for each in records]
        self._tasks = [
            tasks.create_task(agent._write_news(self._record(each), lambda: nodes))  # type: ignore[arg-type]
            for agent, each in zip(self._agents, records, strict=True)
        ]

    def _record(self, said: AgentRecord) -> Record:
        return Record(self.clock, self.writes, local.encode_agent(said))

    def relabel(self, number: int) -> None:
        for agent in self._agents:
            agent.remember((Identity(id=number, labels=(Label(source="k8s", key="app", value="web"),)),))

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@pytest.mark.long
async def test_5000_nodes_with_50_clusters_write_20_times_a_second_and_50_mb_an_hour_at_most() -> None:
    """Reports and records together, while a label of all nodes' pods changes every ten minutes."""
    world, seconds = World(0), 4000
    world.asked = [(0, number) for number in range(LARGE)]
    async with asyncio.TaskGroup() as tasks:
        records = Records(tasks, LARGE)
        for now in range(0, seconds, 5):
            world.pass_by(now)
            world.act(now)
            await records.clock.pass_by(now)
            if now % 600 == 0:
                records.relabel(70_000 + now)
        records.stop()
    writes = world.writes + records.writes
    assert sum(world.writes.values()) > 2 * LARGE
    assert sum(records.writes.values()) > 2 * LARGE
    for window in range(seconds):
        assert sum(writes[now] for now in range(window, window + 10)) <= 200
    for hour in range(0, seconds, 300):
        assert sum(world.bytes[now] for now in range(hour, hour + 3600)) <= 50e6


async def test_records_of_few_nodes_are_written_at_once() -> None:
    async with asyncio.TaskGroup() as tasks:
        records = Records(tasks, 3)
        for number in (1, 2):
            records.relabel(number)
            await records.clock.pass_by(0)
        records.stop()
    assert records.writes == {0: 6}
