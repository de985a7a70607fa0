"""An API server that starts where another one was finds everything right, and writes nothing that is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import mirror
import pytest
from apiserver_bed import PATIENCE, Bed, export, manifests, page, pods, until_page

from clustermesh.apiserver.server import Timing, run
from clustermesh.model import Identity, Label
from clustermesh.own_cluster import of_folder
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.table import Problem
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

CART = keys.service_key("alpha", "shop", "cart")
QUICK = Timing(lease_ttl=6, records=0.0)
CALM = (keys.HEARTBEAT, keys.API_SERVER_LEADERS)  # a beat is to be heard; everything else is to be read and decoded


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    """More keys than a lease has room for."""
    bed = Bed(tmp_path)
    bed.write("shop.yaml", manifests("10.1.0.5"))
    bed.write("export.yaml", export())
    bed.write("many.yaml", "---\n".join(manifests("10.1.0.6", name=f"s{number}") for number in range(400)))
    bed.write("pods.yaml", pods(*(f"pod-{number}" for number in range(20))))
    return bed


def heard(bed: Bed) -> AbstractAsyncContextManager[list[bytes]]:
    """The keys of which a reader of everything is told while the block lasts, but for who leads and the beat."""
    return mirror.heard(bed.client, b"", *CALM)


async def until_beat(bed: Bed, before: dict[bytes, KeyValue]) -> None:
    """Until somebody has beaten since, on the canaries' lease: the one sign that all there is is found right."""

    def is_done(found: dict[bytes, KeyValue]) -> bool:
        beat, canary = found[keys.HEARTBEAT], found[keys.canary_key("alpha", "nodes")]
        return beat.mod_revision > before[keys.HEARTBEAT].mod_revision and beat.lease == canary.lease

    await bed.until(is_done)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_no_reader_hears_anything_of_a_restart(bed: Bed, end: signal.Signals) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.child() as first:
            await bed.until_synced()
            await until_page(bed, "/readyz", "ok")
            first.send_signal(end)
            async with asyncio.timeout(PATIENCE):
                await first.wait()
        before = await bed.all()
        async with heard(bed) as told, bed.child():
            await until_page(bed, "/readyz", "ok")
            await until_beat(bed, before)
        assert told == []
        assert len({kv.lease for kv in before.values()}) > 2


async def test_what_was_found_is_kept_alive(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running(QUICK):
            await bed.until_synced()
        before = await bed.all()
        async with bed.running(QUICK):
            await until_page(bed, "/readyz", "ok")
            await until_beat(bed, before)
            async with heard(bed) as told:
                await asyncio.sleep(QUICK.lease_ttl + 2)
            assert told == []


async def test_what_hangs_on_a_lease_that_is_too_short_gets_one_of_ours(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            await bed.until_synced()
        brief = await bed.client.grant(30)
        await bed.client.put(CART, (await bed.all())[CART].value, brief)
        async with heard(bed) as told, bed.running():
            await bed.until(lambda found: found[CART].lease not in (0, brief))
        assert set(told) == {CART}


async def test_a_restart_writes_what_is_missing_and_what_is_wrong_and_nothing_else(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            await bed.until_synced()
        before = await bed.all()
        missing, wrong = keys.node_key("alpha", "n1"), keys.service_key("alpha", "shop", "s7")
        await bed.client.delete(missing)
        await bed.client.put(wrong, b"scribble")
        async with heard(bed) as told, bed.running():
            await bed.until(lambda found: found.keys() == before.keys() and found[wrong].value == before[wrong].value)
            await until_beat(bed, before)
        assert set(told) == {missing, wrong, keys.CHANGED_SERVICES}


async def test_a_canary_and_the_beat_hang_on_one_lease_however_many_keys_there_are(bed: Bed) -> None:
    async with bed:
        await bed.etcd.start()
        async with bed.running():
            found = await bed.until_synced()
            canaries = {kv.lease for key, kv in found.items() if key.startswith(keys.SYNCED)}
            assert canaries == {found[keys.HEARTBEAT].lease}
            assert (await page(bed, "/readyz"))[0] == 200


class OtherNumbers:
    """A source in Cilium's mode: identities are numbered elsewhere, and nobody touches this one."""

    about, has_agents, doubted = "Kubernetes API, cilium mode", False, frozenset[str]()
    drift: Mapping[str, int] = {}
    exports = False

    def __init__(self) -> None:
        labels = (Label(source="k8s", key="io.cilium.k8s.policy.cluster", value="alpha"),)
        self.snapshot = Snapshot(identities={65999: Identity(id=65999, labels=labels)})

    def problems(self) -> list[Problem]:
        return []

    async def updates(self) -> AsyncGenerator[Change, None]:
        yield Change(identities=frozenset([65999]))
        await asyncio.Event().wait()


async def test_identities_that_are_numbered_elsewhere_outlive_the_grace_after_a_restart(tmp_path: Path) -> None:
    timing = Timing(grace=1, tick=0.05, records=0.0)
    async with Bed(tmp_path) as bed:
        await bed.etcd.start()
        for _ in range(2):
            running = run(of_folder(bed.context), OtherNumbers(), [bed.http], timing)
            async with asyncio.TaskGroup() as tasks, bed.deletions() as gone:
                task = tasks.create_task(running)
                await bed.until(lambda found: keys.canary_key("alpha", "identities") in found)
                await asyncio.sleep(20 * timing.tick)
                task.cancel()
            assert gone == []
