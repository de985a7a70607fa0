"""Whatever others do, however late a watch tells of it, and whatever fails: in the end etcd holds what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

from fake_etcd import FakeEtcd
from hypothesis import given, settings
from hypothesis import strategies as st

from clustermesh.apiserver.keys_target import WRITES
from clustermesh.apiserver.ledger import Ledger
from clustermesh.apiserver.publish import Updates
from clustermesh.apiserver.resources import CANARIES, DATA, make_ledger
from clustermesh.apiserver.writer import Writer
from clustermesh.model import Cluster
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Deleted, Listed
from clustermesh.store.follow import Put as Told
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.operations import Op, Put
from clustermesh.wire import keys, local
from clustermesh.wire.kinds import SERVICES

ALPHA = Cluster(name="alpha", id=1)
NAMES = ("a", "b", "c")


def value_key(name: str) -> bytes:
    return keys.service_key("alpha", "shop", name)


class Rig:
    """A ledger and its writer on a fake etcd."""

    def __init__(self, etcd: FakeEtcd) -> None:
        self.etcd = etcd
        client = cast(EtcdClient, etcd)
        self.keeper = LeaseKeeper(client, per_lease=2)
        self.ledger: Ledger = make_ledger(ALPHA, client, self.keeper)
        self.writer = Writer(self.ledger, self._say_complete, lambda: None, audit_every=1e9)
        self.writer.open_data()
        self.keeper.on_lost = self.ledger.lose_leases

    def _say_complete(self) -> bool:
        self.ledger[CANARIES].want(keys.canary_key("alpha", "services"), b"now")
        return True

    def want(self, name: str, value: bytes | None) -> None:
        updates = Updates()
        updates.add(SERVICES, value_key(name), value)
        if value is not None:
            updates.observed[value_key(name)] = 7
        self.ledger.want(updates)

    def listed(self) -> None:
        self.etcd.untold.clear()
        self.ledger.take(b"", Listed([Told(kv) for kv in self.etcd.keys.values()], self.etcd.revision))

    def tell(self, number: int) -> None:
        if item := self.etcd.tell(number):
            self.ledger.take(b"", item)

    def renew(self) -> None:
        """What the keeper's next round of keep-alives finds."""
        for lease in list(self.keeper.leases - self.etcd.leases):
            self.keeper.on_lost(frozenset(self.keeper._forget(lease)))

    async def write(self) -> bool:
        self.writer.hurry()
        return await self.writer.write()

    async def settle(self) -> None:
        self.etcd.faults.clear()
        for _ in range(20):
            self.renew()
            self.tell(1000)
            if await self.write() and not self.etcd.untold:
                return
        raise AssertionError("it goes on writing for ever")


async def rig(**found: bytes) -> Rig:
    etcd = FakeEtcd()
    for name, value in found.items():
        etcd.write(value_key(name), value)
    made = Rig(etcd)
    made.listed()
    made.writer.open_canaries()
    return made


_NAME = st.sampled_from(NAMES)
_VALUE = st.none() | st.sampled_from([b"1", b"2"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), _NAME, _VALUE),
        st.tuples(st.just("scribble"), _NAME, _VALUE),
        st.tuples(st.just("tell"), st.integers(1, 4)),
        st.tuples(st.just("write"), st.lists(st.sampled_from(["", "refuse", "forget"]), max_size=3)),
        st.tuples(st.just("expire")),
        st.tuples(st.just("renew")),
        st.tuples(st.just("restart")),
        st.tuples(st.just("start empty")),
        st.tuples(st.just("prune")),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(_STEPS)
