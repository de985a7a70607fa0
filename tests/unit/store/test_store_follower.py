"""The follower against a stupid etcd, through random writes, cuts, compactions and replaced stores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_etcd import SimEtcd

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store.faults import Oversized
from clustermesh.store.follower import (
    Changed,
    Deleted,
    Event,
    Everything,
    Follower,
    HoldLimit,
    Interrupted,
    ListAll,
    Listed,
    Newest,
    Prove,
    Put,
    State,
    WatchFrom,
    WatchMessage,
)
from clustermesh.store.operations import KeyValue, Listing

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
CHANGES = st.dictionaries(KEYS, st.one_of(st.none(), st.sampled_from([b"1", b"2"])), min_size=1)
ACTIONS = st.one_of(
    st.tuples(st.just("write"), CHANGES),
    st.tuples(st.just("work"), st.integers(1, 5)),
    st.tuples(st.sampled_from(["cut", "compact", "alive", "progress"]), st.none()),
    st.tuples(st.just("replace"), st.tuples(st.booleans(), st.integers(0, 6))),
)


class World:
    """An etcd, a follower, and a reader who believes what he is told."""

    def __init__(self, seed: int, known: Everything) -> None:
        self.rng = random.Random(seed)
        self.etcd = SimEtcd(1, 1)
        self.follower = Follower(known)
        self.listed: dict[bytes, bytes] = {}  # by the pages of the list under way
        self.table: dict[bytes, bytes] = {}
        self.on_the_way: list[WatchMessage] = []
        self.position = 0  # what the open watch has not yet put on the way begins here
        self.base = 0
        self.told: list[Event] = []

    def act(self, verb: str, argument) -> None:
        match verb:
            case "write":
                self.etcd.write(argument)
            case "compact":
                self.etcd.compact()
            case "cut":
                self.interrupt(Unavailable("cut"))
            case "replace":
                self.replace(*argument)
            case "work":
                for _ in range(argument):
                    self.work()
            case "alive" | "progress" if self.follower.state is State.FOLLOWING:
                self.notify(own=verb == "progress")

    def replace(self, same_id: bool, writes: int) -> None:
        """Start the etcd empty and fill it a little, behind the follower's back."""
        self.etcd = SimEtcd(1 if same_id else self.etcd.cluster_id + 1, self.etcd.lease + 1)
        for _ in range(writes):
            self.etcd.write({b"a": self.rng.choice([b"1", b"2"])})
        self.interrupt(Unavailable("gone"))

    def notify(self, own: bool) -> None:
        """A probe is answered ahead of the events on the way, a progress notification after them."""
        message = WatchMessage(self.etcd.revision, self.etcd.cluster_id, own=own)
        if not own or (not self.on_the_way and self.position > self.etcd.revision):
            self.take(message)

    def work(self) -> None:
        """One step of the shell."""
        try:
            if self.follower.state is State.FOLLOWING:
                self.deliver()
                return
            match self.follower.step():
                case ListAll():
                    self.list_all()
                case Prove(key, revision):
                    self.follower.proved(self.etcd.get(key, revision))
                case WatchFrom(revision):
                    self.on_the_way, self.position = [], revision
                    self.take(self.etcd.open_watch(revision))
        except ClusterMeshError as error:
            self.interrupt(error)

    def list_all(self) -> None:
        """At once, or page by page, of which a cut may leave out the last."""
        whole, page = self.etcd.listing(), 2
        if not self.follower.paged:
            self.hear(self.follower.listed(whole))
            return
        while len(whole.kvs) > page:
            self.hear_page(self.follower.listed(Listing(whole.revision, whole.kvs[:page], whole.cluster_id), True))
            whole = Listing(whole.revision, whole.kvs[page:], whole.cluster_id)
            if self.rng.random() < 0.2:
                raise Unavailable("cut between pages")
        self.hear_page(self.follower.listed(whole))

    def hear_page(self, item: Listed) -> None:
        self.listed |= {event.kv.key: event.kv.value for event in item.events if isinstance(event, Put)}
        if not item.more:
            self.table, self.listed = self.listed, {}
            self.base, self.told = item.revision, []

    def deliver(self) -> None:
        if not self.on_the_way:
            self.on_the_way = self.etcd.messages(self.position, self.rng)
            self.position = self.etcd.revision + 1
        if self.on_the_way:
            self.take(self.on_the_way.pop(0))

    def take(self, message: WatchMessage) -> None:
        item = self.follower.received(message)
        if item is not None:
            self.hear(item)

    def interrupt(self, error: ClusterMeshError) -> None:
        assert isinstance(self.follower.interrupted(error), Interrupted)
        self.on_the_way, self.listed = [], {}

    def hear(self, item: Listed | Changed) -> None:
        for event in item.events:
            if isinstance(event, Put):
                assert not isinstance(item, Listed) or self.table.get(event.kv.key) != event.kv.value, (
                    "told for nothing"
                )
                self.table[event.kv.key] = event.kv.value
            else:
                assert self.table.pop(event.key, None) is not None, "deleted what was not there"
        if isinstance(item, Listed):
            self.base, self.told = item.revision, []
            return
        self.told += item.events
        # Exactly once, in order, and whole revisions only.
        assert self.told == [e for written, e in self.etcd.history if self.base < written <= item.revision]

    def settle(self) -> None:
        for _ in range(200):
            self.work()
        assert self.follower.state is State.FOLLOWING
        assert not self.on_the_way
        assert self.table == {key: kv.value for key, kv in self.etcd.content(self.etcd.revision).items()}
        assert self.follower.paged or self.follower.size == len(self.table)


