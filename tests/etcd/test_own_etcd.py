"""An etcd that is another cluster's is left alone, whoever is told by mistake that it is the own one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import processes
import pytest
from apiserver_bed import NO_AGENTS, PATIENCE, Bed, manifests, pods, until_page
from mirror_bed import QUICK
from ports import free_port

from clustermesh.apiserver.server import run
from clustermesh.errors import Unavailable
from clustermesh.mirror.server import run as run_mirror
from clustermesh.model import Cluster
from clustermesh.own_cluster import Settings, of_folder
from clustermesh.sources.folder import FolderSource
from clustermesh.store.auth import list_users
from clustermesh.store.local import LocalEtcd
from clustermesh.wire import keys

ALPAH = Cluster(name="alpah", id=9)
CONFIG = b'{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}'
REFUSED = "is that of cluster alpha, and this is alpah"


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """Cluster alpha's; it publishes when it is told to."""
    made = Bed(tmp_path)
    made.write("shop.yaml", manifests("10.1.0.5"))
    made.write("pods.yaml", pods("a", "b"))
    async with made:
        await made.etcd.start()
        yield made


def mistyped(bed: Bed, cluster: Cluster = ALPAH, users: Path | None = None) -> Settings:
    right = of_folder(bed.context)
    return Settings(cluster=cluster, endpoints=right.endpoints, tls=right.tls, users_file=users)


def serving(bed: Bed, settings: Settings, http: str, tmp_path: Path) -> Coroutine[Any, Any, None]:
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    return run(settings, FolderSource(empty, settings.cluster), [http], NO_AGENTS)


async def test_an_api_server_under_another_name_touches_neither_keys_nor_users_until_the_other_cluster_is_gone(
    bed: Bed, tmp_path: Path
) -> None:
    async with bed.running():
        await bed.until_synced()
    before, users = await bed.all(), await list_users(bed.client)
    http = f"127.0.0.1:{free_port()}"
    (tmp_path / "users.yaml").write_text("users: []\n")
    settings = mistyped(bed, users=tmp_path / "users.yaml")
    async with processes.serving(serving(bed, settings, http, tmp_path)):
        said = await processes.until_page(http, "/readyz", REFUSED)
        assert bed.context.endpoint in said
        await asyncio.sleep(2.0)
        assert await bed.all() == before
        assert await list_users(bed.client) == users
        for key in before:
            if key.startswith((keys.CLUSTER_CONFIGS, keys.SYNCED)):
                await bed.client.delete(key)
        await bed.until(lambda found: keys.cluster_config_key("alpah") in found)


async def test_a_stand_by_under_another_name_does_not_take_over(bed: Bed, tmp_path: Path) -> None:
    """It stood while the etcd was nobody's yet."""
    leader, cart = keys.API_SERVER_LEADERS + b"1", keys.service_key("alpha", "shop", "cart")
    http = f"127.0.0.1:{free_port()}"
    await bed.client.put(leader, b"alpha's")
    async with processes.serving(serving(bed, mistyped(bed), http, tmp_path)):
        await processes.until_page(http, "/readyz", "ok, standing by")
        await bed.client.put(cart, b"{}")
        await bed.client.put(keys.cluster_config_key("alpha"), CONFIG)
        await bed.client.delete(leader)
        await processes.until_page(http, "/readyz", REFUSED)
    assert set(await bed.all()) == {cart, keys.cluster_config_key("alpha")}


