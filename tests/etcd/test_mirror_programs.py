"""The programs that mirror, as they are started: by Cilium's flags, and as one with the API server."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from apiserver_bed import Bed, manifests
from mirror import heard
from mirror_bed import Peer, beating
from ports import free_port
from processes import PATIENCE, child, until_page

from clustermesh.model import ClusterConfig
from clustermesh.overview import decode_mirror
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import cluster_config, keys

CALM = (keys.HEARTBEAT, keys.API_SERVER_LEADERS, keys.KVSTOREMESH_LOCK)  # who leads, and beats
LEADS = 'kvstoremesh_leader_election_master_status{name="kvstoremesh"} 1.0'


@pytest.fixture
async def beta(make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]) -> AsyncIterator[Peer]:
    etcd = make_etcd("beta")
    await etcd.start()
    peer = Peer("beta", 2, etcd, make_client(etcd))
    await peer.publish()
    async with beating(peer):
        yield peer


def program(*argv: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return child(sys.executable, "-m", "clustermesh.cli", *argv)


async def until_held(client: EtcdClient, *wanted: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        while not {*wanted} <= {kv.key for kv in (await client.range(b"cilium/")).kvs}:
            await asyncio.sleep(0.02)


async def until_reported(client: EtcdClient, cluster: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (held := await client.get(keys.MIRROR)) is None or not decode_mirror(held.value).copied.get(cluster):
            await asyncio.sleep(0.02)
    assert held.lease, "nobody is said to copy once nobody does"


def copies(peer: Peer) -> list[bytes]:
    return [peer.cached(peer.service_key("web")), keys.canary_key("beta", "services", cached=True)]


async def test_ciliums_flags_are_taken_and_those_of_another_release_ignored(
    beta: Peer, tmp_path: Path, make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]
) -> None:
    own = make_etcd("own")
    await own.start()
    peers, config = tmp_path / "clustermesh", tmp_path / "etcd.config"
    peers.mkdir()
    for path, etcd in ((config, own), (peers / "beta", beta.etcd)):
        path.write_text(f"endpoints:\n- {etcd.endpoints[0]}\n")
    health, metrics = free_port(), free_port()
    flags = (
        "kvstoremesh --cluster-name=alpha --cluster-id=1 --max-connected-clusters=255 --enable-heartbeat "
        f"--kvstore-opt=etcd.config={config} --kvstore-opt=etcd.qps=100 --clustermesh-config={peers} "
        f"--health-port={health} --prometheus-serve-addr=:{metrics} --global-ready-timeout=10m0s "
        "--per-cluster-ready-timeout=15s --kvstore-lease-ttl=15m0s --api-serve-addr=localhost:9889 --enable-gops=false"
    )
    async with make_client(own) as client, program(*flags.split()):
        await client.put(keys.cluster_config_key("alpha"), cluster_config.encode(ClusterConfig(id=1)))
        await until_held(client, *copies(beta), keys.HEARTBEAT)
        await until_page(f"127.0.0.1:{health}", "/readyz", "ok")
        await until_page(f"127.0.0.1:{metrics}", "/metrics", LEADS)


async def test_which_cluster_a_mirror_does_not_follow_is_told_with_the_reason_until_it_does(
    beta: Peer, tmp_path: Path
) -> None:
    async def until_told(behind: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while (held := await bed.client.get(keys.MIRROR)) is None or not re.fullmatch(
                behind, decode_mirror(held.value).behind.get("beta", "")
            ):
                await asyncio.sleep(0.02)

    async with Bed(tmp_path / "alpha") as bed:
        await bed.etcd.start()
        (bed.context.peers / "beta").write_text(f"endpoints:\n- {beta.etcd.endpoints[0]}\n")
        flags = ("kvstoremesh", "--context", str(bed.context.path), "--http", f"127.0.0.1:{free_port()}")
        async with program(*flags):
            await until_held(bed.client, *copies(beta))
            await until_told("")
            await beta.etcd.stop()
            await until_told("stale: .+")
            assert {*copies(beta)} <= {kv.key for kv in (await bed.client.range(b"cilium/")).kvs}, "they are kept"
            await beta.etcd.start()
            await until_told("")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_process_publishes_and_mirrors_and_another_takes_over_both(
    beta: Peer, tmp_path: Path, end: signal.Signals
) -> None:
    async with Bed(tmp_path / "alpha") as bed:
        bed.write("cart.yaml", manifests("10.1.0.5"))
        await bed.etcd.start()
        (bed.context.peers / "beta").write_text(f"endpoints:\n- {beta.etcd.endpoints[0]}\n")
        wanted = [*copies(beta), keys.canary_key("alpha", "services")]
        at = [[f"127.0.0.1:{free_port()}" for _ in range(2)] for _ in range(3)]

        def both(http: str, mirror_http: str) -> tuple[str, ...]:
            flags = ("--mirror", "--mirror-http", mirror_http)
            return ("apiserver", "--context", str(bed.context.path), "--http", http, *flags)

        async with program(*both(*at[0])) as first:
            await until_held(bed.client, *wanted)
            await until_reported(bed.client, "beta")
            assert (bed.context.path / "cached-peers" / "beta").exists()
            alone = ("kvstoremesh", "--context", str(bed.context.path), "--http", at[2][1])
            async with program(*alone):
                await until_page(at[2][1], "/readyz", "ok, standing by")
            async with program(*both(*at[1])):
                for address in at[1]:
                    await until_page(address, "/readyz", "ok, standing by")
                async with heard(bed.client, b"", *CALM) as told:
                    first.send_signal(end)
                    await until_page(at[1][1], "/metrics", LEADS)
                    await until_page(at[1][0], "/metrics", "leader_election_master_status 1.0")
                    await until_page(at[1][0], "/metrics", "clustermesh_apiserver_ready 1.0")
                assert told == [], "nothing is deleted, and nothing is written again"
                # What the first one hears of when it goes on; it would write that at once.
                bed.write("cart.yaml", manifests("10.1.0.6"))
                await beta.put_service("db", "10.2.1.5")
                await until_held(bed.client, beta.cached(beta.service_key("db")))
                await bed.until(lambda found: b"10.1.0.6" in found[keys.service_key("alpha", "shop", "cart")].value)
                if end is signal.SIGSTOP:
                    async with heard(bed.client, b"", *CALM) as told:
                        first.send_signal(signal.SIGCONT)
                        for address in at[0]:
                            await until_page(address, "/readyz", "ok, standing by")
                        await asyncio.sleep(1.0)
                    assert told == []
