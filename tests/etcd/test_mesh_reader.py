"""The reader of one remote cluster against a real etcd: order, gates, faults, and what Cilium's readers do not say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from state_sink import StateSink

from clustermesh.address import parse, parse_prefix
from clustermesh.errors import Invalid
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import (
    Cluster,
    ClusterConfig,
    Endpoint,
    Identity,
    Label,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
)
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import RESOURCES, cluster_config, endpoint, identity, keys, node, service

BETA = "beta"
CONFIG = ClusterConfig(id=2, synced_canaries=True, max_connected_clusters=255, service_exports_enabled=False)
TABLES = ("nodes", "identities", "endpoints", "services")


def web(*addresses: str) -> bytes:
    ports = {"http": Port(protocol=Protocol.TCP, port=80)}
    return service.encode(
        Service(
            cluster=BETA,
            cluster_id=2,
            namespace="shop",
            name="web",
            backends=dict.fromkeys(map(parse, addresses), ports),
        )
    )


WEB = keys.service_key(BETA, "shop", "web")


async def publish(
    client: EtcdClient, config: ClusterConfig = CONFIG, canaries: tuple[str, ...] = TABLES, lease: int = 0
) -> None:
    """What an API server of beta writes, canaries last."""
    await client.put(keys.cluster_config_key(BETA), cluster_config.encode(config), lease)
    await client.put(keys.HEARTBEAT, b"2026-01-01T00:00:00Z", lease)
    machine = Node(
        cluster=BETA,
        cluster_id=2,
        name="b1",
        addresses=(NodeAddress(type="InternalIP", ip=parse("192.0.2.2")),),
        pod_cidrs=(parse_prefix("10.2.1.0/24"),),
    )
    labels = (Label(source="k8s", key="io.cilium.k8s.policy.cluster", value=BETA),)
    await client.put(keys.node_key(BETA, "b1"), node.encode(machine), lease)
    await client.put(keys.identity_key(131073), identity.encode(Identity(id=131073, labels=labels)), lease)
    await client.put(
        keys.endpoint_key(parse("10.2.1.5")), endpoint.encode(Endpoint(ip=parse("10.2.1.5"), identity=131073)), lease
    )
    await client.put(WEB, web("10.2.1.5"), lease)
    for name in canaries:
        await client.put(RESOURCES[name].canary(BETA), b"2026-01-01T00:00:00Z", lease)


async def beat(client: EtcdClient) -> None:
    """A sign that an API server is at work."""
    await client.put(keys.HEARTBEAT, f"{random.random()}".encode())


def take_all(state: MeshState) -> set[object]:
    return {*state.take_nodes(), *state.take_addresses(), *state.take_services()}


@asynccontextmanager
async def running(reader: ClusterReader) -> AsyncIterator[ClusterReader]:
    """`reader` at work during the block."""
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def sink() -> StateSink:
    return StateSink()


@pytest.fixture
def reading(sink: StateSink, etcd: LocalEtcd) -> Callable[..., Any]:
    """An async context manager around a running reader of `etcd`."""

    @asynccontextmanager
    async def start(
        admit: Callable[[str, ClusterConfig], None] = lambda _n, _c: None, terms: Terms | None = None
    ) -> AsyncIterator[ClusterReader]:
        connect = lambda: EtcdClient(etcd.endpoints, timeout=2.0)  # noqa: E731
        async with running(ClusterReader(BETA, sink, connect, peer_tables, admit, terms)) as reader:
            yield reader

    return start


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def beat_until(client: EtcdClient, condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await beat(client)
            await asyncio.sleep(0.1)


async def test_everything_is_read_and_the_cluster_is_fresh(client: EtcdClient, sink: StateSink, reading) -> None:  # type: ignore[no-untyped-def]
    await publish(client)
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
        view = sink.view()
        assert list(view.nodes) == ["b1"]
        assert list(view.identities) == [131073]
        assert list(view.endpoints) == [parse("10.2.1.5")]
        assert list(view.services) == [("shop", "web")]
        await beat(client)
        await client.delete(WEB)
        await until(lambda: not view.services)
        assert reader.session.state is State.FRESH


async def test_a_table_waits_for_its_canary_and_the_status_says_so(
    client: EtcdClient, sink: StateSink, reading
) -> None:  # type: ignore[no-untyped-def]
    await publish(client, canaries=("nodes", "identities", "endpoints"))
    async with reading() as reader:
        await until(lambda: set(reader.brain.behind) == {"services"})
        assert "canary" in reader.brain.behind["services"]
        assert reader.session.state is State.SYNCING
        assert not sink.view().services
        await client.put(RESOURCES["services"].canary(BETA), b"now")
        await until(lambda: reader.session.state is State.FRESH)
        assert sink.view().services


async def test_without_a_cluster_config_the_status_says_what_is_missing(client: EtcdClient, reading) -> None:  # type: ignore[no-untyped-def]
    async with reading() as reader:
        await until(lambda: reader.session.error)
        assert "cilium/cluster-config/beta" in reader.session.error
        assert reader.session.state is State.CONNECTING
        await publish(client)
        await until(lambda: reader.session.state is State.FRESH)
        assert reader.session.error == ""


async def test_entries_that_are_not_the_peers_are_refused_one_by_one(
    client: EtcdClient, sink: StateSink, reading
) -> None:  # type: ignore[no-untyped-def]
    await publish(client)
    foreign = Service(cluster="gamma", cluster_id=2, namespace="shop", name="db")
    bad = {
        keys.service_key(BETA, "shop", "db"): service.encode(foreign),
        keys.service_key(BETA, "shop", "garbage"): b"\xff{",
        keys.identity_key(65537): b"k8s:io.cilium.k8s.policy.cluster=beta;",
        keys.endpoint_key(parse("10.2.1.6")): endpoint.encode(Endpoint(ip=parse("10.2.1.7"), identity=131073)),
    }
    for key, value in bad.items():
        await client.put(key, value)
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
        assert sink.names(BETA, "refused") == {key.decode() for key in bad}
        assert list(sink.view().services) == [("shop", "web")]
        await client.put(keys.service_key(BETA, "shop", "garbage"), web().replace(b'"web"', b'"garbage"'))
        await until(lambda: ("shop", "garbage") in sink.view().services)
        assert "cilium/state/services/v1/beta/shop/garbage" not in sink.refused()


async def test_a_value_that_turns_to_garbage_keeps_the_last_good_one(
    client: EtcdClient, sink: StateSink, reading
) -> None:  # type: ignore[no-untyped-def]
    await publish(client)
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
        await client.put(WEB, b"garbage")
        await until(sink.refused)
        assert list(sink.view().services[("shop", "web")].backends) == [parse("10.2.1.5")]


async def test_losing_the_etcd_keeps_everything_and_a_restart_ends_at_the_truth(  # type: ignore[no-untyped-def]
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, reading
) -> None:
    await publish(client)
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
        etcd.kill()
        await until(lambda: reader.session.state is State.STALE)
        assert list(sink.view().services) == [("shop", "web")]
        assert reader.session.error
        take_all(sink.state)
        await etcd.start()
        await until(lambda: reader.session.state is State.FRESH)
        assert not take_all(sink.state), "coming back changes nothing that is still so"
        await client.put(WEB, web("10.2.1.9"))
        await until(lambda: list(sink.view().services[("shop", "web")].backends) == [parse("10.2.1.9")])


async def test_an_etcd_started_empty_takes_nothing_away_while_it_is_filled_again(  # type: ignore[no-untyped-def]
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, reading, make_client
) -> None:
    await publish(client)
    await client.put(keys.service_key(BETA, "shop", "old"), web().replace(b'"web"', b'"old"'))
    async with reading(terms=Terms(settle=1.0)) as reader:
        await until(lambda: reader.session.state is State.FRESH)
        take_all(sink.state)
        etcd.kill()
        etcd.data_dir = etcd.data_dir.with_name("empty")
        await etcd.start()
        filling = make_client(etcd)  # of the new etcd: the old client knows another cluster id
        await until(lambda: "cilium/cluster-config" in reader.session.error)
        assert reader.session.state is State.STALE
        await publish(filling, canaries=("nodes", "identities", "endpoints"))
        await until(lambda: "canary" in reader.brain.behind.get("services", ""))
        assert set(sink.view().services) == {("shop", "web"), ("shop", "old")}
        assert reader.session.state is State.STALE
        assert not take_all(sink.state), "what was there and is there again has not moved"
        await filling.put(RESOURCES["services"].canary(BETA), b"now")
        await until(lambda: reader.session.state is State.FRESH)
        assert set(sink.view().services) == {("shop", "web"), ("shop", "old")}, "nobody has been seen to beat"
        await beat_until(filling, lambda: set(sink.view().services) == {("shop", "web")})


async def test_entries_outlive_their_leases_while_the_api_server_is_down_and_the_reader_is_started_anew(  # type: ignore[no-untyped-def]
    client: EtcdClient, sink: StateSink, reading
) -> None:
    """Of the own cluster and of a peer alike: its etcd lives, and deletes what nobody answers for any more."""
    await publish(client, lease=(lease := await client.grant(3600)))
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
    async with reading() as reader:
        reader.restored(CONFIG)
        await until(lambda: reader.session.state is State.FRESH)
        await client.revoke(lease)  # as etcd does when it ends
        await client.put(keys.node_key(BETA, "b2"), b"a sign that all before it was read")
        await until(sink.refused)
        assert list(sink.view().services) == [("shop", "web")]
        assert [len(sink.view().table(kind)) for kind in TABLES] == [1] * len(TABLES)
    async with reading(terms=Terms(settle=1.0)) as reader:
        reader.restored(CONFIG)
        await until(lambda: "cilium/cluster-config" in reader.session.error)
        assert reader.session.state is State.STALE
        await client.delete(keys.node_key(BETA, "b2"))
        await publish(client)
        await client.delete(WEB)
        await until(lambda: reader.session.state is State.FRESH)
        assert list(sink.view().services) == [("shop", "web")]
        await beat_until(client, lambda: not sink.view().services)
        assert list(sink.view().nodes) == ["b1"]


async def test_entries_outlive_their_leases_once_the_api_server_has_been_silent(  # type: ignore[no-untyped-def]
    client: EtcdClient, sink: StateSink, reading
) -> None:
    await publish(client, lease=(lease := await client.grant(3600)))
    async with reading(terms=Terms(silence=3.0)) as reader:
        await until(lambda: reader.session.state is State.FRESH)
        await beat(client)
        await until(lambda: "no heartbeat" in reader.session.error)
        assert reader.session.state is State.STALE
        await client.revoke(lease)
        await client.put(keys.node_key(BETA, "b2"), b"a sign that all before it was read")
        await until(sink.refused)
        assert [len(sink.view().table(kind)) for kind in TABLES] == [1] * len(TABLES)


async def test_what_is_gone_since_the_last_reader_is_forgotten_when_its_lists_agree(  # type: ignore[no-untyped-def]
    client: EtcdClient, sink: StateSink, reading
) -> None:
    await publish(client)
    old = Service(cluster=BETA, cluster_id=2, namespace="shop", name="old")
    sink.put(BETA, "services", ("shop", "old"), old, 0)
    async with reading(terms=Terms(settle=1.0)) as reader:
        reader.restored(CONFIG)
        await until(lambda: reader.session.state is State.FRESH)
        await beat_until(client, lambda: list(sink.view().services) == [("shop", "web")])


async def test_a_cluster_with_a_taken_id_is_evicted_and_comes_back_with_another(  # type: ignore[no-untyped-def]
    client: EtcdClient, sink: StateSink, reading, tmp_path: Path
) -> None:
    await publish(client)
    own = Cluster(name="alpha", id=2)
    peers = Peers(tmp_path, own, sink, lambda _file: pytest.fail("no peer file"), peer_tables, tmp_path)
    async with reading(peers.admit) as reader:
        await until(lambda: reader.session.state is State.EVICTED)
        assert "own id (alpha)" in reader.session.error
        assert not sink.view().services
        own_again = Cluster(name="alpha", id=1)
        peers._own = own_again
        await until(lambda: reader.session.state is State.FRESH)
        assert sink.view().services


async def test_a_cluster_that_changes_its_id_is_drained_first(client: EtcdClient, sink: StateSink, reading) -> None:  # type: ignore[no-untyped-def]
    await publish(client)
    async with reading() as reader:
        await until(lambda: reader.session.state is State.FRESH)
    await client.put(keys.cluster_config_key(BETA), cluster_config.encode(ClusterConfig(id=3, synced_canaries=True)))
    async with reading() as reader:
        reader.restored(CONFIG)
        await until(lambda: reader.session.state is State.FRESH)
        assert not sink.view().services, "entries with the old id are not the cluster's any more"
        assert "must be 3" in str(sink.refused())


def test_admission_names_the_field_the_value_and_the_rule(tmp_path: Path, sink: StateSink) -> None:
    own = Cluster(name="alpha", id=1, max_clusters=511)
    peers = Peers(tmp_path, own, sink, lambda _file: pytest.fail("unused"), peer_tables, tmp_path)
    for config, sentence in (
        (ClusterConfig(id=1), "is this cluster's own id"),
        (ClusterConfig(id=600), "must be a number from 1 to 511"),
        (ClusterConfig(id=2, max_connected_clusters=255), "must be 511 as in this cluster"),
    ):
        with pytest.raises(Invalid, match=sentence):
            peers.admit(BETA, config)


def test_a_peer_that_counts_clusters_otherwise_is_refused_by_the_smaller_mesh_too(
    tmp_path: Path, sink: StateSink
) -> None:
    """Its cluster 2 allots what is cluster 1's here. A cluster that says nothing counts up to 255."""
    own = Cluster(name="alpha", id=1)
    peers = Peers(tmp_path, own, sink, lambda _file: pytest.fail("unused"), peer_tables, tmp_path)
    with pytest.raises(Invalid, match="must be 255 as in this cluster"):
        peers.admit(BETA, ClusterConfig(id=2, max_connected_clusters=511))
    peers.admit(BETA, ClusterConfig(id=2))


