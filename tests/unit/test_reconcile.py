"""The one reconciler: diff against a stupid twin, trackers against a dictionary that fails and hangs now and then."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustermesh import line, reconcile
from clustermesh.deltas import diff
from clustermesh.errors import ApplyError, Unavailable
from clustermesh.reconcile import Reconciler, Tracker

tables = st.dictionaries(st.integers(0, 20), st.integers(0, 3))


class FakeTarget:
    """A dictionary behind the port. `broken` keys are refused, `down` refuses all; `journal` is what was asked.

    While it hangs, a call is never answered: "before" it did anything, or "after".
    """

    def __init__(self, name: str = "fake", journal: list[str] | None = None) -> None:
        self.held: dict[int, int] = {}
        self.broken: set[int] = set()
        self.down = False
        self.hangs = ""
        self.calls = 0  # that have not ended
        self.name, self.journal = name, [] if journal is None else journal

    async def dump(self) -> Mapping[int, int]:
        await self._begin()
        return dict(self.held)

    async def upsert(self, entries: Mapping[int, int]) -> None:
        await self._begin()
        self.journal.append(f"{self.name} + {sorted(entries)}")
        self.held |= {k: v for k, v in entries.items() if k not in self.broken}
        await self._end(entries)

    async def delete(self, keys: Collection[int]) -> None:
        await self._begin()
        self.journal.append(f"{self.name} - {sorted(keys)}")
        for key in set(keys) - self.broken:
            self.held.pop(key, None)
        await self._end(keys)

    async def _begin(self) -> None:
        if self.hangs == "before":
            await self._hang()
        if self.down:
            raise Unavailable("the target is down")

    async def _end(self, keys: Collection[int]) -> None:
        if self.hangs == "after":
            await self._hang()
        if failed := self.broken & set(keys):
            raise ApplyError(dict.fromkeys(failed, "broken"))

    async def _hang(self) -> None:
        self.calls += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.calls -= 1


class PagedTarget(FakeTarget):
    """Read one entry at a time, in the order of its keys."""

    async def pages(self) -> AsyncIterator[Mapping[int, int]]:
        for key in sorted(self.held):
            await self._begin()
            if key in self.held:
                yield {key: self.held[key]}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs in these tests hangs for ever: no need to wait long to be sure."""
    monkeypatch.setattr(line, "PER_ENTRY", 0.0)


def make_tracker(target: FakeTarget, clock: Clock | None = None, name: str = "t") -> Tracker[int, int]:
    return Tracker(name, target, limit=0.01, clock=clock or Clock())


@given(tables, tables)
def test_applying_a_diff_gives_what_was_desired(desired: dict[int, int], actual: dict[int, int]) -> None:
    delta = diff(desired, actual)
    applied = {k: v for k, v in (actual | delta.upserts).items() if k not in delta.deletes}
    assert applied == desired
    assert all(actual.get(k) != v for k, v in delta.upserts.items()), "nothing is written that is there already"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 9)),
        st.tuples(st.just("replace"), tables),
        st.tuples(st.just("break"), st.sets(st.integers(0, 9))),
        st.tuples(st.just("down"), st.booleans()),
        st.tuples(st.just("meddle"), tables),
        st.tuples(st.just("flush")),
        st.tuples(st.just("hang"), st.sampled_from(["before", "after"])),
        st.tuples(st.just("wait"), st.sampled_from([0.05, 0.3, 60.0])),
        st.tuples(st.just("audit")),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(steps, st.sampled_from([FakeTarget, PagedTarget]))
