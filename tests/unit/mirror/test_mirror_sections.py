"""What etcd tells of the cache, and what is asked for there: the two meet in any order, and the difference is right."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from clustermesh.mirror.copies import cache_place
from clustermesh.mirror.sections import Cache, CopiesTarget, Section
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Deleted, Listed, Put
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys
from clustermesh.wire.kinds import IDENTITIES

PLACE = cache_place(IDENTITIES)
A, B = PLACE + b"beta/id/131072", PLACE + b"beta/id/131073"


class Etcd:
    """Takes every write, on lease 7."""

    def __init__(self) -> None:
        self.revision = 100
        self.held: dict[bytes, bytes] = {}
        self.echoes: list[Put | Deleted] = []  # of our own writes, that no watch has told of yet

    async def grant(self, _ttl: int) -> int:
        return 7

    async def transact(self, batches: list[Any]) -> int:
        self.revision += 1
        for op in batches[0]:
            if hasattr(op, "value"):
                self.held[op.key] = op.value
                self.echoes.append(put(op.key, op.value, self.revision))
            else:
                self.held.pop(op.key, None)
                self.echoes.append(Deleted(op.key, self.revision))
        return self.revision


def a_section() -> tuple[Section, Cache, Etcd]:
    etcd = Etcd()
    client = cast(EtcdClient, etcd)
    section = Section(IDENTITIES, CopiesTarget(client, LeaseKeeper(client), PLACE))
    return section, Cache([section]), etcd


def put(key: bytes, value: bytes, revision: int = 1, lease: int = 7) -> Put:
    return Put(KeyValue(key, value, revision, lease))


def test_a_list_is_whole_and_what_it_has_not_is_not_there() -> None:
    section, cache, _ = a_section()
    cache.take(keys.CACHE, Listed([put(A, b"a")], 5, more=True))
    cache.take(keys.CACHE, Listed([put(B, b"b")], 5))
    assert section.unclaimed() == [(A, b"a"), (B, b"b")]
    cache.take(keys.CACHE, Listed([put(B, b"b")], 9, more=True))
    cache.interrupt(keys.CACHE)
    assert len(section.unclaimed()) == 2, "of a list that was cut nothing is known"
    cache.take(keys.CACHE, Listed([put(B, b"b")], 12))
    assert section.unclaimed() == [(B, b"b")]
    cache.take(keys.CACHE, Changed([Deleted(B, 13), put(A, b"a", 14)], 14))
    assert section.unclaimed() == [(A, b"a")]


def test_keys_of_others_are_nobodys_business() -> None:
    section, cache, _ = a_section()
    foreign = [put(key, b"x") for key in (b"cilium/state/x", b"cilium/cache/ip/v1/beta/1", b"cilium", b"")]
    cache.take(keys.CACHE, Listed(foreign, 5))
    assert not section.unclaimed()


def test_who_stands_by_has_nothing_to_write_where_the_leader_wrote_the_same() -> None:
    section, cache, _ = a_section()
    section.want(A, b"a")
    cache.take(keys.CACHE, Listed([put(A, b"a", lease=70), put(B, b"b", lease=71)], 5))
    section.want(B, b"b")
    assert section.tracker.settled
    assert section.target.keeper.leases == {70, 71}
    cache.take(keys.CACHE, Changed([put(A, b"a", 6, lease=72)], 6))
    assert section.tracker.settled, "the leader may move keys to another lease"
    cache.take(keys.CACHE, Changed([put(A, b"other", 7, lease=72)], 7))
    assert section.differing() == [(A, b"other")]
    assert section.tracker.drift == 0


def test_what_its_cluster_withdrew_is_no_news_to_who_takes_over() -> None:
    section, cache, _ = a_section()
    section.want(A, b"a")
    cache.take(keys.CACHE, Listed([put(A, b"a"), put(B, b"b")], 5))
    section.want(A, None)
    assert section.unclaimed() == [(B, b"b")]
    cache.take(keys.CACHE, Changed([put(A, b"a", 6)], 6))
    assert sorted(section.unclaimed()) == [(A, b"a"), (B, b"b")], "who leads has heard more"


def test_what_hangs_on_no_lease_or_on_one_that_is_lost_is_written_again() -> None:
    section, cache, _ = a_section()
    cache.take(keys.CACHE, Listed([put(A, b"a", lease=0), put(B, b"b")], 5))
    for key, value in section.unclaimed():
        section.want(key, value)
    assert set(section.tracker.pending().upserts) == {A}
    cache.lose_leases(frozenset({B}))
    assert set(section.tracker.pending().upserts) == {A, B}
    assert section.held(B) == b"b"


def test_equal_values_are_held_once() -> None:
    section, cache, _ = a_section()
    wanted = b"value" * 10
    section.want(A, wanted)
    cache.take(keys.CACHE, Listed([put(A, bytes(bytearray(wanted)))], 5))
    assert section.tracker.actual[A] is wanted


async def test_what_is_told_while_keys_are_written_is_compared_with_what_was_written() -> None:
    section, cache, etcd = a_section()
    cache.lead()
    section.want(A, b"a")
    with section.busy():
        await section.tracker.upsert_pending()
        cache.take(keys.CACHE, Changed([put(A, b"old", etcd.revision - 1)], etcd.revision - 1))
        cache.take(keys.CACHE, Changed([put(A, b"a", etcd.revision)], etcd.revision))
        cache.take(keys.CACHE, Changed([put(A, b"theirs", etcd.revision + 1)], etcd.revision + 1))
        assert section.tracker.settled, "not before the next write"
        section.want(B, b"b")
        await section.tracker.upsert_pending()
        assert section.differing() == [(A, b"theirs")], "what was told is not kept for longer than that"
    assert etcd.held == {A: b"a", B: b"b"}


_STEP = st.one_of(
    st.tuples(st.just("want"), st.sampled_from([A, B]), st.sampled_from([b"1", b"2", None])),
    st.tuples(st.just("theirs"), st.sampled_from([A, B]), st.sampled_from([b"1", b"3", None])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("lead")),
    st.tuples(st.just("list")),
    st.tuples(st.just("echo")),
)


@settings(deadline=None)
@given(st.lists(_STEP, max_size=20))
def test_whatever_happens_etcd_holds_what_is_wanted_in_the_end(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(_play(steps))


def _echo(cache: Cache, etcd: Etcd) -> None:
    """The watch tells of our own writes."""
    for event in etcd.echoes:
        revision = event.kv.mod_revision if isinstance(event, Put) else event.mod_revision
        cache.take(keys.CACHE, Changed([event], revision))
    etcd.echoes.clear()


async def _play(steps: list[tuple[Any, ...]]) -> None:
    section, cache, etcd = a_section()
    wanted = dict[bytes, bytes]()
    for verb, *rest in [*steps, ("lead",), ("flush",)]:
        if verb == "want":
            key, value = rest
            _set(wanted, key, value)
            section.want(key, value)
        elif verb == "theirs":
            _echo(cache, etcd)  # a watch tells in order
            key, value = rest
            etcd.revision += 1
            _set(etcd.held, key, value)
            event = Deleted(key, etcd.revision) if value is None else put(key, value, etcd.revision)
            cache.take(keys.CACHE, Changed([event], etcd.revision))
        elif verb == "echo":
            _echo(cache, etcd)
        elif verb == "list":
            etcd.echoes.clear()
            listed = [put(key, value, etcd.revision) for key, value in etcd.held.items()]
            cache.take(keys.CACHE, Listed(listed, etcd.revision))
        elif verb == "lead":
            cache.lead()
        elif section.target.leads:
            with section.busy():
                await section.tracker.upsert_pending()
                await section.tracker.delete_pending()
    assert etcd.held == wanted


def _set(table: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    table.pop(key, None)
    if value is not None:
        table[key] = value
