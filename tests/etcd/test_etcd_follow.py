"""List and watch: what is told, in what pieces, and across compactions."""

import asyncio
from urllib.request import urlopen

from etcd_maintenance import delete_prefix
from mirror import Mirror, content
from tcp_proxy import TcpProxy, port_of

from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import Compacted, EtcdClient, Put
from clustermesh.store.follow import Changed, Listed
from clustermesh.store.follower import Follower
from clustermesh.store.local import LocalEtcd
from clustermesh.store.room import MAX_MESSAGE
from clustermesh.store.silence import Silence
from clustermesh.store.watch import open_watch


async def test_a_list_comes_first_and_then_every_change_in_order(client: EtcdClient) -> None:
    await client.transact([Put(b"p/a", b"1"), Put(b"p/b", b"1"), Put(b"other", b"1")])
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_table({b"p/a": b"1", b"p/b": b"1"})
        await client.put(b"p/a", b"2")
        await client.delete(b"p/b")
        await client.put(b"other", b"2")
        await client.put(b"p/c", b"1")
        await mirror.until_table({b"p/a": b"2", b"p/c": b"1"})
    assert isinstance(mirror.items[0], Listed)
    assert all(isinstance(item, Changed) for item in mirror.items[1:])
    assert mirror.deletions == [b"p/b"]


async def test_one_transaction_is_told_in_one_piece(client: EtcdClient) -> None:
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        revision = await client.transact([[Put(b"p/%d" % i, b"x") for i in range(50)]])
        await mirror.until(lambda: len(mirror.table) == 50)
    assert [len(item.events) for item in mirror.items if isinstance(item, Changed)] == [50]
    assert mirror.items[-1].revision == revision