async def test_an_id_that_changed_is_said_and_published(
    bed: Bed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed.running():
        await bed.until_synced()
    changed = mistyped(bed, Cluster(name="alpha", id=7))
    async with processes.serving(serving(bed, changed, f"127.0.0.1:{free_port()}", tmp_path)):
        await bed.until(lambda found: b'"id":7' in found[keys.cluster_config_key("alpha")].value)
    assert "cluster alpha had the id 1, and has 7 now" in caplog.text


async def test_copies_that_a_mirror_keeps_are_no_evidence(bed: Bed) -> None:
    config = b'{"id":2,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255}}'
    await bed.client.put(keys.cluster_config_key("beta"), config)
    await bed.client.put(keys.canary_key("beta", "nodes", cached=True), b"now")
    async with bed.running():
        await bed.until_synced()


async def test_the_user_that_etcd_takes_us_for_is_never_removed(bed: Bed, tmp_path: Path) -> None:
    async with bed.running():
        await bed.until_synced()
    for key in await bed.all():
        await bed.client.delete(key)
    (tmp_path / "users.yaml").write_text("users: []\n")
    settings = mistyped(bed, users=tmp_path / "users.yaml")
    async with processes.serving(serving(bed, settings, f"127.0.0.1:{free_port()}", tmp_path)):
        async with asyncio.timeout(PATIENCE):
            while "local-alpha" in await list_users(bed.client):
                await asyncio.sleep(0.05)
    assert "admin-alpha" in await list_users(bed.client)


async def test_who_may_not_stand_says_why_it_does_not_know_who_leads(bed: Bed, tmp_path: Path) -> None:
    async with bed.running():
        await bed.until_synced()
    stranger = bed.client_as("reader", "local-alpha")
    await stranger.__aexit__()
    http = f"127.0.0.1:{free_port()}"
    settings = Settings(cluster=bed.context.cluster, endpoints=(bed.context.endpoint,), tls=bed.tls("reader"))
    async with processes.serving(serving(bed, settings, http, tmp_path)):
        await processes.until_page(http, "/readyz", "who leads is not known yet: ")


async def test_a_mirror_under_another_name_touches_nothing(bed: Bed, tmp_path: Path) -> None:
    async with bed.running():
        await bed.until_synced()
    before, http = await bed.all(), f"127.0.0.1:{free_port()}"
    (tmp_path / "none").mkdir()
    async with processes.serving(run_mirror(mistyped(bed), tmp_path / "none", [http], QUICK)):
        await processes.until_page(http, "/readyz", REFUSED)
        await asyncio.sleep(2.0)
        assert await bed.all() == before


async def test_a_mirror_leaves_alone_what_no_mirror_writes(bed: Bed, tmp_path: Path) -> None:
    """It came while the mirror ran."""
    http = f"127.0.0.1:{free_port()}"
    (tmp_path / "none").mkdir()
    foreign = {keys.cluster_config_key("alpha"): CONFIG, keys.canary_key("alpha", "nodes"): b"now"}
    copies = {keys.cluster_config_key("gone"): CONFIG.replace(b'":true', b'":true,"cached":true', 1)}
    async with processes.serving(run_mirror(mistyped(bed), tmp_path / "none", [http], QUICK)):
        await processes.until_page(http, "/readyz", "ok")
        for key, value in (foreign | copies).items():
            await bed.client.put(key, value)
        await bed.until(lambda found: not found.keys() & copies.keys())
        await asyncio.sleep(1.0)
        assert {key: kv.value for key, kv in (await bed.all()).items() if key in foreign} == foreign


COUNT = b"count"
BETAS = {
    keys.cluster_config_key("beta"): CONFIG.replace(b":1,", b":2,", 1),
    keys.canary_key("beta", "services"): b"now",
    keys.service_key("beta", "shop", "cart"): b"{}",
    keys.AGENTS + b"n1": b"{}",
}


@pytest.fixture
async def betas(bed: Bed) -> AsyncIterator[LocalEtcd]:
    """An etcd where alpha's is, with what beta has there, and nobody's users; it does not run."""
    await bed.etcd.stop()
    made = bed.make_etcd("betas")
    await made.start()
    for key, value in BETAS.items():
        await bed.client.put(key, value)
    await made.stop()
    yield made
    made.kill()


@pytest.mark.parametrize("own", [100, 0], ids=["younger", "older"])
async def test_an_etcd_that_is_exchanged_for_another_clusters_under_a_leader_is_left_alone(
    bed: Bed, betas: LocalEtcd, own: int
) -> None:
    """Also where its revisions are lower than those of the own one, as in one that began anew."""
    await bed.etcd.start()
    await count(bed, own)
    async with bed.running():
        await bed.until_synced()
        before, users = await bed.data(), await list_users(bed.client)
        await bed.etcd.stop()
        await betas.start()
        await count(bed, 101 - own)
        await until_page(bed, "/readyz", "is that of cluster beta, and this is alpha")
        bed.write("more.yaml", manifests("10.1.0.9", name="more"))
        await asyncio.sleep(2.0)
        found = await bed.all()
        assert {key: kv.value for key, kv in found.items() if key != COUNT} == BETAS
        assert not await list_users(bed.client)
        await betas.stop()
        await bed.etcd.start()
        await bed.until(lambda found: keys.service_key("alpha", "shop", "more") in found)
        await until_page(bed, "/readyz", "ok")
        after = await bed.data()
        assert {key: after.get(key) for key in before} == before
        assert await list_users(bed.client) == users


async def test_a_mirror_leaves_an_etcd_alone_that_is_exchanged_for_another_clusters(
    bed: Bed, betas: LocalEtcd, tmp_path: Path
) -> None:
    http, copy = f"127.0.0.1:{free_port()}", keys.cluster_config_key("gone")
    (tmp_path / "none").mkdir()
    await bed.etcd.start()
    async with processes.serving(run_mirror(of_folder(bed.context), tmp_path / "none", [http], QUICK)):
        await processes.until_page(http, "/readyz", "ok")
        await count(bed, 50)
        await bed.etcd.stop()
        await betas.start()
        await count(bed, 1)
        await bed.client.put(copy, CONFIG.replace(b'":true', b'":true,"cached":true', 1))
        await processes.until_page(http, "/readyz", "is that of cluster beta, and this is alpha")
        await asyncio.sleep(2.0)
        assert set(await bed.all()) == {*BETAS, copy, COUNT}


async def count(bed: Bed, number: int) -> None:
    """Make etcd's revision so much higher, whichever etcd that is by now."""
    async with asyncio.timeout(PATIENCE):
        while number:
            with suppress(Unavailable):
                await bed.client.put(COUNT, b"")
                number -= 1