async def test_whatever_fails_or_hangs_on_the_way_an_audit_and_a_flush_end_at_what_is_desired(
    script: list[tuple[Any, ...]], kind: type[FakeTarget]
) -> None:
    bed = Bed(kind())
    for step in script:
        await bed.play(*step)
        assert bed.tracker.desired == bed.wanted
        pending = bed.tracker.pending()
        assert (bed.tracker.pending_size, bed.tracker.has_all) == (sum(map(len, pending)), not pending.upserts)
        assert bed.tracker.surplus == len(bed.tracker.actual.keys() - bed.tracker.desired.keys())
    bed.target.broken, bed.target.down = set(), False
    await bed.reconciler.audit()
    bed.tracker.hurry()
    await bed.reconciler.flush()
    assert bed.target.held == bed.wanted
    assert bed.reconciler.settled
    assert not bed.tracker.failed


@settings(deadline=None)
@given(steps, st.sampled_from([FakeTarget, PagedTarget]))
async def test_without_anybody_else_writing_no_audit_is_needed(
    script: list[tuple[Any, ...]], kind: type[FakeTarget]
) -> None:
    bed = Bed(kind())
    for step in script:
        if step[0] not in ("meddle", "audit"):
            await bed.play(*step)
    bed.target.broken, bed.target.down = set(), False
    for _ in range(10):
        bed.clock.now += 60.0
        await bed.reconciler.flush()
    assert bed.target.held == bed.wanted
    assert bed.reconciler.settled


class Bed:
    """One tracker, its target, and the stupid twin of what is wanted."""

    def __init__(self, target: FakeTarget) -> None:
        self.target, self.clock = target, Clock()
        self.wanted: dict[int, int] = {}
        self.tracker = make_tracker(target, self.clock)
        self.reconciler = Reconciler(self.tracker)
        self.reconciler.may_delete = True

    async def play(self, verb: str, *arguments: Any) -> None:
        match verb:
            case "set":
                self.tracker.set(*arguments)
                self.wanted[arguments[0]] = arguments[1]
            case "remove":
                self.tracker.remove(*arguments)
                self.wanted.pop(arguments[0], None)
            case "replace":
                self.tracker.replace(*arguments)
                self.wanted = dict(arguments[0])
            case "break":
                self.target.broken = arguments[0]
            case "down":
                self.target.down = arguments[0]
            case "meddle":
                self.target.held = dict(arguments[0])
            case "flush":
                await self.reconciler.flush()
            case "hang":
                self.target.hangs = arguments[0]
                await self.reconciler.flush()
                self.target.hangs = ""
            case "wait":
                self.clock.now += arguments[0]
            case "audit":
                await self.reconciler.audit()


async def test_a_failed_entry_is_kept_with_its_reason_and_tried_again_when_it_is_due() -> None:
    target, clock = FakeTarget(), Clock()
    tracker = make_tracker(target, clock)
    target.broken = {2}
    for key in (1, 2, 3):
        tracker.set(key, 0)
    await Reconciler(tracker).flush()
    assert target.held == {1: 0, 3: 0}
    assert tracker.failed == {2: "broken"}
    assert tracker.error == "broken"
    target.broken = set()
    clock.now += 0.3
    await Reconciler(tracker).flush()
    assert target.held == {1: 0, 2: 0, 3: 0}
    assert tracker.failed == {}
    assert tracker.error is None


async def test_what_refers_is_written_after_and_deleted_before_what_it_refers_to() -> None:
    journal: list[str] = []
    backends, services = FakeTarget("backends", journal), FakeTarget("services", journal)
    trackers = make_tracker(backends), make_tracker(services)
    reconciler = Reconciler(*trackers)
    reconciler.may_delete = True
    for tracker in trackers:
        tracker.set(1, 1)
    await reconciler.flush()
    for tracker in trackers:
        tracker.remove(1)
        tracker.set(2, 2)
    await reconciler.flush()
    assert journal == [
        "backends + [1]",
        "services + [1]",
        "backends + [2]",
        "services + [2]",
        "services - [1]",
        "backends - [1]",
    ]


