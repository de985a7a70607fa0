"""Certificates, users and ids that change under two clusters: who is shut out keeps what it knew, and goes on later."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mesh_bed import BORN, MeshBed
from mirror_bed import beating

from certs.folder import load_authority
from certs.issue import Pair, create_authority
from certs.names import Leaf, remote, server
from certs.pair import write_pair
from clustermesh.mesh.session import State
from clustermesh.standalone.users_file import add_user, remove_user
from clustermesh.store.sever import cut, find_connections

LEAVES = {"beta": remote("beta"), "admin": Leaf("admin-alpha"), "server": server(["127.0.0.1"])}
EXPIRED = BORN + timedelta(days=1)
"""Whatever was issued then is good no more."""


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[MeshBed]:
    async with MeshBed(tmp_path) as made:
        yield made


async def cut_all(bed: MeshBed) -> None:
    """Whoever is connected to alpha's etcd has to show a certificate again."""
    cut(find_connections(bed.alpha.context.address.port))
    await bed.way.cut()


@pytest.mark.parametrize("name", LEAVES)
async def test_a_certificate_expires_and_is_renewed(bed: MeshBed, name: str) -> None:
    rng = random.Random(name)
    bed.certify(name, LEAVES[name], EXPIRED)
    await cut_all(bed)
    if name != "admin":
        await bed.until(lambda: "certificate" in bed.session("near").error, bed.difference)
        assert bed.session("near").state is State.STALE
    bed.change(rng)
    bed.certify(name, LEAVES[name], datetime.now(UTC))
    await cut_all(bed)
    await bed.until_true()
    bed.check_heard()


async def test_the_authority_is_exchanged_while_both_are_trusted(bed: MeshBed) -> None:
    """First the new one is trusted everywhere, then it signs, then the old one is no longer trusted."""
    rng, now, certs = random.Random(3), datetime.now(UTC), bed.alpha.context.certs
    old, new = load_authority(certs, now), create_authority(now)
    for authority, signer in ((Pair(old.certificate, old.key, (new.certificate,)), None), (None, new), (new, None)):
        if authority is not None:
            write_pair(certs, "ca", authority)
            bed.alpha.etcd.kill()  # it reads whom it trusts when it starts
            await bed.alpha.etcd.start()
        if signer is not None:
            for name, leaf in LEAVES.items():
                bed.certify(name, leaf, now, signer)
            await cut_all(bed)
        bed.change(rng)
        await bed.until_true()
    bed.check_heard()
    assert "certificate" not in bed.session("near").error


async def test_a_user_that_is_revoked_keeps_what_it_knew(bed: MeshBed) -> None:
    rng, users = random.Random(4), bed.alpha.context.users_file
    remove_user(users, "remote-beta")
    await bed.until(lambda: bed.session("near").state is State.STALE, bed.difference)
    known = bed.readers["near"].comparable()
    bed.change(rng)
    await bed.until_published()
    assert bed.readers["near"].comparable() == known
    assert bed.readers["near"].taken == []
    add_user(users, "remote-beta")
    await bed.until_true()
    bed.check_heard()


async def test_a_cluster_that_comes_back_with_another_id_is_read_anew(bed: MeshBed) -> None:
    """What it said under the old one goes: its identities are another cluster's now."""
    cluster = bed.alpha.context.path / "cluster.yaml"
    await bed.kill("apiserver")
    cluster.write_text(cluster.read_text().replace("id: 1\n", "id: 7\n"))
    await bed.start("apiserver")
    bed.change(random.Random(5))
    await bed.until(lambda: bed.readers["near"].comparable() == bed.truth.view(), bed.difference)
    await bed.read("far")  # else it would look at the configuration of the copies in half a minute
    await bed.until_known()
    for sink in bed.readers.values():
        assert {each >> 16 for each in sink.view().identities} == {7}


async def test_two_clusters_that_claim_one_id(bed: MeshBed) -> None:
    """The one that was there first stays, and nothing of it goes; of the other nothing is taken."""
    gamma = await bed.another("gamma", 1)
    await gamma.publish()
    async with beating(gamma):
        await bed.until(lambda: bed.session("near", "gamma").state is State.EVICTED, bed.difference)
        bed.change(random.Random(6))
        await bed.until_true()
        bed.check_heard()
        assert "already used by cluster alpha" in bed.session("near", "gamma").error
        assert not any(b"gamma" in kv.key for kv in (await bed.beta.range(b"cilium/cache/")).kvs)
