"""List and watch through everything that happens to an etcd and to the way there."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest
from mirror import Mirror, answering
from tcp_proxy import TcpProxy, port_of

from clustermesh.errors import Unavailable
from clustermesh.store import channel
from clustermesh.store.client import EtcdClient, Put, Replaced
from clustermesh.store.follow import Changed
from clustermesh.store.follow import Put as Told
from clustermesh.store.local import LocalEtcd


async def test_restart_with_the_same_data_is_resumed_without_a_new_list(etcd: LocalEtcd, client: EtcdClient) -> None:
    await client.put(b"p/a", b"1")
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        await etcd.stop()
        await mirror.until_error(Unavailable)
        await etcd.start()
        await mirror.until_up()
        await client.put(b"p/b", b"2")
        await mirror.until_table({b"p/a": b"1", b"p/b": b"2"})
    assert len(mirror.lists) == 1
    assert mirror.deletions == []


async def test_kill_9_loses_nothing_that_was_acknowledged(etcd: LocalEtcd, client: EtcdClient) -> None:
    written = {}
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        for generation in range(3):
            for i in range(50):
                key = b"p/%d/%d" % (generation, i)
                await client.put(key, b"x")
                written[key] = b"x"
            etcd.kill()
            await etcd.start()
            await answering(client)
        await mirror.until_table(written)
    assert mirror.deletions == []


async def test_started_empty_is_told_as_one_list_of_differences(etcd: LocalEtcd, make_etcd, client: EtcdClient) -> None:
    await client.transact([Put(b"p/stays", b"1"), Put(b"p/changes", b"1"), Put(b"p/goes", b"1")])
    await client.transact([Put(b"p/%d" % i, b"1") for i in range(20)])
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        await etcd.stop()
        etcd.data_dir = etcd.data_dir.with_name("empty")
        await etcd.start()
        await answering(client)
        await client.transact([Put(b"p/stays", b"1"), Put(b"p/changes", b"2"), Put(b"p/new", b"1")])
        truth = {b"p/stays": b"1", b"p/changes": b"2", b"p/new": b"1"}
        await mirror.until_table(truth)
        await client.put(b"p/after", b"1")
        await mirror.until_table(truth | {b"p/after": b"1"})
    assert any(isinstance(error, Replaced) for error in mirror.errors)
    assert b"p/stays" not in [e.kv.key for item in mirror.lists[1:] for e in item.events if isinstance(e, Told)] or (
        b"p/stays" in mirror.deletions  # listed before it was written again
    )


async def test_started_empty_under_the_same_cluster_id_and_past_our_revision_is_noticed(make_etcd, make_client) -> None:
    """The treacherous case: no id, no revision, no compaction gives it away, and a resumed watch would say nothing."""
    etcd = make_etcd(flags=["--initial-cluster-token=the-same"])
    await etcd.start()
    direct = make_client(etcd)
    await direct.transact([Put(b"p/a", b"old"), Put(b"p/b", b"old")])
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/") as mirror:
        await mirror.until_listed()
        before = await direct.get(b"p/a")
        await proxy.refuse()
        await etcd.stop()
        etcd.data_dir = etcd.data_dir.with_name("empty")
        await etcd.start()
        await answering(direct)
        for _ in range(10):
            await direct.put(b"p/a", b"new")
        after = await direct.get(b"p/a")
        assert before is not None
        assert after is not None
        assert after.mod_revision > before.mod_revision
        proxy.heal()
        await mirror.until_table({b"p/a": b"new"})
        await direct.put(b"p/c", b"new")
        await mirror.until_table({b"p/a": b"new", b"p/c": b"new"})
    assert any(isinstance(error, Replaced) for error in mirror.errors)


async def test_a_cut_is_resumed_at_the_next_revision(etcd: LocalEtcd, client: EtcdClient, make_client) -> None:
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/") as mirror:
        await client.put(b"p/first", b"x")
        await mirror.until_table({b"p/first": b"x"})
        for i in range(10):
            await proxy.cut()
            await client.put(b"p/k", b"%d" % i)
            await mirror.until(lambda value=b"%d" % i: mirror.table.get(b"p/k") == value)
    told = [e.kv.value for item in mirror.items if isinstance(item, Changed) for e in item.events if e.kv.key == b"p/k"]
    assert told == [b"%d" % i for i in range(10)]
    assert len(mirror.lists) == 1


@pytest.fixture
def no_keepalive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave noticing silence to our probes."""
    monkeypatch.setattr(channel, "PING_AFTER", 3600.0)