async def test_a_backend_stays_while_a_service_that_names_it_cannot_be_changed() -> None:
    backends, services = FakeTarget("backends"), FakeTarget("services")
    on_backends, on_services = make_tracker(backends), make_tracker(services)
    reconciler = Reconciler(on_backends, on_services)
    reconciler.may_delete = True
    on_backends.set(1, 0)
    on_services.set(7, 1)
    await reconciler.flush()
    services.broken = {7}
    on_backends.set(2, 0)
    on_services.set(7, 2)
    on_backends.remove(1)
    await reconciler.flush()
    assert services.held == {7: 1}
    assert 1 in backends.held
    services.broken = set()
    on_services.hurry()
    await reconciler.flush()
    assert services.held == {7: 2}
    assert backends.held == {2: 0}


async def test_nothing_is_pruned_before_the_first_whole_list() -> None:
    target = FakeTarget()
    target.held = {1: 1, 2: 2}
    tracker = make_tracker(target)
    reconciler = Reconciler(tracker)
    await reconciler.adopt()
    assert tracker.drift == 0, "what is there at the start is no drift"
    tracker.set(2, 3)
    await reconciler.flush()
    assert target.held == {1: 1, 2: 3}
    reconciler.may_delete = True
    await reconciler.flush()
    assert target.held == {2: 3}


async def test_drift_is_counted_and_repaired() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    reconciler = Reconciler(tracker)
    reconciler.may_delete = True
    tracker.replace({1: 1, 2: 2, 3: 3})
    await reconciler.flush()
    target.held = {1: 1, 2: 9, 4: 4}
    assert await reconciler.audit() == 3
    assert tracker.drift == 3
    await reconciler.flush()
    assert target.held == {1: 1, 2: 2, 3: 3}
    assert await reconciler.audit() == 0


async def test_a_target_that_cannot_be_dumped_keeps_what_was_last_known_and_says_why() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    tracker.set(1, 1)
    await Reconciler(tracker).flush()
    target.down = True
    assert await tracker.audit() == 0
    assert tracker.actual == {1: 1}
    assert tracker.error == "the target is down"


# -- when to try again ------------------------------------------------------------------------------------------------


async def test_only_what_is_due_is_tried_again_and_less_and_less_often() -> None:
    target, clock = FakeTarget(), Clock()
    tracker = make_tracker(target, clock)
    target.broken = {2}
    tracker.set(2, 0)
    reconciler, tries = Reconciler(tracker), []
    for _ in range(8):
        await reconciler.flush()
        await reconciler.flush()  # too early: nothing is asked
        assert reconciler.next_due is not None
        tries.append(round(reconciler.next_due - clock.now, 3))
        clock.now = reconciler.next_due
    assert tries == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8]
    assert target.journal == ["fake + [2]"] * 8
    assert tracker.problems[2].since == 1000.0
    assert tracker.problems[2].tries == 8


async def test_a_failed_entry_that_changes_is_tried_at_once() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    target.broken = {2}
    tracker.set(2, 0)
    await Reconciler(tracker).flush()
    target.broken = set()
    tracker.set(2, 1)
    await Reconciler(tracker).flush()
    assert target.held == {2: 1}
    assert tracker.problems == {}


async def test_what_failed_costs_a_change_elsewhere_no_more_than_itself() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    target.broken = set(range(1000))
    tracker.replace(dict.fromkeys(range(1000), 0))
    await Reconciler(tracker).flush()
    target.journal.clear()
    tracker.set(2000, 0)
    for _ in range(3):
        await Reconciler(tracker).flush()
    assert target.journal == ["fake + [2000]", "fake + [0, 1]"], "a success gives as much of the rest another try"


async def test_a_change_does_not_cost_all_that_was_written_before() -> None:
    tracker = make_tracker(FakeTarget())
    tracker.replace(dict.fromkeys(range(10_000), 0))
    await Reconciler(tracker).flush()
    assert tracker.settled
    assert sys.getsizeof(tracker._dirty) == sys.getsizeof({}), "a dictionary is gone over with all places it ever had"


async def test_when_there_is_room_again_everything_is_written_without_waiting() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    target.down = True
    tracker.replace(dict.fromkeys(range(1000), 0))
    await Reconciler(tracker).flush()
    target.down = False
    tracker.set(2000, 0)
    for _ in range(12):
        await Reconciler(tracker).flush()
    assert len(target.held) == 1001


