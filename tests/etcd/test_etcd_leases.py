"""Leases on a real etcd: keys live while they are kept alive, and a loss is told with the keys it cost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mirror import PATIENCE, answering
from tcp_proxy import TcpProxy, port_of

from clustermesh.errors import Unavailable
from clustermesh.store.client import EtcdClient, LeaseLost, Put
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.local import LocalEtcd

SHORT = 2  # seconds; etcd makes no shorter lease
LASTING = 6  # seconds: of one that is kept alive, on a machine that is busy with everything else


class Owner:
    """Who answers for keys: runs a keeper, and learns what was lost."""

    def __init__(self, keeper: LeaseKeeper) -> None:
        self.keeper = keeper
        self.lost: list[frozenset[bytes]] = []
        self._news = asyncio.Event()
        keeper.on_lost = self._take

    def _take(self, keys: frozenset[bytes]) -> None:
        self.lost.append(keys)
        self._news.set()

    async def until_lost(self) -> frozenset[bytes]:
        async with asyncio.timeout(PATIENCE):
            await self._news.wait()
        return self.lost[-1]


@asynccontextmanager
async def running(keeper: LeaseKeeper) -> AsyncIterator[Owner]:
    task = asyncio.create_task(keeper.run())
    try:
        yield Owner(keeper)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_kept_lease_outlives_its_ttl_and_an_unkept_one_does_not(client: EtcdClient) -> None:
    async with running(LeaseKeeper(client, ttl=LASTING)) as owner:
        await client.put(b"kept", b"x", await owner.keeper.lease_for(b"kept"))
        await client.put(b"unkept", b"x", await client.grant(LASTING))
        async with asyncio.timeout(PATIENCE):
            while await client.get(b"unkept") is not None:
                await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        assert await client.get(b"kept") is not None
    assert owner.lost == []


async def test_keys_are_spread_over_leases_and_keep_theirs(client: EtcdClient) -> None:
    keeper = LeaseKeeper(client, per_lease=10)
    keys = [b"k/%d" % i for i in range(25)]
    first = await asyncio.gather(*(keeper.lease_for(key) for key in keys))
    assert len(set(first)) == 3
    assert max(first.count(lease) for lease in first) == 10
    assert [await keeper.lease_for(key) for key in keys] == first
    keeper.release(keys[0])
    assert await keeper.lease_for(b"k/new") in (first[0], first[-1])  # the room that was left
    assert keeper.leases == set(first)


async def test_a_revoked_lease_is_reported_with_its_keys_and_replaced(client: EtcdClient) -> None:
    async with running(LeaseKeeper(client, ttl=LASTING, per_lease=2)) as owner:
        leases = {key: await owner.keeper.lease_for(key) for key in (b"a", b"b", b"c")}
        await client.transact([Put(key, b"x", lease) for key, lease in leases.items()])
        await client.revoke(leases[b"a"])
        assert await owner.until_lost() == {b"a", b"b"}
        assert await client.get(b"a") is None
        assert await client.get(b"c") is not None
        replaced = await owner.keeper.lease_for(b"a")
        assert replaced not in leases.values() or replaced == leases[b"c"]  # c's has room for one more
        await client.put(b"a", b"x", replaced)
        with pytest.raises(LeaseLost):
            await client.put(b"b", b"x", leases[b"b"])
    assert len(owner.lost) == 1


async def test_a_writer_told_of_a_lost_lease_has_it_looked_at_at_once(client: EtcdClient) -> None:
    """With the usual TTL the next look would be minutes away."""
    async with running(LeaseKeeper(client)) as owner:
        lease = await owner.keeper.lease_for(b"a")
        await client.revoke(lease)
        with pytest.raises(LeaseLost):
            await client.transact([Put(b"a", b"x", lease)])
        owner.keeper.check()
        assert await owner.until_lost() == {b"a"}


async def test_an_expired_lease_is_reported_when_etcd_can_be_reached_again(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    async with TcpProxy(port_of(etcd)) as proxy, running(LeaseKeeper(make_client(proxy.url), ttl=SHORT)) as owner:
        await client.put(b"a", b"x", await owner.keeper.lease_for(b"a"))
        await proxy.refuse()
        async with asyncio.timeout(PATIENCE):
            while await client.get(b"a") is not None:
                await asyncio.sleep(0.1)
        assert owner.lost == []  # not being reached is no evidence
        assert isinstance(owner.keeper.error, Unavailable)
        proxy.heal()
        assert await owner.until_lost() == {b"a"}
        await client.put(b"a", b"x", await owner.keeper.lease_for(b"a"))
    assert owner.lost == [{b"a"}]


async def test_leases_outlive_a_restart_of_etcd_and_are_lost_with_an_empty_one(
    etcd: LocalEtcd, client: EtcdClient
) -> None:
    async with running(LeaseKeeper(client, ttl=5)) as owner:
        await client.put(b"a", b"x", await owner.keeper.lease_for(b"a"))
        etcd.kill()
        await etcd.start()
        await answering(client)
        await asyncio.sleep(4)
        assert await client.get(b"a") is not None
        assert owner.lost == []
        etcd.kill()
        etcd.data_dir = etcd.data_dir.with_name("empty")
        await etcd.start()
        assert await owner.until_lost() == {b"a"}
        await client.put(b"a", b"x", await owner.keeper.lease_for(b"a"))


async def test_what_others_granted_is_kept_alive_once_it_is_adopted(client: EtcdClient) -> None:
    ttl = 8
    granted = [await client.grant(ttl) for _ in range(150)]
    for number, lease in enumerate(granted):
        await client.put(b"k/%d" % number, b"x", lease)
    brief, gone = await client.grant(ttl // 2), await client.grant(ttl)
    await client.revoke(gone)
    async with running(LeaseKeeper(client, ttl=ttl)) as owner:
        await owner.keeper.adopt([*granted, brief, gone, 0])
        assert owner.keeper.leases == set(granted), "not what is too short, not what is no more"
        assert owner.keeper.claim(b"k/0", granted[0])
        assert not owner.keeper.claim(b"k/x", brief)
        assert await owner.keeper.lease_for(b"k/0") == granted[0]
        await asyncio.sleep(ttl + SHORT)
        assert len((await client.range(b"k/")).kvs) == 150


async def test_keys_that_are_joined_end_together(client: EtcdClient) -> None:
    keeper = LeaseKeeper(client)
    await keeper.part(b"beat")
    other = await keeper.lease_for(b"canary")
    assert keeper.join(b"canary", b"beat")
    assert await keeper.lease_for(b"canary") == await keeper.lease_for(b"beat") != other
    assert not keeper.join(b"canary", b"beat"), "they are"
    assert not keeper.join(b"canary", b"nobody")


async def test_what_another_answered_for_is_taken_over_where_its_lease_lives_and_lasts(client: EtcdClient) -> None:
    lasting, brief, gone = [await client.grant(seconds) for seconds in (60, 20, 60)]
    await client.revoke(gone)
    keeper = LeaseKeeper(client, ttl=30)
    owner = Owner(keeper)
    for key, lease in ((b"a", gone), (b"a", lasting), (b"b", brief), (b"c", gone), (b"d", lasting)):
        assert keeper.note(key, lease)
    assert not keeper.note(b"e", 0)
    keeper.release(b"d")
    await keeper.take_over()
    assert owner.lost == [frozenset({b"b", b"c"})]
    assert keeper.leases == {lasting}
    assert keeper.claim(b"a", lasting)
    assert not keeper.claim(b"b", brief)
    assert await keeper.lease_for(b"b") == lasting, "there is room on it"
