"""Random writes, random cuts, random restarts: at the end the follower's table is the store's content."""

import asyncio
import random
import sys

import pytest
from mirror import Mirror, answering, content
from tcp_proxy import TcpProxy, port_of

from clustermesh.store.backoff import Backoff
from clustermesh.store.client import Delete, EtcdClient, Put
from clustermesh.store.follow import follow
from clustermesh.store.local import LocalEtcd

SEEDS = range(6)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again within half a second, so that much happens in little time."""
    monkeypatch.setattr(sys.modules[follow.__module__], "Backoff", lambda: Backoff(last=0.5))


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_the_table_ends_as_the_store(seed, etcd: LocalEtcd, client: EtcdClient, make_client):
    rng = random.Random(seed)
    async with (
        TcpProxy(port_of(etcd)) as proxy,
        Mirror(make_client(proxy.url, timeout=1.0), b"p/", quiet=0.5) as mirror,
    ):
        for _ in range(40):
            await _write(rng, client)
            await _disturb(rng, proxy, client)
        proxy.heal()
        await client.put(b"p/last", b"%d" % seed)
        await mirror.until_table(await content(client, b"p/"))
    # What was there all along was never told as deleted: a follower does not flap.
    assert b"p/always" not in mirror.deletions


@pytest.mark.parametrize("seed", SEEDS[:4])
async def test_whatever_history_is_replaced_by_the_table_ends_as_the_store(
    seed, etcd: LocalEtcd, client: EtcdClient, make_client
):
    """Ends and fresh starts, with and without the data, under a follower that is also cut off now and then."""
    rng = random.Random(seed)
    async with (
        TcpProxy(port_of(etcd)) as proxy,
        Mirror(make_client(proxy.url, timeout=1.0), b"p/", quiet=0.5) as mirror,
    ):
        for generation in range(3):
            for _ in range(rng.randrange(1, 15)):
                await _write(rng, client)
                await _disturb(rng, proxy, client)
            etcd.kill()
            if rng.random() < 0.5:
                etcd.data_dir = etcd.data_dir.with_name(f"empty{generation}")
            await etcd.start()
            await answering(client)
        proxy.heal()
        await client.put(b"p/last", b"%d" % seed)
        await mirror.until_table(await content(client, b"p/"))


async def _write(rng: random.Random, client: EtcdClient) -> None:
    keys = rng.sample(range(30), rng.randrange(1, 10))
    ops = [
        Delete(b"p/%d" % k) if rng.random() < 0.4 else Put(b"p/%d" % k, rng.randbytes(rng.randrange(40))) for k in keys
    ]
    await client.transact([Put(b"p/always", b"%d" % rng.randrange(1 << 30)), *ops])
    if rng.random() < 0.2:
        await client.compact(await client.put(b"elsewhere", b"x"))


async def _disturb(rng: random.Random, proxy: TcpProxy, client: EtcdClient) -> None:
    match rng.randrange(8):
        case 0:
            await proxy.cut()
        case 1:
            await proxy.refuse()
        case 2 | 3:
            proxy.heal()
        case 4:
            proxy.freeze()
        case 5:
            await asyncio.sleep(rng.random() / 4)
        case _:
            await client.get(b"p/always")