def test_after_any_history_etcd_holds_what_is_wanted_and_nothing_else(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[Any, ...]]) -> None:
    bed = await rig(a=b"old", b=b"1")
    wanted: dict[str, bytes] = {}
    for verb, *rest in steps:
        if verb == "want":
            name, value = rest
            bed.want(name, value)
            wanted.pop(name, None)
            if value is not None:
                wanted[name] = value
        elif verb == "scribble":
            bed.etcd.write(value_key(rest[0]), rest[1])
        elif verb == "tell":
            bed.tell(rest[0])
        elif verb == "write":
            bed.etcd.faults = list(rest[0])
            await bed.write()
        elif verb == "expire" and bed.etcd.leases:
            bed.etcd.expire(min(bed.etcd.leases))
        elif verb == "renew":
            bed.renew()
        elif verb == "start empty":
            bed.ledger.take(b"", bed.etcd.start_empty())
        elif verb == "prune":
            bed.ledger.prune(bed.ledger.sections)
        elif verb == "restart":
            bed = Rig(bed.etcd)
            bed.listed()
            bed.writer.open_canaries()
            for name, value in wanted.items():
                bed.want(name, value)
    bed.ledger.prune(bed.ledger.sections)
    await bed.settle()
    bed.etcd.keys.pop(keys.CHANGED_SERVICES, None)
    held = {key: kv.value for key, kv in bed.etcd.keys.items()}
    assert held == {value_key(n): v for n, v in wanted.items()} | {keys.canary_key("alpha", "services"): b"now"}
    assert all(kv.lease in bed.etcd.leases & bed.keeper.leases for kv in bed.etcd.keys.values())


async def test_what_was_found_stays_until_the_source_is_known_in_whole() -> None:
    bed = await rig(a=b"1", b=b"2", c=b"3")
    bed.want("a", b"9")
    bed.want("c", None)
    await bed.settle()
    assert bed.etcd.keys[value_key("a")].value == b"9"
    assert value_key("b") in bed.etcd.keys, "nobody has said anything of it"
    assert value_key("c") not in bed.etcd.keys, "somebody knows that it is not to be"
    bed.ledger.prune(bed.ledger.sections)
    await bed.settle()
    assert value_key("b") not in bed.etcd.keys


async def test_services_and_their_stamps_are_written_in_one_transaction() -> None:
    bed = await rig()
    for number in range(130):
        bed.want(f"s{number}", b"1")
    await bed.settle()
    services = [[key for key in each if key.startswith(keys.STATE)] for each in bed.etcd.log]
    assert [keys.CHANGED_SERVICES in each for each in bed.etcd.log] == [bool(some) for some in services]
    stamps = local.decode_stamps(bed.etcd.keys[keys.CHANGED_SERVICES].value)
    assert stamps.keys() == {("shop", key.rpartition(b"/")[2].decode()) for key in services[-2] or services[-1]}
    assert {stamp.observed for stamp in stamps.values()} == {7}


async def test_what_is_written_again_without_a_change_has_no_stamp() -> None:
    bed = await rig()
    bed.want("a", b"1")
    await bed.settle()
    before = len(bed.etcd.log)
    bed.ledger.lose_leases(frozenset([value_key("a")]))
    await bed.settle()
    assert bed.etcd.log[before:]
    assert all(keys.CHANGED_SERVICES not in each for each in bed.etcd.log[before:])


async def test_the_stamps_of_older_api_servers_go_when_the_source_is_known() -> None:
    bed = await rig()
    old = keys.OLD_STAMPS + b"shop/a"
    await bed.etcd.transact([[Put(old, b"{}")]])
    bed.listed()
    bed.ledger.prune(bed.ledger.sections)
    await bed.settle()
    assert old not in bed.etcd.keys


async def test_canaries_wait_until_every_entry_is_acknowledged() -> None:
    bed = await rig()
    bed.want("a", b"1")
    bed.etcd.faults = ["forget", "refuse"]
    canary = keys.canary_key("alpha", "services")
    for _ in range(2):
        await bed.write()
        assert canary not in bed.etcd.keys
        assert not bed.writer.synced
    await bed.write()
    assert canary in bed.etcd.keys
    assert bed.writer.synced


async def test_canaries_wait_until_all_of_the_source_is_wanted() -> None:
    bed = Rig(FakeEtcd())
    bed.listed()
    bed.want("a", b"1")
    await bed.write()
    assert value_key("a") in bed.etcd.keys
    assert not bed.writer.synced
    bed.want("b", b"1")
    bed.writer.open_canaries()
    await bed.write()
    assert value_key("b") in bed.etcd.keys
    assert bed.writer.synced


class SlowEtcd(FakeEtcd):
    """Takes its time for a transaction; `most` is how many it has had before it at once."""

    most = _now = 0

    async def transact(self, groups: Iterable[Sequence[Op]]) -> int:
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0)
        self._now -= 1
        return await super().transact(groups)


