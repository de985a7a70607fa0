"""Reading and writing, on a real etcd."""

import asyncio
import socket
from contextlib import suppress

import pytest
from etcd_maintenance import delete_prefix
from tcp_proxy import TcpProxy, port_of

from clustermesh.errors import Refused, Unavailable
from clustermesh.store.client import Compacted, Delete, EtcdClient, Put, Replaced
from clustermesh.store.local import LocalEtcd


async def test_a_key_is_written_read_and_deleted(client: EtcdClient) -> None:
    assert await client.get(b"k") is None
    revision = await client.put(b"k", b"v")
    found = await client.get(b"k")
    assert found is not None
    assert (found.key, found.value, found.mod_revision, found.lease) == (b"k", b"v", revision, 0)
    assert await client.delete(b"k") == revision + 1
    assert await client.get(b"k") is None
    assert await client.delete(b"k") == revision + 1  # absent is success, and changes nothing


async def test_a_key_is_read_as_of_an_earlier_revision(client: EtcdClient) -> None:
    old = await client.put(b"k", b"old")
    new = await client.put(b"k", b"new")
    found = await client.get(b"k", revision=old)
    assert found is not None
    assert found.value == b"old"
    with pytest.raises(Replaced):
        await client.get(b"k", revision=new + 1)
    await client.compact(new)
    with pytest.raises(Compacted):
        await client.get(b"k", revision=old)


async def test_since_when_keys_are_there_is_told_for_those_that_are(client: EtcdClient) -> None:
    first = await client.put(b"k", b"1")
    await client.put(b"k", b"2")
    await client.delete(b"gone")
    last = await client.put(b"gone", b"1")
    assert await client.created([b"k", b"gone"]) == (last, {b"k": first, b"gone": last})
    await client.delete(b"gone")
    again = await client.put(b"k", b"3")
    assert await client.created([b"k", b"gone"]) == (again, {b"k": first})


async def test_swap_writes_only_what_nobody_else_wrote_meanwhile(client: EtcdClient) -> None:
    assert await client.swap(b"k", 0, b"first")
    assert not await client.swap(b"k", 0, b"second")
    found = await client.get(b"k")
    assert found is not None
    assert found.value == b"first"
    assert await client.swap(b"k", found.mod_revision, b"second")
    assert not await client.swap(b"k", found.mod_revision, b"third")


async def test_many_writes_are_cut_into_transactions_and_groups_stay_whole(client: EtcdClient) -> None:
    pairs = [(Put(b"a/%04d" % i, b"x"), Put(b"b/%04d" % i, b"y" * (i % 7) * 2000)) for i in range(500)]
    await client.transact([Delete(b"absent"), *pairs, Put(b"a/0000", b"again")])
    firsts = {kv.key[2:]: kv for kv in (await client.range(b"a/")).kvs}
    seconds = {kv.key[2:]: kv for kv in (await client.range(b"b/")).kvs}
    assert firsts.keys() == seconds.keys()
    assert firsts.pop(b"0000").value == b"again"
    assert all(first.mod_revision == seconds[key].mod_revision for key, first in firsts.items())


async def test_a_prefix_takes_in_neither_its_neighbours_nor_less_than_everything(client: EtcdClient) -> None:
    keys = [b"a", b"a/", b"a/1", b"a/\xff", b"a/\xff\xff", b"a0", b"b", b"\xff", b"\xff\xff"]
    await client.transact([Put(key, b"") for key in keys])
    assert [kv.key for kv in (await client.range(b"a/", page=2)).kvs] == [b"a/", b"a/1", b"a/\xff", b"a/\xff\xff"]
    assert [kv.key for kv in (await client.range(b"\xff", page=1)).kvs] == [b"\xff", b"\xff\xff"]
    assert [kv.key for kv in (await client.range(b"", page=2)).kvs] == sorted(keys)
    assert await delete_prefix(client, b"a/") == 4