# -- what one entry keeps from others ---------------------------------------------------------------------------------


async def test_an_entry_that_never_was_keeps_nothing_from_being_deleted() -> None:
    backends, services = FakeTarget("backends"), FakeTarget("services")
    on_backends, on_services = make_tracker(backends), make_tracker(services)
    reconciler = Reconciler(on_backends, on_services)
    reconciler.may_delete = True
    services.broken = {7}  # the map is full
    on_services.set(7, 1)
    for number in range(50):
        on_backends.set(number, 0)
        on_services.set(1, number)
        on_backends.remove(number - 1)
        await reconciler.flush()
    assert list(backends.held) == [49]


async def test_an_entry_whose_fate_is_unknown_keeps_what_it_may_refer_to() -> None:
    backends, services = FakeTarget("backends"), FakeTarget("services")
    on_backends, on_services = make_tracker(backends), make_tracker(services)
    reconciler = Reconciler(on_backends, on_services)
    reconciler.may_delete = True
    on_backends.set(1, 0)
    on_services.set(7, 1)
    services.hangs = "after"
    await reconciler.flush()
    services.hangs = ""
    services.broken = {7}
    on_services.remove(7)
    on_backends.remove(1)
    await reconciler.flush()
    assert backends.held == {1: 0}
    services.broken = set()
    on_services.hurry()
    await reconciler.flush()
    assert (services.held, backends.held) == ({}, {})


# -- calls that do not end --------------------------------------------------------------------------------------------


class Deaf(FakeTarget):
    """Its calls do not even end when they are cancelled, before `wake` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.wake = asyncio.Event()

    async def _hang(self) -> None:
        self.calls += 1
        while not self.wake.is_set():
            try:
                await self.wake.wait()
            except asyncio.CancelledError:
                continue
        self.calls -= 1


async def test_a_target_that_hangs_is_said_to_and_not_asked_again_before_the_call_has_ended() -> None:
    target, clock = Deaf(), Clock()
    tracker = make_tracker(target, clock)
    target.hangs = "before"
    tracker.set(1, 1)
    await Reconciler(tracker).flush()
    assert "no end of a call within" in tracker.failed[1]
    for _ in range(3):
        clock.now += 60.0
        tracker.set(2, 2)
        await Reconciler(tracker).flush()
        await tracker.audit()
    assert target.calls == 1
    assert "has not ended yet" in tracker.failed[2]
    assert tracker.error is not None
    target.hangs = ""
    target.wake.set()
    await asyncio.sleep(0)
    clock.now += 60.0
    await Reconciler(tracker).flush()
    assert target.held == {1: 1, 2: 2}


async def test_a_bug_in_a_target_is_a_problem_of_what_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(FakeTarget):
        async def upsert(self, entries: Mapping[int, int]) -> None:
            raise ZeroDivisionError("a bug")

    tracker = make_tracker(Buggy())
    tracker.set(1, 1)
    await Reconciler(tracker).flush()
    assert "ZeroDivisionError" in tracker.failed[1]
    assert "a bug" in caplog.text


async def test_one_who_is_cancelled_leaves_no_call_behind() -> None:
    target = FakeTarget()
    tracker = Tracker[int, int]("t", target)
    target.hangs = "before"
    tracker.set(1, 1)
    flushing = asyncio.create_task(Reconciler(tracker).flush())
    while not target.calls:
        await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    await asyncio.sleep(0)
    assert target.calls == 0


# -- comparing page by page -------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(tables, tables, st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 3)), max_size=20))
async def test_what_is_written_while_pages_are_read_is_no_drift(
    wanted: dict[int, int], meddled: dict[int, int], changes: list[tuple[int, int | None]]
) -> None:
    target = PagedTarget()
    tracker = make_tracker(target)
    reconciler = Reconciler(tracker)
    reconciler.may_delete = True
    tracker.replace(wanted)
    await reconciler.flush()
    target.held |= meddled
    drift, waiting = 0, list(changes)
    async for found in tracker.compare():
        drift += found
        for key, value in waiting[:2]:
            tracker.remove(key) if value is None else tracker.set(key, value)
        del waiting[:2]
        await reconciler.flush()
    assert drift <= sum(wanted.get(key) != value for key, value in meddled.items())
    await tracker.audit()
    await reconciler.flush()
    assert target.held == tracker.desired
    assert await tracker.audit() == 0


@pytest.mark.parametrize("step", range(8))
async def test_a_comparison_ends_where_another_began_meanwhile(step: int) -> None:
    """What the first one has read is older than what the second one found."""
    target, wanted = FakeTarget(), dict.fromkeys(range(3000), 1)
    tracker = make_tracker(target)
    reconciler = Reconciler(tracker)
    tracker.replace(wanted)
    await reconciler.flush()
    found = 0
    async with aclosing(tracker.compare()) as steps:
        for _ in range(step):
            found += await anext(steps, 0)
        target.held.clear()
        target.broken = set(wanted)
        assert await tracker.adopt() == 3000
        await reconciler.flush()
        found += sum([each async for each in steps])
    assert found == 0
    target.broken = set()
    tracker.hurry()
    await reconciler.flush()
    assert target.held == wanted


async def test_that_a_target_cannot_be_read_is_not_forgotten_by_a_comparison_that_began_before() -> None:
    target = FakeTarget()
    tracker = make_tracker(target)
    tracker.set(1, 1)
    await tracker.upsert_pending()
    async with aclosing(tracker.compare()) as steps:
        await anext(steps)
        target.down = True
        await tracker.adopt()
        target.down = False
        assert [each async for each in steps] == []
    assert tracker.error


class Meanwhile(FakeTarget):
    """While a call runs, somebody wants something else."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = make_tracker(self)

    async def upsert(self, entries: Mapping[int, int]) -> None:
        self.tracker.remove(1)
        self.tracker.set(2, 20)
        await super().upsert(entries)

    async def delete(self, keys: Collection[int]) -> None:
        self.tracker.set(3, 30)
        await super().delete(keys)