@pytest.mark.parametrize("known", [Everything, Newest])
@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(ACTIONS, max_size=60))
def test_every_write_is_told_once_and_the_table_ends_as_the_store(known, seed, actions) -> None:
    world = World(seed, known())
    for verb, argument in actions:
        world.act(verb, argument)
    world.settle()


def test_the_newest_few_are_kept_and_prove_until_they_are_deleted() -> None:
    etcd, follower = SimEtcd(1, 1), Follower(Newest())
    for number in range(500):
        etcd.write({b"%d" % number: b"1"})
    follower.listed(etcd.listing())
    assert follower.size < 100
    for number in range(300, 499):
        etcd.write({b"%d" % number: None})
    etcd.write({b"late": b"1"})
    follower.received(etcd.open_watch(follower.revision + 1))
    for message in etcd.messages(follower.revision + 1, random.Random(1)):
        follower.received(message)
    follower.interrupted(Unavailable("cut"))
    assert follower.step() == Prove(b"late", etcd.revision)
    follower.proved(etcd.get(b"late", etcd.revision))


def test_where_all_that_would_prove_is_deleted_everything_is_listed_again() -> None:
    etcd, follower = SimEtcd(1, 1), Follower(Newest())
    etcd.write({b"%d" % number: b"1" for number in range(50)})
    etcd.write({b"last": b"1"})
    follower.listed(etcd.listing())
    etcd.write(dict.fromkeys(etcd.content(etcd.revision)))
    follower.received(etcd.open_watch(follower.revision + 1))
    for message in etcd.messages(follower.revision + 1, random.Random(1)):
        follower.received(message)
    follower.interrupted(Unavailable("cut"))
    assert follower.step() == ListAll()


MESSAGES = st.builds(
    WatchMessage,
    revision=st.integers(-5, 50),
    cluster_id=st.integers(0, 2),
    created=st.booleans(),
    canceled=st.booleans(),
    reason=st.sampled_from(["", "etcdserver: permission denied"]),
    compact_revision=st.integers(0, 2),
    fragment=st.booleans(),
    own=st.booleans(),
    events=st.lists(st.tuples(st.integers(-5, 50), st.builds(Put, st.none())), max_size=0),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGES, max_size=20))