async def test_a_few_transactions_are_under_way_at_once_and_one_that_fails_costs_its_own_keys() -> None:
    etcd = SlowEtcd()
    bed = Rig(etcd)
    bed.keeper.per_lease = 1000
    bed.listed()
    names = [f"s{number}" for number in range(1000)]
    for name in names:
        bed.want(name, b"1")
    etcd.faults = ["", "", "refuse"]
    assert not await bed.write()
    assert etcd.most == WRITES.at_once
    assert set(bed.ledger[SERVICES].tracker.problems) == {value_key(name) for name in names} - etcd.keys.keys()
    assert 0 < len(bed.ledger[SERVICES].tracker.problems) < 1000
    assert await bed.write()
    assert etcd.keys.keys() >= {value_key(name) for name in names}
    written = [key for each in etcd.log for key in each if key != keys.CHANGED_SERVICES]
    assert len(written) == len(set(written)), "none twice"


async def test_an_echo_of_an_older_write_is_no_drift_and_no_news() -> None:
    bed = await rig()
    for value in (b"1", b"2", b"3"):
        bed.want("a", value)
        await bed.write()
    written = len(bed.etcd.log)
    while bed.etcd.untold:
        bed.tell(1)
        await bed.write()
    assert len(bed.etcd.log) == written
    assert sum(bed.ledger[name].tracker.drift for name in DATA) == 0
    bed.etcd.write(value_key("a"), b"scribble")
    bed.tell(1)
    assert bed.ledger[SERVICES].tracker.drift == 1


async def test_an_audit_finds_what_the_watch_kept_from_us() -> None:
    bed = await rig()
    bed.want("a", b"1")
    await bed.settle()
    bed.etcd.write(value_key("a"), b"scribble")
    bed.etcd.untold.clear()
    assert await bed.write()
    assert bed.etcd.keys[value_key("a")].value == b"scribble"
    await bed.writer._audit()
    await bed.write()
    assert bed.etcd.keys[value_key("a")].value == b"1"
    assert bed.ledger[SERVICES].tracker.drift == 1


async def test_an_etcd_started_empty_is_news_although_its_revisions_begin_anew() -> None:
    bed = await rig()
    bed.want("a", b"1")
    await bed.write()  # and the watch has not told of it yet
    bed.ledger.take(b"", bed.etcd.start_empty())
    assert not bed.ledger[SERVICES].complete
    assert not await bed.write(), "the lease is gone as well"
    assert bed.keeper._due.is_set(), "and its keeper is asked to look at once, not in some minutes"
    bed.renew()
    assert await bed.write()
    assert bed.etcd.keys[value_key("a")].value == b"1"


async def test_a_list_comes_in_parts_and_what_is_in_none_of_them_is_written_again() -> None:
    bed = await rig()
    for name in NAMES:
        bed.want(name, b"1")
    await bed.settle()
    first, second, third = (bed.etcd.keys[value_key(name)] for name in NAMES)
    bed.ledger.take(keys.STATE, Listed([Told(third)], bed.etcd.revision, more=True))
    bed.ledger.interrupt(keys.STATE)
    assert bed.ledger[SERVICES].complete, "of a list that was cut nothing is known"
    bed.ledger.take(keys.STATE, Listed([Told(first)], bed.etcd.revision, more=True))
    bed.ledger.take(keys.STATE, Listed([Told(second)], bed.etcd.revision))
    assert list(bed.ledger[SERVICES].tracker.pending().upserts) == [third.key]
    assert bed.ledger[CANARIES].complete, "a list of one place says nothing of another"


async def test_a_canary_that_is_lost_with_an_entry_is_written_after_it_though_it_was_told_of_alone() -> None:
    rig, canary = Rig(FakeEtcd()), keys.canary_key("alpha", "services")
    rig.listed()
    rig.want("a", b"1")
    rig.writer.open_canaries()
    assert await rig.writer.write()
    rig.listed()
    rig.etcd.write(value_key("a"), None)
    rig.etcd.write(canary, None)
    rig.ledger.take(b"", Changed([Deleted(canary)], rig.etcd.revision))
    rig.etcd.log.clear()
    assert await rig.writer.write()
    written = [key for batch in rig.etcd.log for key in batch]
    assert [key for key in written if key in (canary, value_key("a"))] == [value_key("a"), canary]
