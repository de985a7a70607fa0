"""Whatever happens to the keys, the leases or the etcd, what the cluster has to say is there again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from apiserver_bed import PATIENCE, Bed, manifests, pods, values

from clustermesh.address import parse
from clustermesh.apiserver.server import Timing
from clustermesh.model import AgentRecord
from clustermesh.wire import keys, local

CART = keys.service_key("alpha", "shop", "cart")

KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="

TIMES = {keys.CHANGED_SERVICES}
"""What nobody puts back."""
THRESHOLDS = gc.get_threshold()


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """Running and complete."""
    made = Bed(tmp_path)
    made.write("shop.yaml", manifests("10.1.0.5"))
    made.write("pods.yaml", pods("a", "b"))
    async with made:
        await made.etcd.start()
        async with made.running(Timing(lease_ttl=6, records=0.0)):
            await made.until_synced()
            yield made


async def test_whatever_somebody_changes_or_deletes_is_put_back(bed: Bed) -> None:
    before = await bed.data()
    every = sorted(set(await bed.all()) - TIMES)
    for key in every[::2]:
        await bed.client.put(key, b"scribble")
    for key in every[1::2]:
        await bed.client.delete(key)
    await bed.until(lambda found: found.keys() - TIMES == set(every) and all(found[key].lease for key in every))
    assert await bed.data() == before


async def test_the_same_value_without_our_lease_is_not_good_enough(bed: Bed) -> None:
    await bed.client.put(CART, (await bed.all())[CART].value)
    await bed.until(lambda found: found[CART].lease)


async def test_foreign_keys_in_our_places_are_removed_and_no_others(bed: Bed) -> None:
    ours = set(await bed.all())
    foreign = [
        keys.service_key("alpha", "shop", "nobody"),
        keys.service_key("beta", "shop", "cart"),
        keys.node_key("alpha", "n9"),
        keys.identity_key(65537),
        keys.endpoint_key(parse("10.9.9.9")),
        keys.OLD_STAMPS + b"shop/nobody",
        keys.local_service_key("shop", "nobody"),
        keys.canary_key("alpha", "endpointslices"),
    ]
    others = [
        keys.cluster_config_key("alpha2"),
        keys.cluster_config_key("beta"),
        keys.canary_key("beta", "nodes"),
        keys.cache_prefix("nodes", "beta") + b"n1",
        keys.agent_key("n1"),
        keys.status_key("n1"),
        b"elsewhere",
    ]
    for key in [*others, *foreign]:
        await bed.client.put(key, b"{}")
    found = await bed.until(lambda found: not found.keys() & set(foreign))
    assert found.keys() == ours | set(others)


async def test_a_revoked_lease_is_replaced_and_its_keys_are_written_again(bed: Bed) -> None:
    before, found = await bed.data(), await bed.all()
    leases = {kv.lease for kv in found.values()} - {0}
    for lease in leases:
        await bed.client.revoke(lease)
    after = await bed.until(lambda now: now.keys() | TIMES == found.keys())
    assert {kv.lease for kv in after.values()}.isdisjoint(leases)
    assert await bed.data() == before


async def test_leases_are_kept_alive_beyond_their_time(bed: Bed) -> None:
    leases = {kv.lease for kv in (await bed.all()).values()} - {0}
    async with bed.deletions() as gone:
        await asyncio.sleep(8)  # a third longer than a lease lives
    assert gone == []
    assert {kv.lease for kv in (await bed.all()).values()} - {0} == leases


async def test_an_etcd_that_was_emptied_is_filled_again_canaries_last_and_closed_again(bed: Bed) -> None:
    before, found = await bed.data(), await bed.all()
    await bed.etcd.stop()
    bed.etcd = bed.make_etcd("empty")
    await bed.etcd.start()
    after = await bed.until(lambda now: now.keys() | TIMES == found.keys())
    assert await bed.data() == before
    assert values(after, keys.state_prefix("identities", "alpha")) == values(
        found, keys.state_prefix("identities", "alpha")
    )
    canaries = {key for key in after if key.startswith((keys.SYNCED, keys.LOCAL_SERVICES_SYNCED))}
    data = [kv.mod_revision for key, kv in after.items() if key.startswith((keys.STATE, keys.LOCAL_SERVICES))]
    assert max(data) < min(after[key].mod_revision for key in canaries)
    await bed.until_users("root", "admin-alpha", "local-alpha", "remote")


async def test_an_emptied_etcd_has_every_key_again_while_no_agent_says_it_again(bed: Bed) -> None:
    record = local.encode_agent(AgentRecord(node="n1", wireguard_public_key=KEY, boot_id="b-1"))
    stranger = local.encode_agent(AgentRecord(node="n9", wireguard_public_key=KEY))
    await bed.client.put(keys.agent_key("n1"), record)
    await bed.client.put(keys.agent_key("n9"), stranger)
    n1, pod = keys.node_key("alpha", "n1"), keys.endpoint_key(parse("10.1.0.10"))
    before = await bed.until(lambda found: KEY.encode() in found[n1].value and b'"Key":255' in found[pod].value)
    await bed.etcd.stop()
    bed.etcd = bed.make_etcd("empty")
    await bed.etcd.start()
    after = await bed.until(lambda found: keys.agent_key("n1") in found and keys.canary_key("alpha", "nodes") in found)
    assert after[keys.agent_key("n1")].value == record
    assert keys.agent_key("n9") not in after, "it is no node of this cluster"
    assert [after[key].value for key in (n1, pod)] == [before[key].value for key in (n1, pod)]
    assert after[n1].mod_revision < after[keys.canary_key("alpha", "nodes")].mod_revision


async def test_what_lost_connections_leave_behind_is_collected_as_ever(bed: Bed) -> None:
    """Few collections are for the start: what it made is set aside, and each lost connection leaves garbage."""
    async with asyncio.timeout(PATIENCE):
        while gc.get_threshold() != THRESHOLDS:
            await asyncio.sleep(0.02)
    assert gc.get_freeze_count() > 0


async def test_what_changes_while_etcd_is_away_is_written_when_it_is_back(bed: Bed) -> None:
    before = await bed.data()
    await bed.etcd.stop()
    bed.write("shop.yaml", manifests("10.1.0.77"))
    await bed.etcd.start()
    await bed.until(lambda found: found and b"10.1.0.77" in found[CART].value)
    after = await bed.data()
    assert {key: value for key, value in after.items() if key != CART} == {
        key: value for key, value in before.items() if key != CART
    }


async def test_audits_of_what_is_right_change_nothing(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.write("shop.yaml", manifests("10.1.0.5"))
    async with bed:
        await bed.etcd.start()
        async with bed.running(Timing(audit=0.1, records=0.0)):
            before = await bed.until_synced()
            await asyncio.sleep(1.0)
            assert await bed.all() == before