def test_no_message_whatsoever_raises_anything_but_our_own(messages) -> None:
    follower = Follower()
    follower.listed(SimEtcd(1, 1).listing())
    for message in messages:
        try:
            follower.received(message)
        except ClusterMeshError as error:
            follower.interrupted(error)
            if follower.state is State.UNLISTED:
                follower.listed(SimEtcd(1, 1).listing())


def follow_an_empty_etcd(limit: HoldLimit | None = None) -> Follower:
    etcd, follower = SimEtcd(1, 1), Follower(Newest(), limit or HoldLimit(10_000))
    etcd.write({b"a": b"1"})
    follower.listed(etcd.listing())
    follower.received(etcd.open_watch(follower.revision + 1))
    return follower


@pytest.mark.parametrize(
    "event",
    [
        Put(KeyValue(key=b"k" * 1000, value=b"")),
        Put(KeyValue(key=b"k", value=b"v" * 1000)),
        Deleted(b"k" * 1000),
        Deleted(b""),
    ],
)
def test_fragments_of_one_revision_that_never_end_are_held_to_a_limit_and_then_all_is_listed_again(event) -> None:
    follower = follow_an_empty_etcd()
    with pytest.raises(Oversized) as told:
        list(map(follower.received, [WatchMessage(9, 1, fragment=True, events=[(9, event)])] * 1000))
    follower.interrupted(told.value)
    assert follower.step() == ListAll()


def test_only_what_is_held_at_once_counts_for_the_limit() -> None:
    follower, event = follow_an_empty_etcd(), Put(KeyValue(key=b"k", value=b"v" * 4000))
    for revision in range(9, 100, 2):
        assert follower.received(WatchMessage(revision, 1, fragment=True, events=[(revision, event)])) in (
            None,
            Changed([event], revision - 1),
        )
        rest = [(revision, event), (revision + 1, event)]
        assert follower.received(WatchMessage(revision + 1, 1, fragment=True, events=rest)) == Changed(
            [event, event], revision
        )


def test_all_who_share_a_limit_hold_no_more_than_that_together() -> None:
    limit = HoldLimit(10_000)
    one, other = follow_an_empty_etcd(limit), follow_an_empty_etcd(limit)
    events = [(9, Put(KeyValue(key=b"k", value=b"v" * 6000)))]
    one.received(WatchMessage(9, 1, fragment=True, events=events))
    with pytest.raises(Oversized) as told:
        other.received(WatchMessage(9, 1, fragment=True, events=events))
    other.interrupted(told.value)
    one.drop_held()
    assert limit.held == 0
    follow_an_empty_etcd(limit).received(WatchMessage(9, 1, fragment=True, events=events))


BEYOND = [(1 << 63) - 1, (1 << 62) + 1, 0, -1]


@pytest.mark.parametrize("revision", BEYOND)
def test_a_list_at_a_revision_that_no_etcd_has_is_not_believed(revision: int) -> None:
    follower = Follower()
    with pytest.raises(Unavailable, match=str(revision)) as told:
        follower.listed(Listing(revision, []))
    follower.interrupted(told.value)
    assert follower.step() == ListAll()


@pytest.mark.parametrize("revision", BEYOND[:2])
def test_a_watch_at_a_revision_that_no_etcd_has_is_not_believed(revision: int) -> None:
    event = Put(KeyValue(key=b"k", value=b""))
    for message in (WatchMessage(revision, 1), WatchMessage(revision, 1, events=[(revision, event)])):
        follower = follow_an_empty_etcd()
        before = follower.revision
        with pytest.raises(Unavailable, match=str(revision)):
            follower.received(message)
        assert follower.revision == before


@pytest.mark.parametrize("revision", [0, -(1 << 63)])
def test_a_change_at_a_revision_that_no_etcd_has_is_not_believed(revision: int) -> None:
    follower = follow_an_empty_etcd()
    with pytest.raises(Unavailable, match=str(revision)):
        follower.received(WatchMessage(9, 1, events=[(revision, Deleted(b"k", revision))]))