async def test_the_id_a_cluster_was_connected_with_is_kept_for_it_until_it_is_heard(  # type: ignore[no-untyped-def]
    sink: StateSink, tmp_path: Path
) -> None:
    """Both connect at once after a restart; who answers first must not decide who is evicted."""
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "beta").write_text("endpoints: ['http://127.0.0.1:1']\nclustermesh-id: 2\n")
    (folder / "gamma").write_text("endpoints: ['http://127.0.0.1:1']\n")
    connect = lambda file: EtcdClient(file.endpoints, timeout=2.0)  # noqa: E731
    peers = Peers(folder, Cluster(name="alpha", id=1), sink, connect, peer_tables, tmp_path)
    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        with pytest.raises(Invalid, match="is that of cluster beta"):
            peers.admit("gamma", ClusterConfig(id=2))
        peers.admit("beta", ClusterConfig(id=2))
        peers.admit("beta", ClusterConfig(id=7))  # it has another one by now
        peers.readers["beta"].brain.config = ClusterConfig(id=7)
        peers.admit("gamma", ClusterConfig(id=2))
        for task in peers._tasks.values():
            task.cancel()


async def test_a_writer_that_stops_beating_makes_the_cluster_stale(
    client: EtcdClient, sink: StateSink, reading
) -> None:  # type: ignore[no-untyped-def]
    await publish(client)
    async with reading(terms=Terms(silence=3.0)) as reader:
        await until(lambda: reader.session.state is State.STALE)
        assert "no heartbeat" in reader.session.error
        assert sink.view().services
        await beat(client)
        await until(lambda: reader.session.state is State.FRESH)


