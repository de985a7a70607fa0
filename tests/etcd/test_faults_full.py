"""No room in an etcd: its disk, or what it was told to use at most. What is known stays, and it goes on later."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_maintenance import make_room
from mesh_bed import MeshBed
from more_faults import of_disks
from small_disk import SmallDisk, small_disk, throw_away, write_until_refused

from clustermesh.errors import ClusterMeshError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


@pytest.mark.parametrize("whose", ["peers", "own"])
async def test_the_disk_is_full_and_then_it_is_not(tmp_path: Path, disk: SmallDisk, whose: str) -> None:
    rng = random.Random(whose)
    async with MeshBed(tmp_path / "mesh", disks={whose: disk.place}) as bed:
        async with of_disks({whose: disk})[f"{whose}_disk_full"](bed, rng):
            bed.change(rng)
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()


@pytest.mark.parametrize("whose", ["peers", "own"])
async def test_the_quota_is_reached_and_the_alarm_is_taken_back(tmp_path: Path, whose: str) -> None:
    """etcd is read-only then: what was written stays, leases are renewed, and nothing new comes."""
    rng = random.Random(whose)
    async with MeshBed(tmp_path, flags=["--quota-backend-bytes=30000000"]) as bed:
        etcd, client = bed.etcd_of(whose)
        await write_until_refused(client)
        assert any("NOSPACE" in error for error in (await client.status()).errors)
        bed.change(rng)
        known = bed.readers["far"].comparable()
        with pytest.raises(ClusterMeshError, match="space exceeded"):
            await client.put(b"more", b"x")
        assert bed.readers["far"].comparable() == known
        await throw_away(client)
        await make_room(etcd)
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()
