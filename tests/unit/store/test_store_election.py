"""Who leads, as the keys at the place tell: events in, whether this process leads out."""

from __future__ import annotations

import pytest

from clustermesh.store.client import EtcdClient
from clustermesh.store.election import Election
from clustermesh.store.follow import Changed, Listed, Put
from clustermesh.store.follower import Deleted
from clustermesh.store.operations import Fence, KeyValue

PLACE = b"leaders/"
OURS, ANEW, THEIRS = PLACE + b"a", PLACE + b"b", PLACE + b"c"


def a_key(key: bytes, made: int) -> Put:
    return Put(KeyValue(key, b"us" if key != THEIRS else b"them", made))


class Says:
    """Whose etcd it is."""

    def __init__(self, ours: bool = True) -> None:
        self.ours, self.waiting = ours, ""

    async def wait(self) -> None:
        raise AssertionError("nobody stands here")

    async def look(self) -> bool:
        return self.ours


def made_by(owner: Says) -> Election:
    made = Election(EtcdClient(["http://127.0.0.1:1"]), EtcdClient(["http://127.0.0.1:1"]), owner, PLACE, "us")
    made._key = OURS
    return made


@pytest.fixture
async def election() -> Election:
    """It leads, since revision 5; what was said of its etcd before it stood is not asked for again."""
    made = made_by(Says(ours=False))
    made._take(Listed([a_key(OURS, 5)], 5))
    await made._lead()
    assert made.leading.is_set()
    assert made._fenced.fence == Fence(OURS, 5)
    return made


async def stand_anew(election: Election, made: int) -> None:
    election._key = ANEW
    election._take(Changed([a_key(ANEW, made)], made))
    await election._lead()


@pytest.mark.parametrize("ours", [True, False])
async def test_who_stood_by_leads_where_the_etcd_is_ours_by_then(ours: bool) -> None:
    election = made_by(Says(ours))
    election._take(Listed([a_key(THEIRS, 3), a_key(OURS, 5)], 5))
    await election._lead()
    assert election.following.is_set()
    election._take(Changed([Deleted(THEIRS)], 6))
    await election._lead()
    assert election.leading.is_set() == ours
    assert election.deposed.is_set() != ours


async def test_who_led_and_finds_another_leading_is_deposed(election: Election) -> None:
    election._take(Changed([Deleted(OURS), a_key(THEIRS, 9)], 9))
    assert election.deposed.is_set()
    assert election._fenced.fence == Fence(PLACE, 0)


async def test_who_led_is_deposed_by_one_that_came_and_went_before_it_looked(election: Election) -> None:
    election._take(Changed([Deleted(OURS), a_key(THEIRS, 9), Deleted(THEIRS)], 40))
    assert election.deposed.is_set()


async def test_who_hung_and_finds_its_key_gone_is_deposed_for_another_may_have_led(election: Election) -> None:
    election._take(Listed([], 40))
    assert election.deposed.is_set()
    await stand_anew(election, 41)
    assert election._fenced.fence == Fence(PLACE, 0)


async def test_who_was_cut_off_and_finds_its_key_leads_on(election: Election) -> None:
    election._take(Listed([a_key(OURS, 5), a_key(THEIRS, 9)], 40))
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(OURS, 5)


async def test_who_sees_its_key_go_and_nobody_come_leads_on_with_another(election: Election) -> None:
    election._take(Changed([Deleted(OURS)], 9))
    await stand_anew(election, 10)
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 10)


async def test_who_finds_an_etcd_that_began_anew_leads_on(election: Election) -> None:
    election._take(Listed([], 2))
    await stand_anew(election, 3)
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 3)


async def test_who_stands_anew_in_an_etcd_that_began_anew_before_that_is_listed_leads_on(election: Election) -> None:
    election._key = ANEW
    election._take(Listed([a_key(ANEW, 5)], 5))
    await election._lead()
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 5)
