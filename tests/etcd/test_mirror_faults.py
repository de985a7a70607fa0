"""Whatever becomes of mirrors, peers and etcds: the copies equal the truth, and nothing goes on the way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import mirror
import pytest
from mirror_bed import MirrorBed, Peer, Timing, beating
from ports import free_port
from processes import PATIENCE

from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import RESOURCES, keys


@pytest.fixture
async def bed(tmp_path: Path, make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]) -> MirrorBed:
    made = MirrorBed(tmp_path, make_etcd, make_client)
    await made.etcd.start()
    return made


@pytest.fixture
async def beta(bed: MirrorBed) -> AsyncIterator[Peer]:
    """Beats on."""
    peer = await bed.peer()
    async with beating(peer):
        yield peer


def heard(bed: MirrorBed) -> AbstractAsyncContextManager[list[bytes]]:
    """The keys of which an agent is told while the block lasts."""
    return mirror.heard(bed.client, b"cilium/", keys.KVSTOREMESH_LOCK)


LEADS = 'leader_election_master_status{name="kvstoremesh"} 1.0'
FRESH = 'remote_cluster_readiness_status{target_cluster="beta"} 1.0'


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_no_agent_hears_anything_of_a_restart(bed: MirrorBed, beta: Peer, end: signal.Signals) -> None:
    async with bed.child() as first:
        await bed.until_cached(beta)
        first.send_signal(end)
        await first.wait()
    async with heard(bed) as told, bed.child():
        await bed.until_page("/metrics", FRESH)
        await asyncio.sleep(1)
    assert told == []


async def test_what_went_while_no_mirror_ran_goes_and_what_came_comes(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running():
        await bed.until_cached(beta)
    await beta.client.delete(beta.service_key("web"))
    await beta.put_service("db", "10.2.1.5")
    async with (
        bed.running()
    ):  # what a first list lacks is kept for 30 s, and as long again where the reader begins anew
        await bed.until_cached(beta, 4 * PATIENCE)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_warm_stand_by_takes_over_with_nothing_to_delete_or_write(
    bed: MirrorBed, beta: Peer, end: signal.Signals
) -> None:
    async with bed.child() as first:
        await bed.until_cached(beta)
        bed.http = f"127.0.0.1:{free_port()}"
        async with bed.child():
            await bed.until_page("/readyz", "ok, standing by")
            await bed.until_page("/metrics", FRESH)
            await beta.put_service("more", "10.2.1.5")  # which the leader copies, and both know
            await bed.until_cached(beta)
            async with heard(bed) as told:
                first.send_signal(end)
                await bed.until_page("/metrics", LEADS)
                await beta.put_service("db", "10.2.1.5")
                await bed.until_cached(beta)
            assert told == [beta.cached(beta.service_key("db"))]


async def test_what_came_and_went_while_nobody_led_comes_and_goes(bed: MirrorBed, beta: Peer) -> None:
    async with bed.child() as first:
        await bed.until_cached(beta)
        bed.http = f"127.0.0.1:{free_port()}"
        async with bed.child():
            await bed.until_page("/metrics", FRESH)
            async with heard(bed) as told:
                first.kill()
                await first.wait()
                await beta.put_service("db", "10.2.1.5")
                await beta.client.delete(beta.service_key("web"))
                await bed.until_cached(beta)
            assert sorted(told) == [beta.cached(beta.service_key(name)) for name in ("db", "web")]


async def test_who_has_a_prefix_keeps_it_over_a_restart_whoever_is_heard_of_first(bed: MirrorBed, beta: Peer) -> None:
    gamma = await bed.peer("gamma", 3, connected=False)
    await gamma.put_node("thief", "192.0.2.77", "10.2.1.0/24")
    async with beating(gamma):
        async with bed.running():
            await bed.until_cached(beta)
            bed.connect(gamma)
            await bed.until_page("/readyz", "nodes/thief is not copied")
            before = await bed.until(lambda found: keys.canary_key("gamma", "services", cached=True) in found)
        beta.etcd.kill()
        async with bed.running():
            await bed.until_page("/metrics", FRESH.replace("beta", "gamma"))
            await bed.until_page("/readyz", "nodes/thief is not copied")
            assert (await bed.all()).keys() == before.keys()


async def test_who_has_a_prefix_keeps_it_where_the_stand_by_had_decided_otherwise(
    bed: MirrorBed, beta: Peer, tmp_path: Path
) -> None:
    """It did not hear of beta, and so gamma was the first."""
    gamma, deaf = await bed.peer("gamma", 3), tmp_path / "deaf"
    deaf.mkdir()
    bed.connect(gamma, deaf)
    bed.connect(beta, deaf, f"http://127.0.0.1:{free_port()}")
    async with beating(gamma), bed.child() as first:
        await bed.until_cached(beta)
        await bed.until_cached(gamma)
        leader, bed.http = bed.http, f"127.0.0.1:{free_port()}"
        async with bed.child(deaf):
            await bed.until_page("/metrics", FRESH.replace("beta", "gamma"))
            await beta.put_node("beta2", "192.0.2.66", "10.9.1.0/24")
            await bed.until_cached(beta)
            await gamma.put_node("late", "192.0.2.77", "10.9.1.0/24")
            await bed.until_page("/metrics", 'entries{kind="nodes",target_cluster="gamma"} 2.0')
            stand_by, bed.http = bed.http, leader
            await bed.until_page("/readyz", "nodes/late is not copied")
            bed.http = stand_by
            async with heard(bed) as told:
                first.kill()
                await bed.until_page("/readyz", "nodes/late is not copied")
                await bed.until_page("/metrics", LEADS)
                await gamma.put_service("db", "10.3.1.5")
                await bed.until(lambda found: gamma.cached(gamma.service_key("db")) in found)
            assert told == [gamma.cached(gamma.service_key("db"))]


async def test_a_mirror_that_hung_writes_no_more_and_stands_by(bed: MirrorBed, beta: Peer) -> None:
    async with bed.child() as first:
        await bed.until_cached(beta)
        bed.http = f"127.0.0.1:{free_port()}"
        async with bed.child() as second:
            await bed.until_page("/readyz", "ok, standing by")
            first.send_signal(signal.SIGSTOP)
            await bed.until_page("/metrics", FRESH)
            await beta.put_service("db", "10.2.1.5")
            await bed.until_cached(beta)
            async with heard(bed) as told:
                first.send_signal(signal.SIGCONT)
                async with asyncio.timeout(60):
                    while len((await bed.client.range(keys.KVSTOREMESH_LOCK + b"/")).kvs) < 2:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(1)
            assert told == []
            second.kill()
            await beta.put_service("more", "10.2.1.5")
            await bed.until_cached(beta)


async def test_an_own_etcd_that_comes_back_empty_is_filled_again(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running():
        await bed.until_cached(beta)
        await bed.etcd.stop()
        for path in sorted(bed.etcd.data_dir.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        await bed.etcd.start()
        found = await bed.until_cached(beta)
    config = found[keys.cluster_config_key("beta")].mod_revision
    for kind in ("nodes", "services", "ip", "identities"):
        place, canary = f"cilium/cache/{kind}/".encode(), keys.canary_key("beta", kind, cached=True)
        written = {kv.mod_revision for key, kv in found.items() if key.startswith(place)}
        assert config < min(written) <= max(written) < found[canary].mod_revision


async def test_an_own_etcd_that_is_restarted_loses_nothing(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running():
        before = await bed.until_cached(beta)
        bed.etcd.kill()
        await beta.put_service("db", "10.2.1.5")
        await bed.etcd.start()
        after = await bed.until_cached(beta)
        assert {key: after[key].mod_revision for key in before} == {key: kv.mod_revision for key, kv in before.items()}


async def test_a_peer_whose_etcd_comes_back_empty_keeps_its_copies_until_it_is_filled(
    bed: MirrorBed, beta: Peer
) -> None:
    async with bed.running():
        await bed.until_cached(beta)
        async with heard(bed) as told:
            await beta.etcd.stop()
            for path in sorted(beta.etcd.data_dir.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            await beta.etcd.start()
            await asyncio.sleep(2)
            await beta.publish()
            await bed.until_page("/metrics", FRESH)
            await bed.until_cached(beta)
        assert told == []


async def test_entries_whose_leases_ended_with_their_api_server_are_kept(bed: MirrorBed) -> None:
    beta = await bed.peer()
    lease = await beta.client.grant(60)
    await beta.publish(lease)
    async with bed.running():
        async with beating(beta):
            before = await bed.until_cached(beta)
        await beta.client.delete(keys.HEARTBEAT)
        await beta.client.revoke(lease)
        await asyncio.sleep(1)
        after = await bed.all()
        assert after.keys() == before.keys()
        async with beating(beta):  # it begins anew, with less
            await beta.put_node("beta1", "192.0.2.2", "10.2.1.0/24")
            for kind in ("nodes", "services"):
                await beta.client.put(RESOURCES[kind].canary("beta") or b"", b"later", await beta.client.grant(60))
            await asyncio.sleep(1)
            assert (await bed.all()).keys() == before.keys(), "not proven yet"


async def test_copies_are_kept_alive_and_a_lost_lease_is_replaced(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running(Timing(own=0.0, lease_ttl=6)):
        before = await bed.until_cached(beta)
        async with heard(bed) as told:
            await asyncio.sleep(8)
        assert told == []
        for lease in {kv.lease for kv in before.values()}:
            await bed.client.revoke(lease)
        await bed.until_cached(beta)


async def test_a_compaction_under_the_watches_costs_nothing(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running():
        before = await bed.until_cached(beta)
        for client in (beta.client, bed.client):
            await client.compact((await client.range(b"cilium/")).revision)
        await beta.put_service("db", "10.2.1.5")
        after = await bed.until_cached(beta)
        assert {key: after[key].mod_revision for key in before} == {key: kv.mod_revision for key, kv in before.items()}
