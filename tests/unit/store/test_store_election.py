"""Who leads, as the keys at the place tell: events in, whether this process leads out."""

from __future__ import annotations

import pytest

from clustermesh.errors import Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.election import Election
from clustermesh.store.follow import Changed, Interrupted, Listed, Put
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


def cut_off(election: Election, newest: int) -> None:
    """At revision `newest`, as the last answer said."""
    election._client._dialer.revision = newest
    election._take(Interrupted(Unavailable("gone")))


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
    cut_off(election, 40)
    election._take(Listed([], 40))
    assert election.deposed.is_set()
    await stand_anew(election, 41)
    assert election._fenced.fence == Fence(PLACE, 0)


@pytest.mark.parametrize("said_while_it_lists", [490, 501])
async def test_who_was_cut_off_and_stood_anew_before_it_lists_is_deposed(
    election: Election, said_while_it_lists: int
) -> None:
    cut_off(election, 90)
    election._key, election._client._dialer.revision = ANEW, said_while_it_lists
    election._take(Listed([a_key(ANEW, 490)], 500))
    await election._lead()
    assert election.deposed.is_set()
    assert election._fenced.fence == Fence(PLACE, 0)


async def test_who_was_cut_off_while_its_key_went_and_was_made_again_is_deposed(election: Election) -> None:
    cut_off(election, 40)
    election._take(Listed([a_key(OURS, 45)], 50))
    await election._lead()
    assert election.deposed.is_set()
    assert election._fenced.fence == Fence(PLACE, 0)


async def test_who_was_cut_off_and_finds_its_key_leads_on(election: Election) -> None:
    cut_off(election, 40)
    election._take(Listed([a_key(OURS, 5), a_key(THEIRS, 9)], 40))
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(OURS, 5)


async def test_who_sees_its_key_go_and_nobody_come_leads_on_with_another(election: Election) -> None:
    election._take(Changed([Deleted(OURS)], 9))
    await stand_anew(election, 10)
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 10)


async def test_who_finds_an_etcd_that_began_anew_leads_on(election: Election) -> None:
    cut_off(election, 40)
    election._take(Listed([], 7))
    await stand_anew(election, 8)
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 8)


async def test_who_stands_anew_in_an_etcd_that_began_anew_before_that_is_listed_leads_on(election: Election) -> None:
    cut_off(election, 40)
    cut_off(election, 4)
    election._key = ANEW
    election._take(Listed([a_key(ANEW, 5)], 5))
    await election._lead()
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 5)


async def test_who_finds_another_etcd_cluster_leads_on_however_far_that_is(election: Election) -> None:
    cut_off(election, 6)
    election._key, election._client._dialer.cluster_id = ANEW, 7
    election._take(Listed([a_key(ANEW, 90)], 90))
    await election._lead()
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 90)
    cut_off(election, 91)
    election._take(Listed([], 92))
    assert election.deposed.is_set()


async def test_what_is_heard_of_the_writes_tells_an_etcd_that_began_anew(election: Election) -> None:
    election._fenced._dialer.revision = 40
    cut_off(election, 5)
    election._take(Listed([], 7))
    assert not election.deposed.is_set()


async def test_who_is_cut_off_again_before_it_has_a_key_in_an_etcd_that_began_anew_leads_on(election: Election) -> None:
    cut_off(election, 40)
    election._take(Listed([], 7))
    cut_off(election, 8)
    election._key = ANEW
    election._take(Listed([a_key(ANEW, 8)], 8))
    await election._lead()
    assert not election.deposed.is_set()
    assert election._fenced.fence == Fence(ANEW, 8)


async def test_what_an_etcd_said_before_it_began_anew_says_nothing_of_the_next_cut(election: Election) -> None:
    cut_off(election, 40)
    election._take(Listed([], 7))
    await stand_anew(election, 8)
    cut_off(election, 9)
    election._take(Listed([], 20))
    assert election.deposed.is_set()


class Forgets:
    """An etcd that does what it is asked to, and does not answer the first write."""

    def __init__(self) -> None:
        self.leases, self.written, self.revision = list[int](), dict[bytes, int](), 0

    async def grant(self, _ttl: int) -> int:
        self.leases.append(len(self.leases) + 1)
        return self.leases[-1]

    async def keep_alive(self, leases: list[int]) -> dict[int, int]:
        return dict.fromkeys(leases, 2)

    async def swap(self, key: bytes, _expected: int, _value: bytes, lease: int) -> bool:
        self.written[key] = lease
        if len(self.written) == 1 and self.revision == 0:
            self.revision = 1
            raise Unavailable("no answer")
        return True


class Ours(Says):
    async def wait(self) -> None: ...


async def test_a_key_whose_writing_was_not_answered_is_on_the_lease_that_is_renewed() -> None:
    """Another lease would stand beside it, as a rival of the same name."""
    election, etcd = made_by(Ours()), Forgets()
    election._client = etcd  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        await election._renew()
    await election._renew()
    assert (etcd.leases, etcd.written) == ([1], {PLACE + b"1": 1})
