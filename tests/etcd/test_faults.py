"""Whatever happens between a source and a reader: the state equals the truth, and nothing goes that did not go."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from clock import Clock
from mesh_bed import MeshBed, frozen
from mesh_faults import FAULTS, LONG


@pytest.mark.parametrize("name", FAULTS)
async def test_the_end_is_the_truth_and_nothing_goes_on_the_way(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    async with MeshBed(tmp_path) as bed:
        bed.change(rng)
        async with FAULTS[name](bed, rng):
            bed.change(rng)
        bed.change(rng)
        await bed.until_true()
        if not FAULTS[name].deletes:
            bed.check_heard()


@pytest.mark.parametrize("whose", ["peers", "own"])
async def test_an_etcd_that_comes_back_empty_under_its_id_is_no_other(whose: str, tmp_path: Path) -> None:
    """Nothing but what it holds says that it is not the one from before."""
    rng = random.Random(1)
    async with MeshBed(tmp_path, flags=["--initial-cluster-token=the-same"]) as bed:
        async with FAULTS[f"{whose}_etcd_emptied"](bed, rng):
            bed.change(rng)
        await bed.until_true()


async def test_all_that_stand_still_for_half_a_minute_go_on_where_they_were(tmp_path: Path) -> None:
    """Both etcds, API server and mirror, while the readers wait."""
    rng = random.Random(3)
    async with MeshBed(tmp_path) as bed:
        pids = [etcd.pid for etcd in (bed.alpha.etcd, bed.own)] + [each.pid for each in bed.processes.values()]
        async with AsyncExitStack() as stack:
            for pid in pids:
                await stack.enter_async_context(frozen(pid))
            bed.change(rng)
            await asyncio.sleep(LONG)
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_a_clock_that_jumps_ends_nothing(seconds: int, tmp_path: Path) -> None:
    """Neither a lease, nor a beat, nor the time for which the identity of a pod that ended is kept."""
    rng, clock = random.Random(2), Clock(tmp_path)
    async with MeshBed(tmp_path, clock=clock, apiserver={"tick": 0.2}) as bed:
        bed.run_pod("p1", "10.1.0.11")
        await bed.until_true()
        bed.end_pod("p1")
        await bed.until_true()
        beat = await bed.beat()
        clock.jump(seconds)
        bed.change(rng)
        await bed.until_true()
        await bed.kill("mirror")
        await bed.start("mirror")
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()
        bed.withdraw("always")  # what goes is told with a beat
        await bed.until_true()
        assert abs(await bed.beat() - beat - seconds) < 600
