"""Changes in the folder, and records of agents, reach etcd; what is wrong with them is shown and harms nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from apiserver_bed import Bed, export, manifests, page, pods, until_page
from processes import PATIENCE

from clustermesh.address import parse
from clustermesh.apiserver.problems import Say
from clustermesh.apiserver.server import run
from clustermesh.model import AgentRecord
from clustermesh.own_cluster import of_folder
from clustermesh.sources.folder import FolderSource
from clustermesh.store.client import EtcdClient
from clustermesh.store.operations import KeyValue
from clustermesh.wire import cluster_config, endpoint, keys, local, node, service, service_export

CART = keys.service_key("alpha", "shop", "cart")
NODE = keys.node_key("alpha", "n1")
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """Running and complete."""
    made = Bed(tmp_path)
    made.write("shop.yaml", manifests("10.1.0.5"))
    made.write("pods.yaml", pods("a"))
    async with made:
        await made.etcd.start()
        async with made.running():
            await made.until_synced()
            yield made


async def test_a_change_of_a_file_is_a_change_of_its_keys_only(bed: Bed) -> None:
    before = await bed.all()
    bed.write("shop.yaml", manifests("10.1.0.5", "10.1.0.6"))
    written = (bed.context.manifests / "shop.yaml").stat().st_mtime_ns
    found = await bed.until(lambda found: found[CART].mod_revision > before[CART].mod_revision)
    assert set(service.decode(found[CART].value).backends) == {parse("10.1.0.5"), parse("10.1.0.6")}
    stamp = local.decode_stamps(found[keys.CHANGED_SERVICES].value)["shop", "cart"]
    assert stamp.observed == written <= stamp.published
    changed = {key for key in found if found[key] != before[key]}
    assert changed == {CART, keys.CHANGED_SERVICES}


async def test_a_file_that_goes_takes_its_keys_along(bed: Bed) -> None:
    (bed.context.manifests / "shop.yaml").unlink()
    found = await bed.until(lambda found: CART not in found)
    assert NODE in found


async def test_what_is_exported_is_published_and_the_cluster_config_says_whether_anything_is(bed: Bed) -> None:
    key, config = keys.service_export_key("alpha", "shop", "cart"), keys.cluster_config_key("alpha")

    def enabled(found: Mapping[bytes, KeyValue]) -> bool | None:
        return cluster_config.decode(found[config].value).service_exports_enabled

    assert enabled(await bed.all()) is False
    bed.write("export.yaml", export())
    found = await bed.until(lambda found: key in found)
    assert enabled(found) is True
    assert found[config].mod_revision < found[key].mod_revision
    assert service_export.decode(found[key].value).created == 1767225600
    (bed.context.manifests / "export.yaml").unlink()
    found = await bed.until(lambda found: key not in found and enabled(found) is False)
    assert keys.canary_key("alpha", "serviceexports") in found


async def test_a_deletion_goes_with_a_sign_of_life(bed: Bed) -> None:
    """Readers that have heard none yet keep what vanishes, because a lease may have ended."""
    beaten = (await bed.all())[keys.HEARTBEAT].mod_revision
    (bed.context.manifests / "shop.yaml").unlink()
    await bed.until(lambda found: CART not in found and found[keys.HEARTBEAT].mod_revision > beaten)


async def test_a_broken_document_is_shown_and_everything_beside_it_goes_on(bed: Bed) -> None:
    bed.write("bad.yaml", "kind: [}\n---\n" + manifests("10.1.0.9", name="db"))
    await bed.until(lambda found: keys.service_key("alpha", "shop", "db") in found)
    await until_page(bed, "/readyz", "problem: bad.yaml, document 1: line 1: 'kind: [}'")
    assert (await page(bed, "/readyz"))[0] == 200
    assert "clustermesh_apiserver_problems 1.0" in (await page(bed, "/metrics"))[1]
    bed.write("bad.yaml", manifests("10.1.0.9", name="db"))
    await until_page(bed, "/metrics", "clustermesh_apiserver_problems 0.0")


async def test_what_a_duty_says_is_a_problem_until_it_says_otherwise(tmp_path: Path) -> None:
    mended = asyncio.Event()

    async def duty(_: EtcdClient, say: Say) -> None:
        say(["ServiceImports: not written"])
        await mended.wait()
        say([])
        await asyncio.Event().wait()

    async with Bed(tmp_path) as bed, asyncio.TaskGroup() as tasks, asyncio.timeout(PATIENCE):
        await bed.etcd.start()
        source = FolderSource(bed.context.manifests, bed.context.cluster)
        running = tasks.create_task(run(of_folder(bed.context), source, [bed.http], duties=[duty]))
        await until_page(bed, "/readyz", "problem: ServiceImports: not written")
        while (report := await bed.client.get(keys.API_SERVER)) is None or b"not written" not in report.value:
            await asyncio.sleep(0.05)
        mended.set()
        assert "problem" not in await until_page(bed, "/readyz", "ok")
        running.cancel()


async def test_an_agents_record_reaches_its_node_and_the_pods_on_it(bed: Bed) -> None:
    pod = keys.endpoint_key(parse("10.1.0.10"))
    assert endpoint.decode((await bed.all())[pod].value).key == 0
    record = local.encode_agent(AgentRecord(node="n1", wireguard_public_key=KEY))
    await bed.client.put(keys.agent_key("n1"), record)
    found = await bed.until(lambda found: endpoint.decode(found[pod].value).key == 255)
    merged = node.decode(found[NODE].value)
    assert (merged.wireguard_public_key, merged.encryption_key) == (KEY, 255)
    assert merged.annotations == {"network.cilium.io/wg-pub-key": KEY}
    await bed.client.put(keys.agent_key("n1"), b"garbage")
    await until_page(bed, "/readyz", "problem: agent record: ")
    await bed.client.put(keys.agent_key("n2"), record)
    await until_page(bed, "/readyz", "must be n2, as its key says")
    assert node.decode((await bed.all())[NODE].value) == merged, "a record that cannot be read changes nothing"


async def test_metrics_name_what_cilium_names_and_count_drift(bed: Bed) -> None:
    await bed.client.delete(CART)
    text = await until_page(
        bed, "/metrics", 'clustermesh_apiserver_drift_total{scope="services",source_cluster="alpha"} 1.0'
    )
    for line in (
        'kvstore_sync_queue_size{scope="nodes/v1",source_cluster="alpha"} 0.0',
        'kvstore_initial_sync_completed{action="write",scope="services/v1",source_cluster="alpha"} 1.0',
        'kvstore_sync_errors_total{scope="services/v1",source_cluster="alpha"} 0.0',
    ):
        assert f"\ncilium_clustermesh_apiserver_{line}\n" in text
    for line in (
        'source_objects{kind="nodes"} 1.0',
        'keys{scope="endpoints",source_cluster="alpha"} 1.0',
        "identities 1.0",
        "ready 1.0",
    ):
        assert f"\nclustermesh_apiserver_{line}\n" in text
    assert (await page(bed, "/livez"))[0] == 200
    assert (await page(bed, "/elsewhere"))[0] == 404


async def test_not_ready_while_etcd_is_away_and_ready_again_after(bed: Bed) -> None:
    await bed.etcd.stop()
    await until_page(bed, "/readyz", "waiting: etcd: ")
    assert (await page(bed, "/readyz"))[0] == 503
    assert (await page(bed, "/livez"))[0] == 200
    await bed.etcd.start()
    await until_page(bed, "/readyz", "ok")