@pytest.mark.usefixtures("no_keepalive")
async def test_a_stopped_etcd_is_noticed_and_its_return_too(etcd: LocalEtcd, make_client) -> None:
    client = make_client(etcd, timeout=1.0)
    await client.put(b"p/a", b"1")
    async with Mirror(client, b"p/", quiet=0.5) as mirror:
        await mirror.until_listed()
        os.kill(etcd.pid, signal.SIGSTOP)
        await mirror.until_error(Unavailable)
        os.kill(etcd.pid, signal.SIGCONT)
        await mirror.until_up()
        await answering(client)
        await client.put(b"p/b", b"1")
        await mirror.until_table({b"p/a": b"1", b"p/b": b"1"})
    assert "no answer in time" in str(mirror.errors[0])
    assert len(mirror.lists) == 1


@pytest.mark.usefixtures("no_keepalive")
async def test_a_silent_way_is_noticed_and_a_quiet_etcd_is_not_suspected(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    async with (
        TcpProxy(port_of(etcd)) as proxy,
        Mirror(make_client(proxy.url, timeout=4.0), b"p/", quiet=0.1) as mirror,
    ):
        await mirror.until_listed()
        await asyncio.sleep(1.5)
        assert mirror.errors == []
        proxy.freeze()
        await mirror.until_error(Unavailable)
        await client.put(b"p/a", b"1")
        proxy.heal()
        await mirror.until_table({b"p/a": b"1"})


@pytest.mark.usefixtures("no_keepalive")
async def test_of_many_watches_on_one_connection_one_asks_and_all_notice_a_silent_way(
    etcd: LocalEtcd, client: EtcdClient, make_client
) -> None:
    async with TcpProxy(port_of(etcd)) as proxy, AsyncExitStack() as stack:
        shared = make_client(proxy.url, timeout=4.0)
        mirrors = [await stack.enter_async_context(Mirror(shared, b"p/", quiet=0.1)) for _ in range(20)]
        for mirror in mirrors:
            await mirror.until_listed()
        await asyncio.sleep(1.5)
        assert [mirror.errors for mirror in mirrors] == [[]] * 20
        proxy.freeze()
        for mirror in mirrors:
            await mirror.until_error(Unavailable)
        await client.put(b"p/a", b"1")
        proxy.heal()
        for mirror in mirrors:
            await mirror.until_table({b"p/a": b"1"})


@pytest.mark.usefixtures("no_keepalive")
async def test_a_connection_that_was_forgotten_on_the_way_is_replaced(etcd: LocalEtcd, make_client) -> None:
    """It stays open and silent for good: only another connection helps, for the watch and for calls."""
    async with TcpProxy(port_of(etcd)) as proxy:
        client = make_client(proxy.url, timeout=1.0)
        async with Mirror(client, b"p/", quiet=0.1) as mirror:
            await mirror.until_listed()
            proxy.strand()
            await mirror.until_error(Unavailable)
            await answering(client)
            await client.put(b"p/a", b"1")
            await mirror.until_table({b"p/a": b"1"})


async def test_the_transport_alone_notices_a_silent_server(
    etcd: LocalEtcd, client: EtcdClient, make_client, monkeypatch
) -> None:
    """The connection's own pings, without our probes: an idle watch is pinged for ever, and etcd does not mind."""
    for name, sooner in {"PING_AFTER": 5.2, "PING_PATIENCE": 4.0}.items():  # etcd's lower limit is 5 s
        assert sooner < getattr(channel, name) <= 10
        monkeypatch.setattr(channel, name, sooner)
    async with TcpProxy(port_of(etcd)) as proxy, Mirror(make_client(proxy.url), b"p/", quiet=3600.0) as mirror:
        await mirror.until_listed()
        await client.put(b"p/a", b"1")
        await mirror.until_table({b"p/a": b"1"})
        await asyncio.sleep(18)  # three pings
        assert mirror.errors == []
        proxy.freeze()
        await mirror.until_error(Unavailable)
        proxy.heal()
        await client.put(b"p/a", b"2")
        await mirror.until_table({b"p/a": b"2"})
