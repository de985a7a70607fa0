"""An API server starts: in the order readers rely on, and without a reader noticing when it starts again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import processes
import pytest
from apiserver_bed import NO_AGENTS, PATIENCE, Bed, manifests, pods, until_page, values

from clustermesh.address import parse
from clustermesh.apiserver.server import Timing, run
from clustermesh.kube.config import from_kubeconfig
from clustermesh.model import AgentRecord
from clustermesh.own_cluster import of_folder
from clustermesh.sources.folder import FolderSource
from clustermesh.sources.kubernetes import KubernetesSource
from clustermesh.sources.nodes import WIREGUARD_KEY
from clustermesh.wire import keys, local, service
from clustermesh.wire.kinds import ENDPOINTS

IDENTITIES = keys.state_prefix("identities", "alpha")
ADDRESSES = keys.state_prefix("ip", "alpha")
CART = keys.service_key("alpha", "shop", "cart")
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="
OTHER = "b3RoZXJvdGhlcm90aGVyb3RoZXJvdGhlcm90aGVyMTI="


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    bed = Bed(tmp_path)
    bed.write("shop.yaml", manifests("10.1.0.5", "10.1.0.6"))
    bed.write("pods.yaml", pods(*(f"pod-{number}" for number in range(20))))
    return bed


async def test_config_and_heartbeat_come_first_and_canaries_last(bed: Bed) -> None:
    async with bed, bed.running():
        await asyncio.sleep(0)  # etcd comes after the API server, which waits for it
        await bed.etcd.start()
        found = await bed.until_synced()
        about = {keys.cluster_config_key("alpha"), keys.HEARTBEAT}
        canaries = {k for k in found if k.startswith((keys.SYNCED, keys.LOCAL_SERVICES_SYNCED))}
        data = found.keys() - about - canaries
        assert {key for key, kv in found.items() if kv.lease == 0} == {keys.CHANGED_SERVICES}
        assert len(canaries) == 6
        assert len(data) == 2 + 1 + 20 + 20
        assert max(found[key].mod_revision for key in about) < min(found[key].mod_revision for key in data)
        assert max(found[key].mod_revision for key in data) < min(found[key].mod_revision for key in canaries)
        assert found[CART].mod_revision == found[keys.CHANGED_SERVICES].mod_revision, "one transaction"
        ips, ids = (
            [kv.mod_revision for key, kv in found.items() if key.startswith(keys.state_prefix(name, "alpha"))]
            for name in ("ip", "identities")
        )
        assert max(ids) < min(ips), "an address refers to an identity that is there"


async def test_what_keeps_the_source_from_being_read_is_said(bed: Bed) -> None:
    nowhere = KubernetesSource(from_kubeconfig("/nowhere"), bed.context.cluster)
    await bed.etcd.start()
    async with bed:
        serving = asyncio.create_task(run(of_folder(bed.context), nowhere, [bed.http], NO_AGENTS))
        await asyncio.sleep(0)  # until it listens
        await until_page(
            bed, "/readyz", "waiting: the source has not been read yet: kubeconfig: no kubeconfig at /nowhere"
        )
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_an_empty_etcd_counts_as_complete_once_every_node_has_its_key(bed: Bed) -> None:
    """It may have been emptied while this API server was away: nobody here knows the keys but the agents."""
    canary, n1 = keys.canary_key("alpha", "nodes"), keys.node_key("alpha", "n1")
    await bed.etcd.start()
    async with bed, bed.running(Timing(records=1000.0)):
        found = await bed.until(lambda found: n1 in found and keys.canary_key("alpha", "services") in found)
        assert found.keys().isdisjoint([canary, keys.canary_key("alpha", "identities"), keys.canary_key("alpha", "ip")])
        assert "the agents of n1 have not said their keys yet" in await until_page(bed, "/readyz", "agents")
        record = AgentRecord(node="n1", wireguard_public_key=KEY)
        await bed.client.put(keys.agent_key("n1"), local.encode_agent(record))
        found = await bed.until(lambda found: canary in found)
        assert KEY.encode() in found[n1].value
        await until_page(bed, "/readyz", "ok")


async def test_a_key_outlives_its_record_that_is_lost_while_no_api_server_runs(bed: Bed) -> None:
    n1, record = keys.node_key("alpha", "n1"), local.encode_agent(AgentRecord(node="n1", wireguard_public_key=KEY))
    await bed.etcd.start()
    async with bed:
        async with bed.running():
            await bed.until_synced()
            await bed.client.put(keys.agent_key("n1"), record)
            before = await bed.until(lambda found: KEY.encode() in found[n1].value)
        await bed.client.delete(keys.agent_key("n1"))
        async with bed.running():
            await until_page(bed, "/readyz", "ok")
            assert (await bed.all())[n1] == before[n1]
            annotated = f"{{name: n1, annotations: {{{WIREGUARD_KEY}: {OTHER}}}}}"
            bed.write("pods.yaml", pods("a").replace("{name: n1}", annotated))
            await bed.until(lambda found: OTHER.encode() in found[n1].value)


async def test_an_agent_that_never_comes_does_not_hold_up_its_cluster_for_ever(bed: Bed) -> None:
    await bed.etcd.start()
    async with bed, bed.running(Timing(records=0.5)):
        await bed.until(lambda found: keys.canary_key("alpha", "nodes") in found)
        await until_page(bed, "/readyz", "ok")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_restart_keeps_every_key_and_every_number(bed: Bed, end: signal.Signals) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.child() as first:
            before = await bed.until_synced()
            data = await bed.data()
            first.send_signal(end)
            async with asyncio.timeout(PATIENCE):
                assert await first.wait() == (-9 if end is signal.SIGKILL else 0)
        assert await bed.data() == data, "what it wrote outlives it"
        bed.write("shop.yaml", manifests("10.1.0.5", "10.1.0.7"))
        async with bed.deletions() as gone, bed.child():
            after = await bed.until(lambda found: found and found[CART].value != before[CART].value)
        assert gone == []
        assert values(after, IDENTITIES) == values(before, IDENTITIES)
        assert values(after, keys.STATE + b"ip/") == values(before, keys.STATE + b"ip/")
        assert set(service.decode(after[CART].value).backends) == {parse("10.1.0.5"), parse("10.1.0.7")}


async def test_keys_that_nobody_wants_any_more_go_at_the_start(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            await bed.until_synced()
        (bed.context.manifests / "shop.yaml").unlink()
        async with bed.running():
            found = await bed.until(lambda found: CART not in found)
        assert len(values(found, IDENTITIES)) == 20


async def test_a_start_with_a_broken_file_takes_nothing_away(bed: Bed) -> None:
    bed.write("more.yaml", manifests("10.1.0.9", name="db"))
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            before = await bed.until_synced()
        bed.write("shop.yaml", manifests("10.1.0.5")[:-20] + "{")
        bed.write("more.yaml", manifests("10.1.0.8", name="db"))
        async with bed.running():
            async with bed.deletions() as gone:
                fresh = keys.service_key("alpha", "shop", "db")
                await bed.until(lambda found: b"10.1.0.8" in found[fresh].value)
                await until_page(bed, "/readyz", "problem")
                await until_page(bed, "/metrics", "clustermesh_apiserver_ready 1.0")
            assert gone == []
            assert (await bed.all())[CART].value == before[CART].value
            bed.write("shop.yaml", manifests())
            await bed.until(lambda found: not service.decode(found[CART].value).backends)
            (bed.context.manifests / "shop.yaml").unlink()
            await bed.until(lambda found: CART not in found)


class Doubting(FolderSource):
    """It could never read some object that may speak for endpoints."""

    @property
    def doubted(self) -> frozenset[str]:
        return frozenset({ENDPOINTS})


async def test_what_something_unread_may_speak_for_stays_and_all_else_that_is_gone_goes(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            before = await bed.until_synced()
        for name in ("shop.yaml", "pods.yaml"):
            (bed.context.manifests / name).unlink()
        source = Doubting(bed.context.manifests, bed.context.cluster)
        async with processes.serving(run(of_folder(bed.context), source, [bed.http], NO_AGENTS)):
            found = await bed.until(lambda found: CART not in found)
            await until_page(bed, "/metrics", "clustermesh_apiserver_ready 1.0")
            await until_page(bed, "/readyz", "endpoints: what was published before")
        assert len(values(before, ADDRESSES)) == len(values(found, ADDRESSES)) == 20
