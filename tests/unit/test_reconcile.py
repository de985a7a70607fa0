"""The one reconciler: diff against a stupid twin, trackers against a dictionary that fails now and then."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import ApplyError, Unavailable
from clustermesh.reconcile import Reconciler, Tracker, diff

tables = st.dictionaries(st.integers(0, 20), st.integers(0, 3))


class FakeTarget:
    """A dictionary behind the port. `broken` keys are refused, `down` refuses all; `journal` is what was asked."""

    def __init__(self, name: str = "fake", journal: list[str] | None = None) -> None:
        self.held: dict[int, int] = {}
        self.broken: set[int] = set()
        self.down = False
        self.name, self.journal = name, [] if journal is None else journal

    async def dump(self) -> Mapping[int, int]:
        self._check()
        return dict(self.held)

    async def upsert(self, entries: Mapping[int, int]) -> None:
        self._check()
        self.journal.append(f"{self.name} + {sorted(entries)}")
        self.held |= {k: v for k, v in entries.items() if k not in self.broken}
        self._fail(entries)

    async def delete(self, keys: Collection[int]) -> None:
        self._check()
        self.journal.append(f"{self.name} - {sorted(keys)}")
        for key in set(keys) - self.broken:
            self.held.pop(key, None)
        self._fail(keys)

    def _check(self) -> None:
        if self.down:
            raise Unavailable("the target is down")

    def _fail(self, keys: Collection[int]) -> None:
        if failed := self.broken & set(keys):
            raise ApplyError(dict.fromkeys(failed, "broken"))


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
        st.tuples(st.just("audit")),
    ),
    max_size=25,
)


@given(steps)
async def test_whatever_happens_on_the_way_an_audit_and_a_flush_end_at_what_is_desired(script: list[tuple]) -> None:  # type: ignore[type-arg]
    target, wanted = FakeTarget(), {}
    tracker = Tracker[int, int]("t", target)
    reconciler = Reconciler(tracker)
    reconciler.may_delete = True
    for verb, *arguments in script:
        match verb:
            case "set":
                tracker.set(*arguments)
                wanted[arguments[0]] = arguments[1]
            case "remove":
                tracker.remove(*arguments)
                wanted.pop(arguments[0], None)
            case "replace":
                tracker.replace(*arguments)
                wanted = dict(arguments[0])
            case "break":
                target.broken = arguments[0]
            case "down":
                target.down = arguments[0]
            case "meddle":
                target.held = dict(arguments[0])
            case "flush":
                await reconciler.flush()
            case "audit":
                await reconciler.audit()
        assert tracker.desired == wanted
    target.broken, target.down = set(), False
    await reconciler.audit()
    await reconciler.flush()
    assert target.held == wanted
    assert reconciler.settled
    assert not tracker.failed


async def test_a_failed_entry_is_kept_with_its_reason_and_tried_again() -> None:
    target = FakeTarget()
    tracker = Tracker[int, int]("t", target)
    target.broken = {2}
    for key in (1, 2, 3):
        tracker.set(key, 0)
    await Reconciler(tracker).flush()
    assert target.held == {1: 0, 3: 0}
    assert tracker.failed == {2: "broken"}
    assert tracker.error == "broken"
    target.broken = set()
    await Reconciler(tracker).flush()
    assert target.held == {1: 0, 2: 0, 3: 0}
    assert tracker.failed == {}
    assert tracker.error is None


async def test_what_refers_is_written_after_and_deleted_before_what_it_refers_to() -> None:
    journal: list[str] = []
    backends, services = FakeTarget("backends", journal), FakeTarget("services", journal)
    trackers = Tracker[int, int]("b", backends), Tracker[int, int]("s", services)
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
    on_backends, on_services = Tracker[int, int]("b", backends), Tracker[int, int]("s", services)
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
    await reconciler.flush()
    assert services.held == {7: 2}
    assert backends.held == {2: 0}


async def test_nothing_is_pruned_before_the_first_whole_list() -> None:
    target = FakeTarget()
    target.held = {1: 1, 2: 2}
    tracker = Tracker[int, int]("t", target)
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
    tracker = Tracker[int, int]("t", target)
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
    tracker = Tracker[int, int]("t", target)
    tracker.set(1, 1)
    await Reconciler(tracker).flush()
    target.down = True
    assert await tracker.audit() == 0
    assert tracker.actual == {1: 1}
    assert tracker.error == "the target is down"
