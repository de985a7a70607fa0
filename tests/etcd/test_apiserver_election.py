"""Two API servers of one etcd: one writes, the other is ready to; whatever becomes of the first, nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path

import processes
import pytest
from apiserver_bed import NO_AGENTS, PATIENCE, Bed, manifests, pods, until_page
from etcd_maintenance import delete_prefix
from ports import free_port
from test_apiserver_restart import heard

from clustermesh.apiserver.server import run
from clustermesh.own_cluster import of_folder
from clustermesh.sources.folder import FolderSource
from clustermesh.sources.snapshot import Change
from clustermesh.store import auth
from clustermesh.store.client import Delete, EtcdClient, Fence, Fenced, Put
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

CART = keys.service_key("alpha", "shop", "cart")


class Pair:
    """A leader and one that stands by, each a process with its own port."""

    def __init__(
        self, bed: Bed, leader: asyncio.subprocess.Process, second: asyncio.subprocess.Process, https: Sequence[str]
    ):
        self.bed, self.leader, self.second, self.https = bed, leader, second, https

    async def count_leaders(self) -> int:
        pages = [(await processes.page(http, "/metrics"))[1] for http in self.https]
        return sum("leader_election_master_status 1.0" in page for page in pages)

    async def until_taken_over(self, before: dict[bytes, KeyValue]) -> float:
        """Seconds until the other one has beaten."""
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while (await self.bed.all())[keys.HEARTBEAT].mod_revision == before[keys.HEARTBEAT].mod_revision:
                await asyncio.sleep(0.01)
        return time.monotonic() - began


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    bed = Bed(tmp_path)
    bed.write("shop.yaml", manifests("10.1.0.5"))
    bed.write("pods.yaml", pods(*(f"pod-{number}" for number in range(20))))
    async with bed:
        await bed.etcd.start()
        async with bed.child() as leader:
            await bed.until_synced()
            await until_page(bed, "/readyz", "ok")
            first_http, bed.http = bed.http, f"127.0.0.1:{free_port()}"
            async with bed.child() as second:
                await until_page(bed, "/readyz", "ok, standing by")
                yield Pair(bed, leader, second, [first_http, bed.http])


async def test_who_stands_by_writes_nothing(pair: Pair) -> None:
    """Each key is written once and one leads; not that it is still the first, which may be too busy to lead on."""
    async with heard(pair.bed) as told:
        pair.bed.write("shop.yaml", manifests("10.1.0.5", "10.1.0.6"))
        await pair.bed.until(lambda found: b"10.1.0.6" in found[CART].value)
        await asyncio.sleep(0.5)
    assert set(told) == {CART, keys.CHANGED_SERVICES}
    assert len(told) == 2
    assert await pair.count_leaders() == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_the_second_takes_over_and_rewrites_nothing(pair: Pair, end: signal.Signals) -> None:
    async with heard(pair.bed) as told:
        before = await pair.bed.all()
        pair.leader.send_signal(end)
        print(f"taken over {await pair.until_taken_over(before):.2f} s after {end.name}")
        await until_page(pair.bed, "/metrics", "leader_election_master_status 1.0")
        await until_page(pair.bed, "/metrics", "clustermesh_apiserver_ready 1.0")
    assert told == []
    pair.bed.write("shop.yaml", manifests("10.1.0.7"))
    await pair.bed.until(lambda found: b"10.1.0.7" in found[CART].value)


async def test_what_changed_while_it_stood_by_is_what_the_second_publishes(pair: Pair) -> None:
    pair.leader.send_signal(signal.SIGSTOP)
    pair.bed.write("shop.yaml", manifests("10.1.0.8"))
    await pair.bed.until(lambda found: b"10.1.0.8" in found[CART].value)


async def test_a_leader_that_hung_writes_no_more_and_stands_by(pair: Pair) -> None:
    before = await pair.bed.all()
    pair.leader.send_signal(signal.SIGSTOP)
    await pair.until_taken_over(before)
    await until_page(pair.bed, "/metrics", "clustermesh_apiserver_ready 1.0")
    # What it hears of first is that its source has changed; it would publish that at once.
    pair.bed.write("shop.yaml", manifests("10.1.0.9"))
    await pair.bed.until(lambda found: b"10.1.0.9" in found[CART].value)
    async with heard(pair.bed) as told:
        pair.leader.send_signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            while len((await pair.bed.client.range(keys.API_SERVER_LEADERS)).kvs) < 2:
                await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
    assert told == []
    pair.second.kill()
    pair.bed.write("shop.yaml", manifests("10.1.0.10"))
    await pair.bed.until(lambda found: b"10.1.0.10" in found[CART].value)


async def test_an_etcd_that_comes_back_empty_is_filled_by_one_of_them(pair: Pair) -> None:
    data = await pair.bed.data()
    await pair.bed.etcd.stop()
    pair.bed.etcd = pair.bed.make_etcd("another")
    await pair.bed.etcd.start()
    await pair.bed.until_synced()
    assert await pair.bed.data() == data


async def test_a_leader_whose_key_somebody_removes_leads_on(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.write("shop.yaml", manifests("10.1.0.5"))
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            await bed.until_synced()
            assert await delete_prefix(bed.client, keys.API_SERVER_LEADERS)
            bed.write("shop.yaml", manifests("10.1.0.6"))
            await bed.until(lambda found: b"10.1.0.6" in found[CART].value)


class Counted(FolderSource):
    heard = 0

    def updates(self) -> AsyncGenerator[Change, None]:
        self.heard += 1
        return super().updates()


async def test_who_is_deposed_begins_anew_with_what_its_source_has_told(tmp_path: Path) -> None:
    bed, db, stock = Bed(tmp_path), *(keys.service_key("alpha", "shop", name) for name in ("db", "stock"))
    for name in ("cart", "db"):
        bed.write(f"{name}.yaml", manifests("10.1.0.5", name=name))
    source = Counted(bed.context.manifests, bed.context.cluster)
    async with bed:
        await bed.etcd.start()
        async with processes.serving(run(of_folder(bed.context), source, [bed.http], NO_AGENTS)):
            before = await bed.until_synced()
            other = keys.API_SERVER_LEADERS + b"other"
            places = [kv.key for kv in (await bed.client.range(keys.API_SERVER_LEADERS)).kvs]
            await bed.client.transact([[*map(Delete, places), Put(other, b"the other")]])
            await until_page(bed, "/readyz", "ok, standing by")
            (bed.context.manifests / "db.yaml").unlink()
            bed.write("stock.yaml", manifests("10.1.0.6", name="stock"))
            async with bed.deletions() as gone:
                await bed.client.delete(other)
                after = await bed.until(lambda found: stock in found and db not in found)
                await until_page(bed, "/readyz", "ok")
        assert set(gone) <= {db, other}
        assert after[CART].mod_revision == before[CART].mod_revision
        assert source.heard == 1


async def test_a_fence_guards_every_write_and_change_of_users(client: EtcdClient) -> None:
    await client.put(b"leader", b"")
    made = (await client.range(b"leader")).revision
    client.fence = Fence(b"leader", made)
    await client.put(b"a", b"1")
    assert await client.swap(b"b", 0, b"1")
    for fence in (Fence(b"leader", made - 1), Fence(b"leader", 0), Fence(b"nobody", made)):
        client.fence = fence
        for attempt in (client.put(b"a", b"2"), client.delete(b"a"), client.transact([])):
            if attempt.__name__ == "transact":
                assert await attempt == 0
                continue
            with pytest.raises(Fenced):
                await attempt
        with pytest.raises(Fenced):
            await auth.enable(client)
    client.fence = Fence(b"nobody", made)
    assert not await client.swap(b"c", 0, b"1")
    client.fence = None
    assert not await auth.list_users(client)
    assert {kv.key: kv.value for kv in (await client.range(b"")).kvs} == {b"a": b"1", b"b": b"1", b"leader": b""}
