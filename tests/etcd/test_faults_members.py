"""An etcd of three members behind the API server and its readers, each of whom knows them all."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from etcd_maintenance import find_leader
from mesh_bed import MeshBed, frozen

from clustermesh.mesh.session import State
from clustermesh.standalone.users_file import remove_user


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[MeshBed]:
    async with MeshBed(tmp_path, members=3) as made:
        yield made


async def test_each_member_is_killed_in_turn(bed: MeshBed) -> None:
    rng = random.Random(1)
    for member in bed.members:
        member.kill()
        bed.change(rng)
        await bed.until_true()
        await member.start()
    await bed.until_true()
    bed.check_heard()


async def test_the_leader_is_killed_and_another_one_leads(bed: MeshBed) -> None:
    rng, first = random.Random(2), await find_leader(bed.members)
    first.kill()
    bed.change(rng)
    await bed.until_true()
    assert await find_leader(bed.members) is not first
    await first.start()
    bed.change(rng)
    await bed.until_true()
    bed.check_heard()


async def test_the_leader_is_cut_off_and_comes_back_behind_the_others(bed: MeshBed) -> None:
    rng, first = random.Random(3), await find_leader(bed.members)
    async with frozen(first.pid):
        bed.change(rng)
        await bed.until_true()
    bed.change(rng)
    await bed.until_true()
    bed.check_heard()


async def test_each_member_hangs_in_turn(bed: MeshBed) -> None:
    """It takes connections and never answers; whoever hangs on it goes to another one."""
    rng = random.Random(6)
    for member in bed.members:
        async with frozen(member.pid):
            bed.change(rng)
            await bed.until_true()
    bed.change(rng)
    await bed.until_true()
    bed.check_heard()


async def test_the_majority_is_gone_for_a_while(bed: MeshBed) -> None:
    """Nothing can be written, nothing is believed of whoever is left, and nothing goes."""
    rng = random.Random(4)
    async with frozen(bed.members[0].pid), frozen(bed.members[1].pid):
        bed.change(rng)
        await bed.until(lambda: bed.session("near").error, bed.difference)
        known = bed.readers["near"].comparable()
    assert known["pods"]
    bed.change(rng)
    await bed.until_true()
    bed.check_heard()


async def test_a_user_that_is_removed_hears_nothing_more_over_any_member(bed: MeshBed) -> None:
    remove_user(bed.alpha.context.users_file, "remote-beta")
    await bed.until(lambda: bed.session("near").state is State.STALE, bed.difference)
    known = bed.readers["near"].comparable()
    bed.change(random.Random(5))
    await bed.until_published()
    assert bed.readers["near"].comparable() == known
