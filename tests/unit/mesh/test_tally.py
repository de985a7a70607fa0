"""Whether a digest tells that something was not heard; beside a table of all keys, which knows."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from clustermesh.mesh import tally
from clustermesh.mesh.tally import MOST_WRITTEN, Tally
from clustermesh.store.follower import Deleted, Event, Put
from clustermesh.store.operations import Digest, DigestOf, KeyValue


class Etcd:
    """All keys, and all that has happened."""

    def __init__(self) -> None:
        self.revision = 1
        self.there: dict[bytes, tuple[int, int]] = {}  # when it was written, and how often
        self._before: dict[int, dict[bytes, tuple[int, int]]] = {}

    def change(self, key: bytes, put: bool) -> Event | None:
        if not put and key not in self.there:
            return None
        self.revision += 1
        if put:
            version = self.there.get(key, (0, 0))[1] + 1
            self.there[key] = self.revision, version
            event: Event = Put(KeyValue(key, b"", self.revision, 0, version))
        else:
            del self.there[key]
            event = Deleted(key, self.revision)
        self._before[self.revision] = dict(self.there)
        return event

    def digest(self, question: DigestOf, compacted: bool = False) -> Digest:
        now = compacted or not question.revision
        revision, there = (self.revision, self.there) if now else (question.revision, self._before[question.revision])
        written = {key: at for key, (at, _) in there.items() if at > question.since}
        return Digest(revision, len(there), written)


def listed(etcd: Etcd) -> Tally:
    heard = Tally(b"t/")
    heard.list(len(etcd.there), etcd.revision, first=True, more=False)
    return heard


class Change(NamedTuple):
    key: bytes
    put: bool
    told: bool


class World:
    """An etcd, a watch that does not tell all, and what is known by it."""

    def __init__(self, at_first: list[bytes]) -> None:
        self.etcd = Etcd()
        for key in at_first:
            self.etcd.change(key, True)
        self.etcd._before[self.etcd.revision] = dict(self.etcd.there)
        self.heard, self.known, self.all_told = listed(self.etcd), dict(self.truth), True

    @property
    def truth(self) -> dict[bytes, int]:
        return {key: at for key, (at, _) in self.etcd.there.items()}

    def happen(self, changes: list[Change]) -> list[Event]:
        """What will be heard of it."""
        events = [(self.etcd.change(each.key, each.put), each.told) for each in changes]
        self.all_told = self.all_told and all(told or event is None for event, told in events)
        return [event for event, told in events if event is not None and told]

    def hear(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Deleted(key, revision):
                    known, is_first = self.known.pop(key, None), False
                case Put(kv):
                    key, revision, is_first = kv.key, kv.mod_revision, kv.version == 1
                    known, self.known[key] = self.known.get(key), revision
            self.heard.change([event], revision, more=False)
            if known is None and not is_first:
                self.heard.lose()

    def audit(self, before: list[Change], meanwhile: list[Change]) -> int:
        """What is found out where some happens before etcd is asked, and some before it answers."""
        self.hear(self.happen(before))
        if self.heard.is_lost:
            return 1  # it is listed again
        question, late = self.heard.ask(), self.happen(meanwhile)
        assert question is not None
        digest = self.etcd.digest(question)
        self.hear(late)
        return self.heard.compare(digest)


KEYS = st.sampled_from([b"t/a", b"t/b", b"t/c", b"t/d"])
CHANGES = st.lists(st.builds(Change, KEYS, st.booleans(), st.booleans()), max_size=6)


A_DELETION_BEHIND_AN_OVERWRITE = [
    ([], [Change(b"t/a", False, False), Change(b"t/b", True, False), Change(b"t/b", True, True)])
]


@settings(max_examples=400, deadline=None)
@example([b"t/a"], A_DELETION_BEHIND_AN_OVERWRITE)
@given(st.lists(KEYS), st.lists(st.tuples(CHANGES, CHANGES), min_size=1, max_size=6))
def test_whatever_differs_is_found_and_nothing_where_all_was_heard(
    at_first: list[bytes], rounds: list[tuple[list[Change], list[Change]]]
) -> None:
    world = World(at_first)
    found = [world.audit(before, meanwhile) for before, meanwhile in [*rounds, ([], []), ([], []), ([], [])]]
    assert any(found) or world.known == world.truth
    assert not (any(found) and world.all_told)


def test_what_is_asked_for_does_not_grow_without_end_while_no_answer_comes() -> None:
    etcd = Etcd()
    heard = listed(etcd)
    for part in range(4):
        puts = [Put(KeyValue(b"t/%d/%d" % (part, n), b"", 2 + part, 0, 1)) for n in range(MOST_WRITTEN)]
        heard.change(puts, 2 + part, more=False)
        if (question := heard.ask()) is not None:
            assert question.most <= 2 * MOST_WRITTEN
    assert heard.is_lost


def test_an_answer_that_does_not_come_is_asked_for_again_with_all_that_was_heard_since() -> None:
    etcd = Etcd()
    heard = listed(etcd)
    for key in (b"t/a", b"t/b"):
        event = etcd.change(key, True)
        assert event is not None
        heard.change([event], etcd.revision, more=False)
        assert heard.ask() is not None
    question = heard.ask()
    assert question is not None
    assert heard.compare(etcd.digest(question)) == 0
    question = heard.ask()
    assert question is not None
    assert question.since == etcd.revision


def test_what_differs_counts_once_nothing_was_heard_until_the_next_answer() -> None:
    etcd = Etcd()
    heard = listed(etcd)
    etcd.change(b"t/a", True)
    for wrong in (0, 1):
        question = heard.ask()
        assert question is not None
        assert heard.compare(etcd.digest(question)) == wrong
        assert heard.is_unclear is not bool(wrong)


def test_a_cut_in_between_may_be_why_nothing_was_heard() -> None:
    etcd = Etcd()
    heard = listed(etcd)
    etcd.change(b"t/a", True)
    for _ in range(3):
        question = heard.ask()
        assert question is not None
        assert heard.compare(etcd.digest(question)) == 0
        heard.interrupt()
    assert not heard.is_unclear


def test_what_a_member_says_that_is_late_is_nothing() -> None:
    heard = Tally(b"t/")
    heard.list(1, 5, first=True, more=False)
    assert heard.ask() is not None
    assert heard.compare(Digest(4, 0, {})) == 0
    assert not heard.is_unclear


def test_a_digest_of_now_that_was_ahead_of_the_watch_is_nothing() -> None:
    etcd = Etcd()
    heard = listed(etcd)
    for key in (b"t/a", b"t/b"):
        event = etcd.change(key, True)
        question = heard.ask()
        assert question is not None
        assert event is not None
        digest = etcd.digest(question, compacted=True)
        heard.change([event], etcd.revision, more=False)
        assert heard.compare(digest) == 0


def test_nothing_is_asked_in_the_middle_of_a_list_or_of_a_revision() -> None:
    heard = Tally(b"t/")
    assert heard.ask() is None
    heard.list(1, 5, first=True, more=True)
    assert heard.ask() is None
    heard.list(1, 5, first=False, more=False)
    assert heard.ask() == DigestOf(b"t/", 0, 5, tally.MOST_WRITTEN)
    heard.change([Put(KeyValue(b"t/a", b"", 6, 0, 1))], 6, more=True)
    assert heard.ask() is None


def test_a_list_makes_an_answer_to_an_earlier_question_void() -> None:
    heard = Tally(b"t/")
    heard.list(1, 5, first=True, more=False)
    assert heard.ask() is not None
    heard.list(3, 7, first=True, more=False)
    assert heard.compare(Digest(5, 2, {})) == 0


def test_what_is_remembered_is_bounded() -> None:
    heard = Tally(b"t/")
    heard.list(0, 5, first=True, more=False)
    for number in range(tally.MOST_WRITTEN + 2):
        heard.change([Put(KeyValue(b"t/%d" % number, b"", number, 0, 1))], number, more=False)
    assert heard.is_lost
    heard.list(0, 50_000, first=True, more=False)
    assert not heard.is_lost