async def test_what_is_wanted_while_a_call_runs_is_applied_by_the_next() -> None:
    target = Meanwhile()
    tracker, reconciler = target.tracker, Reconciler(target.tracker)
    reconciler.may_delete = True
    for key in (1, 2, 3):
        tracker.set(key, key)
    await tracker.upsert_pending()
    assert target.held == {1: 1, 2: 2, 3: 3}
    tracker.remove(3)
    for _ in range(2):
        await reconciler.flush()
    assert target.held == {2: 20, 3: 30}
    assert tracker.settled


changes = st.dictionaries(st.integers(0, 3), st.none() | st.integers(0, 1))


class Restless(FakeTarget):
    """While a call runs, the next of `coming` is wanted: keys with what they are to have, or None."""

    def __init__(self, coming: list[dict[int, int | None]]) -> None:
        super().__init__()
        self.tracker, self.coming = make_tracker(self), coming

    def change(self) -> None:
        for key, value in (self.coming.pop(0) if self.coming else {}).items():
            if value is None:
                self.tracker.remove(key)
            else:
                self.tracker.set(key, value)

    async def upsert(self, entries: Mapping[int, int]) -> None:
        assert entries.items() <= self.tracker.desired.items(), "what nobody wants any more is not written"
        await super().upsert(entries)

    async def _end(self, keys: Collection[int]) -> None:
        self.change()