async def test_pages_are_of_one_revision_though_others_write_meanwhile(client: EtcdClient) -> None:
    await client.transact([Put(b"k/%04d" % i, b"0") for i in range(300)])

    async def rewrite() -> None:
        for generation in range(1, 1000):
            # One transaction changes the first and the last page: a torn list would hold two generations.
            value = b"%d" % generation
            await client.transact([[Put(b"k/0000", value), Put(b"k/0299", value), Put(b"k/9%03d" % generation, value)]])

    writer = asyncio.create_task(rewrite())
    try:
        for _ in range(15):
            listing = await client.range(b"k/", page=10)
            values = {kv.key: kv.value for kv in listing.kvs}
            assert values[b"k/0000"] == values[b"k/0299"]
            assert len(values) == 300 + int(values[b"k/0000"])
            assert max(kv.mod_revision for kv in listing.kvs) <= listing.revision
    finally:
        writer.cancel()
        await asyncio.wait([writer])


async def test_a_page_too_large_for_one_message_is_asked_for_in_parts(client: EtcdClient) -> None:
    for i in range(30):
        await client.put(b"big/%02d" % i, bytes([i]) * 1_000_000)
    listing = await client.range(b"big/")
    assert [kv.value[0] for kv in listing.kvs] == list(range(30))


async def test_pages_are_as_large_as_before_once_the_large_values_are_past(client: EtcdClient) -> None:
    await client.transact([Put(b"mixed/%04d" % i, b"") for i in range(20, 1200)])
    for i in range(20):
        await client.put(b"mixed/%04d" % i, bytes(1_000_000))
    sizes = [len(part.kvs) async for part, _more in client.pages(b"mixed/", page=400)]
    assert sum(sizes) == 1200
    assert sizes[0] < 20  # they do not fit together
    assert max(sizes) == 400
    assert len(sizes) < 20


async def test_a_value_too_large_is_refused_by_name(client: EtcdClient) -> None:
    with pytest.raises(Refused, match="request is too large"):
        await client.put(b"k", b"x" * 2_000_000)


async def test_status_tells_version_and_leader(client: EtcdClient) -> None:
    status = await client.status()
    assert status.leader
    assert status.version.startswith("3.")
    assert status.db_size > 0


async def test_nobody_listening_is_unavailable_with_the_reason(make_client) -> None:
    client = make_client("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1: .*(refused|failed)"):
        await client.put(b"k", b"v")


async def test_the_next_endpoint_is_tried_after_a_dead_one(etcd: LocalEtcd, stack) -> None:
    client = await stack.enter_async_context(EtcdClient(["http://127.0.0.1:1", *etcd.endpoints]))
    with suppress(Unavailable):  # which of the two comes first is chance
        await client.put(b"k", b"v")
    assert await client.put(b"k", b"v") > 0


async def test_a_closed_client_says_so_and_does_not_hang(client: EtcdClient) -> None:
    await client.put(b"k", b"v")
    async with client:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await client.put(b"k", b"v")


async def test_closing_the_client_ends_a_call_under_way_without_cancelling_its_task(
    etcd: LocalEtcd, make_client
) -> None:
    async with TcpProxy(port_of(etcd)) as proxy:
        client = make_client(proxy.url, timeout=30.0)
        await client.put(b"k", b"v")
        proxy.freeze()
        writer = asyncio.create_task(client.put(b"k", b"w"))
        await asyncio.sleep(0.1)
        async with client:
            pass
        with pytest.raises(Unavailable, match="closed"):
            await asyncio.wait_for(writer, 20)


async def test_a_cancelled_call_is_cancelled(etcd: LocalEtcd, make_client) -> None:
    async with TcpProxy(port_of(etcd)) as proxy:
        client = make_client(proxy.url, timeout=30.0)
        await client.put(b"k", b"v")
        proxy.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.put(b"k", b"w")
        proxy.heal()
        assert await client.put(b"k", b"x") > 0


async def test_a_stream_on_a_connection_that_never_begins_ends_in_time(make_client) -> None:
    """As to an etcd that is stopped: the kernel takes the connection, and nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = make_client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        for _ in range(3):
            async with asyncio.timeout(60):
                with pytest.raises(Unavailable):
                    await client.keep_alive([1])
