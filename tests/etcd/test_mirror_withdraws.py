"""A mirror that is told to takes back the services of a peer that does not answer for long, and nothing else of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from mirror_bed import PATIENCE, MirrorBed, Peer, Timing, beating
from state_sink import StateSink

from clustermesh.mesh.messages import Terms
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.tables import peer_tables
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

IMPATIENT = Timing(own=0.0, wait=0.5, heartbeat=0.2, cache_ttl=4.0)
SAID = "cluster beta: its etcd does not answer, and its services are withdrawn"


@pytest.fixture
async def bed(
    tmp_path: Path,
    make_etcd: Callable[..., LocalEtcd],
    make_client: Callable[..., EtcdClient],
    monkeypatch: pytest.MonkeyPatch,
) -> MirrorBed:
    monkeypatch.setattr("clustermesh.mesh.brain.RECHECK", 0.2)
    monkeypatch.setattr("clustermesh.mesh.reader.QUIET", 0.5)
    made = MirrorBed(tmp_path, make_etcd, make_client)
    await made.etcd.start()
    return made


@pytest.fixture
async def beta(bed: MirrorBed) -> AsyncIterator[Peer]:
    peer = await bed.peer()
    async with beating(peer):
        yield peer


@pytest.fixture
async def behind(bed: MirrorBed) -> AsyncIterator[StateSink]:
    """What an agent knows that reads beta from the cache."""
    sink = StateSink()
    connect = lambda: EtcdClient(bed.etcd.endpoints)  # noqa: E731
    reader = ClusterReader("beta", sink, connect, peer_tables, lambda _n, _c: None, Terms(settle=0.5))
    task = asyncio.create_task(reader.run())
    yield sink
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def without_services(found: Mapping[bytes, KeyValue]) -> dict[bytes, bytes]:
    copied = (keys.CACHE, keys.CLUSTER_CONFIGS, keys.SYNCED)
    return {
        key: kv.value
        for key, kv in found.items()
        if key.startswith(copied) and not key.startswith(keys.CACHE + b"services/")
    }


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)


async def test_services_of_a_peer_that_is_dead_for_long_leave_the_cache_and_are_back_with_it(
    bed: MirrorBed, beta: Peer, behind: StateSink
) -> None:
    web = beta.cached(beta.service_key("web"))
    async with bed.running(IMPATIENT):
        before = await bed.until_cached(beta)
        await until(lambda: behind.view().services and behind.view().endpoints)
        beta.etcd.kill()
        after = await bed.until(lambda found: found and web not in found)
        assert without_services(after) == without_services(before)
        await bed.until_page("/readyz", SAID)
        await bed.until_page("/metrics", 'remote_cluster_cache_revocations{target_cluster="beta"} 1.0')
        await until(lambda: not behind.view().services)
        assert behind.view().nodes
        assert behind.view().identities
        assert behind.view().endpoints
        await beta.etcd.start()
        assert (await bed.until_cached(beta))[web].value == before[web].value
        await until(lambda: behind.view().services)


async def test_what_a_mirror_found_of_a_peer_that_is_dead_goes_as_well(bed: MirrorBed, beta: Peer) -> None:
    async with bed.running(IMPATIENT):
        before = await bed.until_cached(beta)
    beta.etcd.kill()
    async with bed.running(IMPATIENT):
        after = await bed.until(lambda found: found and beta.cached(beta.service_key("web")) not in found)
        assert without_services(after) == without_services(before)
        await beta.etcd.start()
        await bed.until_cached(beta)