@given(st.lists(changes, max_size=12), st.sampled_from([1, reconcile.SLICE]))
@example([{0: 0}, {}, {0: None}, {0: 0}], reconcile.SLICE)
@example([{0: 0, 1: 0}, {1: None}], 1)
async def test_whatever_is_wanted_while_calls_run_all_of_it_is_there_in_the_end(
    coming: list[dict[int, int | None]], at_once: int
) -> None:
    target = Restless(coming)
    tracker, reconciler = target.tracker, Reconciler(target.tracker)
    reconciler.may_delete = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clustermesh.reconcile.SLICE", at_once)
        while target.coming or not tracker.settled:
            target.change()
            await reconciler.flush()
            assert tracker.actual == target.held
            assert tracker.surplus == len(tracker.actual.keys() - tracker.desired.keys())
            assert tracker.settled == (tracker.actual == tracker.desired)
    assert target.held == tracker.desired


async def test_what_was_found_is_kept_until_it_is_released_and_what_was_wanted_goes() -> None:
    target = FakeTarget()
    target.held = {1: 1, 2: 2}
    tracker = Tracker("fake", target)
    tracker.keep_unclaimed()
    await tracker.adopt()
    tracker.set(2, 2)
    tracker.set(3, 3)
    await tracker.upsert_pending()
    tracker.remove(2)
    assert not tracker.settled
    await tracker.delete_pending()
    assert target.held == {1: 1, 3: 3}
    assert tracker.settled
    tracker.release_unclaimed()
    assert not tracker.settled
    await tracker.delete_pending()
    assert target.held == {3: 3}


async def test_a_change_does_not_cost_what_is_kept() -> None:
    target = FakeTarget()
    target.held = dict.fromkeys(range(1000), 1)
    tracker = Tracker("fake", target)
    tracker.keep_unclaimed()
    await tracker.adopt()
    assert tracker.settled
    assert not any(tracker.pending())
    tracker.set(7, 7)
    tracker.set(1000, 1)
    assert tracker.pending_size == 2
    target.journal.clear()
    await Reconciler(tracker).flush()
    assert target.journal == ["fake + [7, 1000]"]
    tracker.release_unclaimed()
    assert tracker.pending_size == 999, "all but the one that is wanted"


async def test_what_is_kept_goes_with_its_target_and_comes_back_with_it() -> None:
    target = FakeTarget()
    target.held = {1: 1, 2: 2}
    tracker = Tracker("fake", target)
    tracker.keep_unclaimed()
    await tracker.adopt()
    target.held = {2: 3, 4: 4}
    assert await tracker.audit() == 3
    assert tracker.settled
    tracker.release_unclaimed()
    assert tracker.pending().deletes == [2, 4]


async def test_a_comparison_lets_others_have_a_turn_after_some_thousand_entries() -> None:
    target = FakeTarget()
    target.held = dict.fromkeys(range(10_000), 1)
    tracker, turns = Tracker("fake", target), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await tracker.audit()
    counting.cancel()
    assert turns >= 10


class PromptTarget(FakeTarget):
    """Takes two entries in place; remembers whose task it was called in."""

    at_once = 2

    async def upsert(self, entries: Mapping[int, int]) -> None:
        self.tasks = [*getattr(self, "tasks", []), asyncio.current_task()]
        await super().upsert(entries)


async def test_what_a_target_takes_in_place_has_no_task_of_its_own_and_whatever_is_more_has() -> None:
    target = PromptTarget()
    tracker = make_tracker(target)
    for few in ({1: 1}, {2: 2, 3: 3}):
        for key, value in few.items():
            tracker.set(key, value)
        await tracker.upsert_pending()
    assert target.tasks == [asyncio.current_task()] * 2
    for key in range(4, 7):
        tracker.set(key, key)
    await tracker.upsert_pending()
    assert asyncio.current_task() not in target.tasks[2:]
    assert target.held == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6}


async def test_what_fails_in_place_is_told_as_what_fails_elsewhere() -> None:
    target = PromptTarget()
    tracker = make_tracker(target)
    target.broken = {1}
    tracker.set(1, 1)
    await tracker.upsert_pending()
    assert target.held == {}
    assert list(tracker.problems) == [1]
    target.down = True
    tracker.set(2, 2)
    await tracker.upsert_pending()
    assert tracker.problems[2].sentence == "the target is down"
