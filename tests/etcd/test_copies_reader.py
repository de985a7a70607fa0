"""The reader of a cluster's copies, which a mirror wrote beside an API server that beats, against a real etcd."""

from __future__ import annotations

import asyncio
import random

import pytest
from state_sink import StateSink

from clustermesh.mesh import brain
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import peer_tables
from clustermesh.mirror.copies import KINDS, cache_key, canary_key
from clustermesh.model import ClusterConfig, Service
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import cluster_config, keys, service
from clustermesh.wire.kinds import SERVICES

CONFIG = ClusterConfig(id=2, synced_canaries=True, cached=True, max_connected_clusters=255)
LONG = 3600


async def copy(client: EtcdClient, name: str, lease: int) -> None:
    copied = Service(cluster="beta", cluster_id=2, namespace="shop", name=name)
    await client.put(cache_key("beta", SERVICES, ("shop", name)), service.encode(copied), lease)


async def beat(client: EtcdClient) -> None:
    """The API server's, which knows nothing of the mirror."""
    await client.put(keys.HEARTBEAT, f"{random.random()}".encode())


async def test_copies_whose_leases_end_first_stay_until_their_mirror_is_known_to_live(
    client: EtcdClient, etcd: LocalEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain, "RECHECK", 0.3)
    sink = StateSink()
    of_canaries, of_copies = await client.grant(LONG), await client.grant(LONG)
    await client.put(keys.cluster_config_key("beta"), cluster_config.encode(CONFIG), of_copies)
    await beat(client)
    for name in ("web", "old"):
        await copy(client, name, of_copies)
    for kind in KINDS:
        await client.put(canary_key("beta", kind), b"now", of_canaries)
    reader = ClusterReader(
        "beta", sink, lambda: EtcdClient(etcd.endpoints), peer_tables, lambda *_: None, Terms(settle=1.0)
    )
    task = asyncio.create_task(reader.run())
    try:
        async with asyncio.timeout(30):
            while reader.session.state is not State.FRESH:
                await asyncio.sleep(0.02)
            await client.revoke(of_copies)  # as etcd does when it ends
            for _ in range(20):
                await beat(client)
                await asyncio.sleep(0.2)
            assert set(sink.view().services) == {("shop", "web"), ("shop", "old")}, "nobody renews the canaries' lease"
            await copy(client, "web", of_canaries)  # the mirror is heard of again: it has this one, and no other
            while set(sink.view().services) != {("shop", "web")}:
                await beat(client)
                await client.keep_alive([of_canaries])
                await asyncio.sleep(0.2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
