"""What a reader takes back by itself, against a real etcd: services of who does not answer, all of who is another."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_mesh_reader import BETA, WEB, StateSink, beat, publish, until, web

from clustermesh.address import parse
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import cluster_config, keys


@pytest.fixture
async def impatient(etcd: LocalEtcd, sink: StateSink, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterReader]:
    """A reader that withdraws services after 2 s."""
    monkeypatch.setattr("clustermesh.mesh.brain.RECHECK", 0.2)
    monkeypatch.setattr("clustermesh.mesh.reader.QUIET", 0.5)
    connect = lambda: EtcdClient(etcd.endpoints, timeout=1.0)  # noqa: E731
    reader = ClusterReader(BETA, sink, connect, peer_tables, lambda _n, _c: None, Terms(cache_ttl=2.0))
    task = asyncio.create_task(reader.run())
    yield reader
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def sink() -> StateSink:
    return StateSink()


async def test_services_of_an_etcd_that_is_dead_for_long_go_and_are_back_with_it(
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, impatient: ClusterReader
) -> None:
    await publish(client)
    await until(lambda: impatient.session.state is State.FRESH)
    etcd.kill()
    await until(lambda: impatient.brain.withdrawn)
    view = sink.view()
    assert not view.services
    assert view.nodes
    assert view.identities
    assert view.endpoints
    assert impatient.session.state is State.STALE
    await etcd.start()
    await until(lambda: sink.view().services and impatient.session.state is State.FRESH)
    assert not impatient.brain.withdrawn


async def test_services_of_an_etcd_that_was_stopped_for_long_are_back_though_its_watch_goes_on(
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, impatient: ClusterReader
) -> None:
    await publish(client)
    await until(lambda: impatient.session.state is State.FRESH)
    assert etcd.pid is not None
    os.kill(etcd.pid, signal.SIGSTOP)
    try:
        await until(lambda: impatient.brain.withdrawn)
        assert not sink.view().services
    finally:
        os.kill(etcd.pid, signal.SIGCONT)
    await until(lambda: sink.view().services)
    await client.put(WEB, web("10.2.1.9"))
    await until(lambda: list(sink.view().services[("shop", "web")].backends) == [parse("10.2.1.9")])


async def test_a_cluster_that_takes_another_id_while_it_is_read_is_drained_and_read_anew(
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clustermesh.mesh.brain.RECHECK", 0.2)
    await publish(client)
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / BETA).write_text(f"endpoints:\n- {etcd.endpoints[0]}\n")
    connect = lambda file: EtcdClient(file.endpoints, timeout=2.0)  # noqa: E731
    peers = Peers(folder, Cluster(name="alpha", id=1), sink, connect, peer_tables, tmp_path / "keep")
    task = asyncio.create_task(peers.run())
    try:
        await until(lambda: BETA in peers.readers and peers.readers[BETA].session.state is State.FRESH)
        await beat(client)
        other = ClusterConfig(id=3, synced_canaries=True)
        await client.put(keys.cluster_config_key(BETA), cluster_config.encode(other))
        await until(lambda: peers.readers[BETA].config == other and peers.readers[BETA].session.state is State.FRESH)
        assert not sink.view().nodes, "they are of the cluster with the other id"
        assert not sink.view().services
        assert len(sink.refused()) >= 2, "and are refused as long as they say so"
        peers.admit("gamma", ClusterConfig(id=2))
        (folder / BETA).unlink()
        monkeypatch.setattr("clustermesh.mesh.peers.DRAIN_SECONDS", 0.1)
        await until(lambda: BETA not in peers.readers)
        peers.admit("gamma", other)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