async def test_compaction_under_a_cut_watch_lists_again_and_tells_only_the_difference(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    await client.transact([Put(b"p/%02d" % i, b"1") for i in range(50)])
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/") as mirror:
        await mirror.until_listed()
        await proxy.refuse()
        await client.delete(b"p/00")
        await client.put(b"p/01", b"2")
        await client.compact(await client.put(b"p/new", b"1"))
        proxy.heal()
        truth = await content(client, b"p/")
        await mirror.until_table(truth)
    assert any(isinstance(error, Compacted) for error in mirror.errors)
    assert len(mirror.lists) == 2
    assert len(mirror.lists[1].events) == 3
    assert mirror.deletions == [b"p/00"]


async def test_compaction_under_a_live_watch_is_nothing(client: EtcdClient) -> None:
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        await client.put(b"p/a", b"x")
        await mirror.until_table({b"p/a": b"x"})  # the watch is up
        for i in range(20):
            await client.compact(await client.put(b"p/a", b"%d" % i))
        await mirror.until_table({b"p/a": b"19"})
    assert mirror.errors == []


async def test_twelve_megabytes_in_one_revision_are_told_at_once(make_etcd, make_client) -> None:
    etcd = make_etcd(flags=["--max-request-bytes=16000000"])
    await etcd.start()
    client = make_client(etcd, timeout=20.0)
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        big = {b"p/%02d" % i: bytes([i]) * 250_000 for i in range(48)}
        revision = await _in_one_revision(client, big)
        await mirror.until_table(big)
        assert await _count_parts(client, b"p/", revision) > 1
    assert [len(item.events) for item in mirror.items] == [0, 48]


async def test_twelve_megabytes_deleted_in_one_revision_arrive_in_parts_and_are_told_at_once(
    client: EtcdClient,
) -> None:
    await client.transact([Put(b"p/%04d/" % i + b"k" * 10_000, b"") for i in range(1200)])
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        assert len(mirror.table) == 1200
        assert await delete_prefix(client, b"p/") == 1200
        await mirror.until_table({})
        assert await _count_parts(client, b"p/", mirror.items[-1].revision) > 1
    assert [len(item.events) for item in mirror.items] == [1200, 1200]


async def test_more_than_one_message_may_have_is_caught_up_with_and_nothing_is_listed(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    await client.put(b"p/anchor", b"x")
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/") as mirror:
        await mirror.until_listed()
        await proxy.refuse()
        big = {b"p/%02d" % i: bytes([i]) * 1_400_000 for i in range(15)}
        for key, value in big.items():
            await client.put(key, value)
        assert sum(map(len, big.values())) > MAX_MESSAGE
        proxy.heal()
        await mirror.until_table(big | {b"p/anchor": b"x"})
    assert len(mirror.lists) == 1


async def test_thousands_of_small_changes_are_caught_up_with_in_one_message_of_etcd(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    """Cutting them into fragments would cost etcd seconds; we do that ourselves."""
    for batch in range(0, 20_000, 100):
        await client.transact([[Put(b"p/%05d" % (batch + i), bytes(100)) for i in range(100)]])
    before, told = await _watch_messages_sent(etcd), 0
    async with open_watch(make_client(etcd), b"p/", 2, Silence(10.0)) as watch:
        while told < 20_000:
            told += len((await watch.read()).events)
    assert await _watch_messages_sent(etcd) == before + 2  # that it was created, and all that it had missed


async def _watch_messages_sent(etcd: LocalEtcd) -> int:
    def read() -> str:
        with urlopen(f"{etcd.endpoints[0]}/metrics") as answer:
            return str(answer.read(), "utf-8")

    lines = (await asyncio.to_thread(read)).splitlines()
    sent = [line for line in lines if line.startswith("grpc_server_msg_sent_total{") and '"Watch"' in line]
    return sum(int(line.split()[-1]) for line in sent)


async def test_many_large_revisions_at_once_are_told_as_they_come(client: EtcdClient) -> None:
    """A watch that catches up gets many revisions in one answer; they need not wait for each other."""
    for i in range(12):
        await client.put(b"p/%02d" % i, bytes([i]) * 1_000_000)
    follower = Follower()
    told = []
    async with open_watch(client, b"p/", 2, Silence(10.0)) as watch:
        follower.listed(await _empty_listing(client))
        while sum(told) < 12:
            changed = follower.received(await watch.read())
            told.append(len(changed.events) if changed else 0)
    assert len([count for count in told if count]) > 1


async def test_a_follower_that_is_followed_again_tells_only_the_difference(client: EtcdClient) -> None:
    follower = Follower()
    await client.transact([Put(b"p/a", b"1"), Put(b"p/b", b"1")])
    async with Mirror(client, b"p/", follower=follower) as first:
        await first.until_listed()
    await client.delete(b"p/a")
    await client.put(b"p/c", b"1")
    async with Mirror(client, b"p/", follower=follower) as second:
        second.table = dict(first.table)
        await second.until_table({b"p/b": b"1", b"p/c": b"1"})
    assert second.lists == []


async def test_a_slow_reader_gets_everything_and_holds_nobody_up(client: EtcdClient) -> None:
    """What is not read stays in etcd and in the transport; other calls go on meanwhile."""
    async with Mirror(client, b"p/") as mirror, mirror._news:  # holding its condition stops the mirror
        for i in range(300):
            await client.put(b"p/%03d" % i, b"x" * 10_000)
        mirror._news.release()
        try:
            await mirror.until(lambda: len(mirror.table) == 300)
        finally:
            await mirror._news.acquire()
    assert mirror.errors == []


async def _in_one_revision(client: EtcdClient, values: dict[bytes, bytes]) -> int:
    """Write what our own client would cut into several transactions."""
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in values.items()]
    response = await client.call(methods.TXN, pb.TxnRequest(success=puts))
    return int(response.header.revision)


async def _count_parts(client: EtcdClient, prefix: bytes, revision: int) -> int:
    """In how many parts a watch tells of `revision`."""
    pieces = 0
    async with open_watch(client, prefix, revision, Silence(10.0)) as watch:
        while True:
            message = await watch.read()
            pieces += bool(message.events)
            if message.events and not message.fragment:
                return pieces


async def _empty_listing(client: EtcdClient):
    listing = await client.range(b"nothing/")
    return type(listing)(1, [], listing.cluster_id)