async def test_a_peer_file_starts_a_reader_and_its_removal_drains_the_cluster(
    etcd: LocalEtcd, client: EtcdClient, sink: StateSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clustermesh.mesh.peers.DRAIN_SECONDS", 1.5)
    await publish(client)
    folder, keep = tmp_path / "peers", tmp_path / "keep"
    folder.mkdir()
    connect = lambda file: EtcdClient(file.endpoints, timeout=2.0)  # noqa: E731
    peers = Peers(folder, Cluster(name="alpha", id=1), sink, connect, peer_tables, keep)
    task = asyncio.create_task(peers.run())
    try:
        (folder / BETA).write_text(f"endpoints:\n- {etcd.endpoints[0]}\n")
        (folder / "broken").write_text("endpoints: {")
        await until(lambda: BETA in peers.readers and peers.readers[BETA].session.state is State.FRESH)
        assert sink.view().services
        assert any("broken" in problem for problem in peers.problems)
        (folder / BETA).write_text("endpoints: [")  # half-written: not the same as gone
        await until(lambda: any(BETA in problem for problem in peers.problems))
        assert peers.readers[BETA].session.state is State.FRESH
        folder.rename(tmp_path / "away")  # a volume that is not mounted for a moment: neither
        await until(lambda: any("No such file" in problem for problem in peers.problems))
        assert peers.readers[BETA].session.state is State.FRESH
        (tmp_path / "away").rename(folder)
        (folder / BETA).unlink()
        await until(lambda: peers.readers[BETA].session.state is State.REMOVED)
        assert not sink.view().services, "no new connection goes there"
        assert sink.view().nodes, "connections under way still have their tunnels"
        await until(lambda: BETA not in peers.readers)
        assert BETA not in sink.state.views
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_hung_on_one_of_its_writers_leases_is_kept_until_the_writer_has_written_it_again(  # type: ignore[no-untyped-def]
    client: EtcdClient, sink: StateSink, reading
) -> None:
    """More than a thousand keys hang on several; somebody ends one by hand."""
    await publish(client)
    other = await client.grant(600)
    await client.put(WEB, web("10.2.1.5"), other)
    async with reading(terms=Terms(settle=1.0)) as reader:
        await until(lambda: reader.session.state is State.FRESH)
        await beat(client)
        await until(lambda: reader.brain._writer.last_beat > 0)
        take_all(sink.state)
        await client.revoke(other)
        services = reader.brain._tables[keys.state_prefix("services", BETA)]
        await until(lambda: services.believed_from > 0)
        assert sink.view().services
        await client.put(WEB, web("10.2.1.5"), await client.grant(600))
        await beat_until(client, lambda: not services.doubted)
        assert not take_all(sink.state), "nobody has noticed"
        await client.delete(WEB)
        await until(lambda: not sink.view().services)
