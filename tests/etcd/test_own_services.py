"""The services of the own cluster, from their API server to its agents: where peers read them, or for agents alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from apiserver_bed import PATIENCE, Bed, manifests, pods

from agent.older import own_services
from agent.propagation import Propagation
from agent.state import AgentState
from clustermesh.apiserver.server import Timing
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import own_tables
from clustermesh.model import Affinity, AgentRecord, LocalService
from clustermesh.wire import keys, local
from clustermesh.wire.entries import decode_agent_record

KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="
SERVICE = ("shop", "cart")
TOLD, OWN = keys.service_key("alpha", *SERVICE), keys.local_service_key(*SERVICE)
GLOBAL = manifests("10.1.0.5")
PRIVATE = GLOBAL.replace('global: "true"', 'global: "false"')
UNSHARED = GLOBAL.replace('global: "true"', 'global: "true", service.cilium.io/shared: "false"')
NEARBY = GLOBAL.replace('global: "true"', 'global: "true", service.cilium.io/affinity: local')


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    made = Bed(tmp_path)
    made.write("shop.yaml", GLOBAL)
    made.write("pods.yaml", pods("a"))
    async with made:
        await made.etcd.start()
        async with made.running():
            await made.until_synced()
            yield made


@asynccontextmanager
async def reading(bed: Bed) -> AsyncIterator[MeshState]:
    """What an agent of the cluster knows."""
    state = AgentState("alpha", Propagation())
    async with bed.client_as("local") as client:
        reader = ClusterReader("alpha", state, lambda: nullcontext(client), own_tables, lambda _n, _c: None)
        task = asyncio.create_task(reader.run())
        try:
            async with asyncio.timeout(PATIENCE):
                while not reader.session.heard:
                    await asyncio.sleep(0.02)
            yield state
        finally:
            task.cancel()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)


async def say(bed: Bed, reads_shared: bool, node: str = "n1") -> None:
    record = AgentRecord(node=node, wireguard_public_key=KEY, reads_shared=reads_shared)
    await bed.client.put(keys.agent_key(node), local.encode_agent(record))


def seen_as(manifest: str, found: LocalService) -> bool:
    return {
        GLOBAL: found.is_global and found.service.shared and found.affinity is Affinity.NONE,
        PRIVATE: not found.is_global,
        UNSHARED: found.is_global and not found.service.shared,
        NEARBY: found.is_global and found.affinity is Affinity.LOCAL,
    }[manifest]


async def test_whatever_becomes_of_a_service_an_agent_knows_it_all_along(bed: Bed) -> None:
    async with reading(bed) as state:
        known = list[LocalService | None]()
        state.on_dirty.append(lambda: known.append(state.own_service(SERVICE)))
        for manifest in (PRIVATE, GLOBAL, UNSHARED, NEARBY, PRIVATE, NEARBY, GLOBAL):
            bed.write("shop.yaml", manifest)
            await until(lambda expected=manifest: (at := state.own_service(SERVICE)) and seen_as(expected, at))  # type: ignore[misc]
        assert None not in known
        (bed.context.manifests / "shop.yaml").unlink()
        await until(lambda: state.own_service(SERVICE) is None)


async def test_a_global_service_has_one_key_and_others_one_more(bed: Bed) -> None:
    names = [f"shared-{number}" for number in range(20)]
    private = manifests("10.1.0.6", name="private").replace('global: "true"', 'global: "false"')
    bed.write("more.yaml", "---\n".join([private, *(manifests("10.1.0.7", name=name) for name in names)]))
    own = keys.local_service_key("shop", "private")
    found = await bed.until(lambda found: keys.service_key("alpha", "shop", names[-1]) in found and own in found)
    assert {key for key in found if key.startswith(keys.LOCAL_SERVICES)} == {own}
    assert len([key for key in found if key.startswith(keys.state_prefix("services", "alpha"))]) == 1 + len(names)


async def test_an_agent_that_reads_only_keys_of_its_own_finds_them_from_when_it_says_so(bed: Bed) -> None:
    assert OWN not in await bed.all()
    await say(bed, reads_shared=False)
    found = await bed.until(lambda found: OWN in found)
    assert local.decode_service(found[OWN].value).service.name == "cart"
    await say(bed, reads_shared=True)
    await bed.until(lambda found: OWN not in found and TOLD in found)


async def test_an_older_agent_is_waited_for_where_etcd_was_found_empty(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.write("shop.yaml", GLOBAL)
    bed.write("pods.yaml", pods("a"))
    async with bed:
        await bed.etcd.start()
        async with bed.running(Timing(records=1000.0)):
            found = await bed.until(lambda found: keys.canary_key("alpha", "services") in found)
            assert keys.LOCAL_SERVICES_SYNCED not in found
            await say(bed, reads_shared=False)
            found = await bed.until(lambda found: keys.LOCAL_SERVICES_SYNCED in found)
            assert found[OWN].mod_revision < found[keys.LOCAL_SERVICES_SYNCED].mod_revision


async def test_before_an_agent_gives_way_to_an_older_one_that_has_its_services(bed: Bed) -> None:
    await say(bed, reads_shared=True)
    async with bed.client_as("local") as client:
        await own_services.ask_for(client, "alpha", "n1")
    found = await bed.all()
    assert OWN in found
    record = decode_agent_record(keys.agent_key("n1"), found[keys.agent_key("n1")].value)
    assert (record.reads_shared, record.wireguard_public_key) == (False, KEY)
    async with bed.client_as("local") as client:
        await own_services.ask_for(client, "alpha", "never-registered")
