"""A domain: one item, one target or one bug keeps nothing else from being done, and an audit delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping

import pytest

from agent.domains import domain as agent_domain
from agent.domains.domain import Domain, audit_pause
from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.reconcile import Reconciler, Tracker
from clustermesh.retries import FIRST


class Table:
    """A target that is a dictionary, read an entry at a time. Cleared, `goes_on` makes every call hang."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.asked = 0
        self.on_page: Callable[[], object] = lambda: None

    async def dump(self) -> Mapping[str, int]:
        return dict(self.held)

    async def pages(self) -> AsyncIterator[Mapping[str, int]]:
        for key, value in list(self.held.items()):
            self.on_page()
            yield {key: value}

    async def upsert(self, entries: Mapping[str, int]) -> None:
        self.asked += 1
        await self.goes_on.wait()
        self.held |= entries

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.held.pop(key, None)


class Words(Domain[str]):
    """Plans the length of each word that is put into `source`; 13 letters are one too many."""

    name = "words"

    def __init__(self) -> None:
        self.now = 1000.0
        self.table = Table()
        self.tracker = Tracker[str, int]("lengths", self.table, clock=lambda: self.now)
        super().__init__(Reconciler(self.tracker), clock=lambda: self.now)
        self.source: set[str] = set()
        self.longest = 12
        self.planned: list[str] = []
        self.broken = False
        self.full: ClusterMeshError | None = None

    def say(self, *words: str) -> None:
        self.source.update(words)
        self.wake()

    def take(self) -> Iterable[str]:
        if self.broken:
            raise ZeroDivisionError("a bug in what is taken")
        taken, self.source = sorted(self.source), set()
        return taken

    def plan(self, item: str) -> None:
        self.planned.append(item)
        if self.full is not None:
            raise self.full
        if len(item) > self.longest:
            raise ValueError("too long")
        self.tracker.set(item, len(item))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_what_is_dirty_is_planned_and_applied_once() -> None:
    words = Words()
    words.say("one", "three")
    await words.step()
    await words.step()
    assert words.table.held == {"one": 3, "three": 5}
    assert words.planned == ["one", "three"]
    assert words.settled


async def test_it_is_not_settled_while_what_was_taken_is_not_planned() -> None:
    words = Words()
    settled: list[bool] = []
    plan = words.plan
    words.plan = lambda item: (settled.append(words.settled), plan(item))[-1]  # type: ignore[method-assign]
    words.say("one", "three")
    await words.step()
    assert settled == [False, False]
    assert words.settled


async def test_an_item_that_cannot_be_planned_is_its_own_problem(caplog: pytest.LogCaptureFixture) -> None:
    words = Words()
    words.say("aaa-thirteen-letters", "one")
    await words.step()
    assert words.table.held == {"one": 3}
    assert "too long" in words.problems["aaa-thirteen-letters"].sentence
    assert caplog.text.count("cannot be planned") == 1
    words.planned.clear()
    words.say("two")
    await words.step()
    assert words.planned == ["two"], "not due yet"
    words.now += 60.0
    words.longest = 30
    await words.step()
    assert words.table.held["aaa-thirteen-letters"] == 20
    assert not words.problems


async def test_an_item_that_finds_no_room_says_so_and_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    words = Words()
    words.full = Unavailable("no room for it")
    words.say("alpha")
    await words.step()
    words.now += 60.0
    await words.step()
    assert [problem.sentence for problem in words.problems.values()] == ["no room for it"]
    assert caplog.messages == ["words: alpha: no room for it"]


async def test_an_item_that_changed_does_not_wait_as_long_as_it_would_have_as_it_was() -> None:
    words = Words()
    words.full = Unavailable("no room for it")
    words.say("alpha")
    for _ in range(9):
        await words.step()
        words.now += 60.0
    words.say("alpha")
    words.planned.clear()
    await words.step()
    assert words.planned == ["alpha"], "once, though it was due as well"
    words.now += FIRST
    words.full = None
    await words.step()
    assert words.table.held == {"alpha": 5}


