"""What peers say is in the own etcd byte for byte, as Cilium's kvstoremesh keeps it, and nothing else is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etcd_maintenance import delete_prefix
from mirror import Mirror as Reader
from mirror_bed import QUICK, MirrorBed, beating
from state_sink import StateSink

from clustermesh.address import parse
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.tables import peer_tables
from clustermesh.mirror.agent_files import AgentAccess
from clustermesh.model import ClusterConfig
from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import cluster_config, keys, local
from clustermesh.wire import service as wire_service


@pytest.fixture
async def bed(tmp_path: Path, make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]) -> MirrorBed:
    made = MirrorBed(tmp_path, make_etcd, make_client)
    await made.etcd.start()
    return made


async def test_values_are_copied_byte_for_byte_and_canaries_come_last(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running(), beating(beta):
        found = await bed.until_cached(beta)
    value = (await beta.client.get(beta.service_key("web"))).value  # type: ignore[union-attr]
    assert found[b"cilium/cache/services/v1/beta/shop/web"].value == value
    assert b"cilium/cache/identities/v1/beta/id/131072" in found
    assert b"cilium/cache/ip/v1/beta/10.2.1.5" in found
    assert b"cilium/cache/nodes/v1/beta/beta1" in found
    config = found[keys.cluster_config_key("beta")]
    assert config.value == (
        b'{"id":2,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,'
        b'"serviceExportsEnabled":false}}'
    )
    canaries = [kv for key, kv in found.items() if key.startswith(keys.SYNCED)]
    assert {kv.key.removeprefix(b"cilium/synced/beta/cilium/cache/") for kv in canaries} == {
        b"nodes/v1",
        b"identities/v1",
        b"ip/v1",
        b"services/v1",
        b"serviceexports/v1",
        b"endpointslices/v1",
    }
    data = [kv.mod_revision for key, kv in found.items() if key.startswith(keys.CACHE)]
    assert config.mod_revision < min(data)
    for kind in ("nodes", "services", "ip", "identities"):
        place, canary = f"cilium/cache/{kind}/".encode(), keys.canary_key("beta", kind, cached=True)
        last = max(kv.mod_revision for key, kv in found.items() if key.startswith(place))
        assert last < found[canary].mod_revision
    assert all(kv.lease for kv in found.values())


async def test_agents_that_are_given_the_mirrors_files_know_what_they_would_know_of_the_peer(
    bed: MirrorBed, tmp_path: Path
) -> None:
    beta = await bed.peer()
    await bed.client.put(keys.HEARTBEAT, b"now")
    access = AgentAccess(folder=tmp_path / "cached", endpoints=tuple(bed.settings.endpoints))
    async with bed.running(access=access), beating(beta):
        await bed.until_cached(beta)
        views = []
        for folder in (bed.folder, access.folder):
            sink = StateSink()
            peers = Peers(
                folder,
                bed.settings.cluster,
                sink,
                lambda file: EtcdClient(file.endpoints),
                peer_tables,
                tmp_path / "none",
                sink.state.authorize,
            )
            task = asyncio.create_task(peers.run())
            async with asyncio.timeout(60):
                while sink.refused() or not (view := sink.view()).services or not view.endpoints or not view.identities:
                    await asyncio.sleep(0.02)
                    sink.decide()
            task.cancel()
            await asyncio.wait([task])
            views.append((sink.view(), sink.refused()))
    assert views[0] == views[1]
    assert views[0][0].nodes


async def test_changes_follow_and_what_goes_goes(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running(), beating(beta):
        await bed.until_cached(beta)
        await beta.put_service("web", "10.2.1.5", "10.2.1.6")
        await beta.put_service("db", "10.2.1.7")
        await bed.until_cached(beta)
        await beta.client.delete(beta.service_key("web"))
        await beta.client.delete(keys.endpoint_key(parse("10.2.1.5")))
        await bed.until_cached(beta)


async def test_how_long_a_change_took_is_counted_hop_by_hop(bed: MirrorBed) -> None:
    timed = await bed.peer("timed", 7)
    async with bed.running(), beating(timed):
        before = await bed.until_cached(timed)
        key = timed.service_key("web")
        now = time.time_ns()
        stamps = local.encode_stamps({("shop", "web"): now - 2_000_000_000}, now - 1_000_000_000)
        changed = Put(key, before[timed.cached(key)].value + b" ")
        await timed.client.transact([changed, Put(keys.CHANGED_SERVICES, stamps)])
        await bed.until_cached(timed)
        whole = 'clustermesh_kvstoremesh_propagation_seconds_{}{{source_cluster="timed"}} {}'
        page = await bed.until_page("/metrics", whole.format("count", "1.0"))
        for hop in ("publish", "read", "copy"):
            assert f'hop_seconds_count{{hop="{hop}",source_cluster="timed"}} 1.0' in page
        assert 'hop_seconds_sum{hop="publish",source_cluster="timed"} 1.0' in page


async def test_what_the_authority_refuses_is_not_copied_and_is_said(bed: MirrorBed) -> None:
    beta = await bed.peer()
    foreign, garbage = keys.endpoint_key(parse("10.9.1.5")), beta.service_key("garbage")
    await beta.put_endpoint("10.9.1.5")
    await beta.client.put(garbage, b"{")
    await beta.put_node("thief", "192.0.2.66", "127.0.0.0/8")
    await beta.put_service("mixed", "10.2.1.5", "10.9.1.9")
    mixed = beta.cached(beta.service_key("mixed"))
    async with bed.running(), beating(beta):
        found = await bed.until(lambda found: keys.canary_key("beta", "services", cached=True) in found)
        assert set(wire_service.decode(found[mixed].value).backends) == {parse("10.2.1.5")}
        refused = {beta.cached(key) for key in (foreign, garbage, keys.node_key("beta", "thief"))}
        assert not refused & found.keys()
        page = await bed.until_page("/readyz", "10.9.1.5")
        assert all(each in page for each in ("shop/garbage", "nodes/thief", "services/shop/mixed"))
        # A node that holds the address comes: what was refused is copied, byte for byte.
        await beta.put_node("beta9", "192.0.2.99", "10.9.1.0/24")
        value = (await beta.client.get(beta.service_key("mixed"))).value  # type: ignore[union-attr]
        await bed.until(lambda found: beta.cached(foreign) in found and found[mixed].value == value)
        await beta.client.delete(keys.node_key("beta", "beta9"))
        await bed.until(lambda found: beta.cached(foreign) not in found and found[mixed].value != value)


async def test_two_clusters_do_not_take_each_others_and_none_takes_the_own_ones(bed: MirrorBed) -> None:
    await bed.client.put(keys.cluster_config_key("alpha"), cluster_config.encode(ClusterConfig(id=1)))
    beta, gamma = await bed.peer(), await bed.peer("gamma", 3)
    await gamma.put_service("web", "10.3.1.5", "10.2.1.5")
    async with bed.running(), beating(beta, gamma):
        await bed.until_cached(beta)
        key = gamma.cached(gamma.service_key("web"))
        found = await bed.until(lambda found: key in found)
        assert set(wire_service.decode(found[key].value).backends) == {parse("10.3.1.5")}
    assert (await bed.all())[keys.cluster_config_key("alpha")].value == cluster_config.encode(ClusterConfig(id=1))


async def test_a_cluster_whose_id_is_taken_is_not_copied(bed: MirrorBed) -> None:
    beta, gamma = await bed.peer(), await bed.peer("gamma", 2, connected=False)
    async with bed.running(), beating(beta):
        before = await bed.until_cached(beta)
        bed.connect(gamma)
        await bed.until_page("/readyz", "cluster gamma: cluster id of gamma: 2: is already used by cluster beta")
        assert await bed.all() == before


async def test_a_changed_id_begins_anew(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running(), beating(beta):
        await bed.until_cached(beta)
        await delete_prefix(beta.client, keys.STATE)
        beta.id = 4
        await beta.publish()
        found = await bed.until_cached(beta)
        assert b'"id":4' in found[keys.cluster_config_key("beta")].value


async def test_a_cluster_that_is_away_keeps_its_copies_and_one_that_is_disconnected_loses_them(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running():
        async with beating(beta):
            before = await bed.until_cached(beta)
        beta.etcd.kill()
        await bed.until_page("/readyz", "cluster beta")
        assert (await bed.all()).keys() == before.keys()
        bed.disconnect(beta)
        gone = await bed.until(lambda found: keys.cluster_config_key("beta") not in found)
        assert any(key.startswith(keys.CACHE) for key in gone), "agents learn first that it is gone"
        await bed.until(lambda found: not found)


async def test_a_cluster_that_comes_back_in_time_loses_nothing(bed: MirrorBed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustermesh.mesh.peers.DRAIN_SECONDS", 0.5)
    beta = await bed.peer()
    timing = type(QUICK)(own=0.0, wait=8.0)
    async with bed.running(timing), beating(beta):
        before = await bed.until_cached(beta)
        bed.disconnect(beta)
        await bed.until(lambda found: keys.cluster_config_key("beta") not in found)
        await asyncio.sleep(3)  # its reader has gone by now, and what it had decided
        bed.connect(beta)
        await bed.until(lambda found: keys.cluster_config_key("beta") in found)
        await bed.until_page("/metrics", 'remote_cluster_readiness_status{target_cluster="beta"} 1.0')
        await asyncio.sleep(timing.wait)
        after = await bed.all()
        kept = {key for key in before if key.startswith(keys.CACHE)}
        assert {key: after[key].mod_revision for key in kept} == {key: before[key].mod_revision for key in kept}


async def test_what_was_copied_of_a_cluster_disconnected_meanwhile_goes(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with beating(beta):
        async with bed.running():
            await bed.until_cached(beta)
        bed.disconnect(beta)
        async with bed.running():
            await bed.until(lambda found: not found)


async def test_a_restart_without_the_peers_folder_takes_nothing_away(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with beating(beta):
        async with bed.running():
            before = await bed.until_cached(beta)
        bed.folder.rename(bed.folder.with_name("away"))
        async with bed.running():
            await bed.until_page("/readyz", "peers folder")
            await asyncio.sleep(4 * QUICK.wait)
            assert (await bed.all()).keys() == before.keys()


async def test_nobody_takes_the_id_of_a_cluster_that_is_copied_over_a_restart(bed: MirrorBed) -> None:
    alef, beta = await bed.peer("alef", 3), await bed.peer("beta", 2)
    async with beating(alef, beta):
        async with bed.running():
            await bed.until_cached(alef)
            before = await bed.until_cached(beta)
        await beta.etcd.stop()
        await alef.write_config(alef.config(beta.id))
        async with bed.running(), Reader(bed.client, b"cilium/cache") as reader:
            await bed.until_page("/readyz", "cluster alef: cluster id of alef: 2: is that of cluster beta")
            await beta.etcd.start()
            await bed.until_page("/metrics", 'remote_cluster_readiness_status{target_cluster="beta"} 1.0')
            assert not [key for key in reader.deletions if b"/v1/beta/" in key]
            assert before.keys() <= (await bed.all()).keys() | {key for key in before if b"alef" in key}


async def test_whatever_somebody_changes_or_deletes_is_put_back(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running(), beating(beta):
        before = await bed.until_cached(beta)
        for key in before:
            await bed.client.put(key, b"scribble")
        await bed.client.put(b"cilium/cache/nodes/v1/nobody/n", b"{}")
        await bed.until(
            lambda found: {k: kv.value for k, kv in found.items()} == {k: v.value for k, v in before.items()}
        )


async def test_a_cluster_that_is_copied_itself_is_read_from_its_copies(bed: MirrorBed) -> None:
    """Its configuration says `cached`: its state is under the cache's prefixes."""
    beta = await bed.peer()
    for key, value in (await beta.copy()).items():
        await beta.client.put(key, value)
    await delete_prefix(beta.client, keys.STATE)
    for kind in ("nodes", "identities", "ip", "services"):
        await beta.client.put(keys.canary_key("beta", kind, cached=True), b"now")
    await beta.write_config(ClusterConfig(id=2, synced_canaries=True, cached=True, max_connected_clusters=255))
    async with bed.running(), beating(beta):
        found = await bed.until(lambda found: keys.canary_key("beta", "services", cached=True) in found)
    held = {key: kv.value for key, kv in found.items() if key.startswith(keys.CACHE)}
    assert held == {kv.key: kv.value for kv in (await beta.client.range(keys.CACHE)).kvs} != {}


async def test_a_peers_file_that_leads_to_the_own_etcd_is_refused(bed: MirrorBed) -> None:
    beta = await bed.peer()
    async with bed.running(), beating(beta):
        await bed.until_cached(beta)
        bed.connect(beta, at=bed.etcd.endpoints[0])
        await bed.until_page("/readyz", "lead to this cluster's own etcd")
        await bed.until_cached(beta)
