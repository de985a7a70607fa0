"""Who gets into the cluster's etcd, and how far: Cilium's roles, users.yaml followed live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from apiserver_bed import PATIENCE, Bed, manifests, page

from clustermesh.errors import ClusterMeshError, Refused
from clustermesh.standalone.users_file import add_user, remove_user
from clustermesh.store.client import EtcdClient
from clustermesh.wire import api_server_report, keys
from clustermesh.wire.api_server_report import ApiServerReport

OWN = ("root", "admin-alpha", "local-alpha", "remote")
CART = keys.service_key("alpha", "shop", "cart")


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """Running and complete."""
    made = Bed(tmp_path)
    made.write("shop.yaml", manifests("10.1.0.5"))
    async with made:
        await made.etcd.start()
        async with made.running():
            await made.until_synced()
            yield made


async def refuses(call: object) -> bool:
    try:
        await call  # type: ignore[misc]
    except Refused:
        return True
    return False


async def until_let_in(client: EtcdClient, inside: bool) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await client.get(CART)
                if inside:
                    return
            except ClusterMeshError:
                if not inside:
                    return
            await asyncio.sleep(0.02)


async def test_a_peer_reads_what_is_shared_and_writes_nothing(bed: Bed) -> None:
    add_user(bed.context.users_file, "remote-beta")
    async with bed.client_as("beta", "remote-beta") as peer:
        await until_let_in(peer, inside=True)
        for prefix in (keys.HEARTBEAT, keys.STATE, keys.canary_prefix("alpha"), keys.CHANGES):
            assert (await peer.range(prefix)).kvs
        assert await peer.get(keys.cluster_config_key("alpha"))
        for key in (CART, keys.HEARTBEAT, keys.AGENTS + b"n1", keys.CACHE + b"x", b"else"):
            assert await refuses(peer.put(key, b"")), key
            assert await refuses(peer.delete(key)), key
        for prefix in (keys.OWN, keys.LOCAL_SERVICES, keys.CLUSTER_CONFIGS, keys.canary_prefix("beta"), b""):
            assert await refuses(peer.range(prefix)), prefix
        assert await refuses(peer.get(keys.cluster_config_key("beta")))


async def test_the_clusters_own_nodes_write_their_records_and_nothing_else(bed: Bed) -> None:
    async with bed.client_as("local") as node:
        for prefix in (b"cilium/", keys.OWN):
            assert (await node.range(prefix)).kvs
        await node.put(keys.agent_key("n1"), b"{}")
        await node.put(keys.status_key("n1"), b"{}")
        for key in (CART, keys.HEARTBEAT, keys.local_service_key("shop", "cart"), b"else"):
            assert await refuses(node.put(key, b"")), key


async def test_users_come_and_go_with_the_file(bed: Bed) -> None:
    add_user(bed.context.users_file, "remote-beta")
    await bed.until_users(*OWN, "remote-beta")
    add_user(bed.context.users_file, "remote-gamma")
    await bed.until_users(*OWN, "remote-beta", "remote-gamma")
    remove_user(bed.context.users_file, "remote-beta")
    await bed.until_users(*OWN, "remote-gamma")
    async with bed.client_as("beta", "remote-beta") as peer:
        await until_let_in(peer, inside=False)


async def test_a_user_nobody_listed_is_removed_but_not_while_the_file_is_broken(bed: Bed) -> None:
    add_user(bed.context.users_file, "remote-beta")
    await bed.until_users(*OWN, "remote-beta")
    good = bed.context.users_file.read_text()
    bed.context.users_file.write_text("users: [{name: remote-beta, role")
    async with bed.client_as("beta", "remote-beta") as peer:
        await asyncio.sleep(1.0)
        await until_let_in(peer, inside=True)
    bed.context.users_file.write_text(good.replace("beta", "gamma"))
    await bed.until_users(*OWN, "remote-gamma")


async def test_what_is_not_acted_on_and_the_source_are_in_etcd_for_whoever_asks_for_the_status(bed: Bed) -> None:
    async def told(about_users: bool) -> ApiServerReport:
        async with asyncio.timeout(PATIENCE):
            while True:
                held = await bed.client.get(keys.API_SERVER)
                report = ApiServerReport() if held is None else api_server_report.decode(held.value)
                if held is not None and ("users.yaml" in "; ".join(report.problems)) is about_users:
                    return report
                await asyncio.sleep(0.1)

    add_user(bed.context.users_file, "remote-evil", "root")
    assert (await told(about_users=True)).source == f"folder {bed.context.manifests}"
    remove_user(bed.context.users_file, "remote-evil")
    assert (await told(about_users=False)).problems == ()


async def test_the_file_makes_nobody_more_than_a_reader(bed: Bed) -> None:
    add_user(bed.context.users_file, "remote-evil", "root")
    add_user(bed.context.users_file, "admin-alpha", "remote")
    add_user(bed.context.users_file, "remote-good")
    await bed.until_users(*OWN, "remote-good")
    await bed.client.put(b"still", b"root")


async def test_without_a_certificate_of_a_user_nobody_gets_in(bed: Bed) -> None:
    async with bed.client_as("stranger", "stranger") as stranger:
        assert await refuses(stranger.get(CART))


async def test_a_users_file_that_is_being_written_in_place_locks_nobody_out(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clustermesh.settling.SETTLED", 600 * 1_000_000_000)  # whoever writes it may take its time
    add_user(bed.context.users_file, "remote-beta")
    text = bed.context.users_file.read_text()
    async with bed.client_as("beta", "remote-beta") as peer:
        await until_let_in(peer, inside=True)
        with bed.context.users_file.open("w") as file:  # it is empty now
            while "just being written" not in str((await page(bed, "/readyz"))[1]):
                await peer.get(CART)
            file.write(text)
        await asyncio.sleep(0.5)
        await peer.get(CART)