async def test_an_item_with_a_problem_is_planned_at_once_when_it_changes() -> None:
    words = Words()
    words.say("aaa-thirteen-letters")
    await words.step()
    words.longest = 30
    words.say("aaa-thirteen-letters")
    await words.step()
    assert not words.problems


async def test_a_bug_outside_of_planning_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_domain, "_BREATH", 0.0)
    words = Words()
    words.broken = True
    words.say("one")
    running = asyncio.create_task(words.run())
    await until(lambda: words.fault)
    words.broken = False
    await until(lambda: words.table.held)
    await until(lambda: not words.fault)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_it_sleeps_until_it_is_woken() -> None:
    words = Words()
    running = asyncio.create_task(words.run())
    await until(lambda: words.ended)
    for _ in range(20):
        await asyncio.sleep(0)
    assert words.ended == 1
    words.say("one")
    await until(lambda: words.table.held)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_one_that_hangs_keeps_no_other_waiting() -> None:
    stuck, free = Words(), Words()
    stuck.table.goes_on.clear()
    tasks = [asyncio.create_task(each.run()) for each in (stuck, free)]
    stuck.say("one")
    await until(lambda: stuck.table.asked)
    free.say("two")
    await until(lambda: free.table.held)
    assert stuck.table.held == {}, "and it still hangs"
    stuck.table.goes_on.set()
    await until(lambda: stuck.table.held)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_changes_during_an_audit_does_not_wait_for_its_end() -> None:
    words = Words()
    words.say(*(f"word {number}" for number in range(100)))
    await words.step()
    pages = 0

    def on_page() -> None:
        nonlocal pages
        pages += 1
        if pages == 10:
            words.say("one more")
        assert pages < 15 or "one more" in words.table.held

    words.table.on_page = on_page
    await words.audit()
    assert pages >= 100
    assert words.tracker.drift == 0


async def test_an_audit_counts_what_others_changed_and_the_next_step_repairs_it() -> None:
    words = Words()
    words.say("one", "two", "three")
    await words.step()
    words.allow_deletes()
    words.allow_pruning()
    words.table.held = {"one": 1, "two": 3, "four": 4}
    await words.audit()
    assert words.tracker.drift == 3
    await words.step()
    assert words.table.held == {"one": 3, "two": 3, "three": 5}


async def test_others_have_a_turn_while_much_is_planned() -> None:
    words, turns = Words(), 0
    plan = words.plan

    def plan_in_a_millisecond(item: str) -> None:
        words.now += 0.001
        plan(item)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    words.plan = plan_in_a_millisecond  # type: ignore[method-assign]
    words.say(*(f"w{number}" for number in range(1000)))
    counting = asyncio.create_task(count())
    await words.step()
    counting.cancel()
    assert turns >= 100, "ten milliseconds of planning, and somebody else has had a turn"


@pytest.mark.parametrize(("took", "pause"), [(0.0, 30.0), (0.1, 30.0), (0.4, 80.0), (1.0, 200.0), (60.0, 300.0)])
def test_an_audit_of_large_tables_has_a_small_part_of_the_time(took: float, pause: float) -> None:
    assert audit_pause(took) == pause


async def test_a_table_that_could_not_be_read_in_a_long_time_is_read_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_domain, "AUDIT", 0.0)
    words = Words()
    words.table.held = {"one": 3}
    asked = 0

    def hang() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:  # the first time it is adopted
            words.now += 0.5
            raise Unavailable("no answer within 0.5 s")

    def was_read_again() -> bool:
        words.now += 0.01
        return asked > 2 and words.tracker.error is None

    words.table.on_page = hang
    running = asyncio.create_task(words.run())
    try:
        await until(was_read_again)
    finally:
        running.cancel()
