"""Faults at random on a real bed, one in the other, for as long as asked: the half of `make soak` that is no property.

    SOAK_SECONDS=3600 make soak ARGS=faults
    SOAK_SEED=4711 make soak ARGS=faults          what a seed draws, once

Every bed says its seed and what it is made for, every round its faults. A round ends in the truth, and nothing was told
to be gone that was not; where it does not, the soak ends, says what was known instead, and leaves the logs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("beds")))

from clock import Clock
from kube_bed import MISSING
from mesh_bed import MeshBed
from mesh_faults import FAULTS, OF_TRUST, Fault, draw
from mesh_sources import Api
from more_faults import OF_MEMBERS, OF_QUOTA, QUOTA_FLAG, of_api, of_disks, of_neighbour
from neighbour import Neighbour, neighbour_of
from small_disk import small_disk

_ROUNDS = 12  # of one bed
_FLAGS = ([], ["--initial-cluster-token=the-same"])  # of the second no emptied etcd looks like another cluster
_Made = tuple[MeshBed, Mapping[str, Fault]]


@asynccontextmanager
async def _plain(folder: Path, flags: list[str]) -> AsyncIterator[_Made]:
    async with MeshBed(folder, flags=flags, clock=Clock(folder)) as bed:
        yield bed, {}


@asynccontextmanager
async def _members(folder: Path, flags: list[str]) -> AsyncIterator[_Made]:
    async with MeshBed(folder, flags=flags, clock=Clock(folder), members=3) as bed:
        yield bed, OF_MEMBERS


@asynccontextmanager
async def _quota(folder: Path, flags: list[str]) -> AsyncIterator[_Made]:
    async with MeshBed(folder, flags=[*flags, QUOTA_FLAG], clock=Clock(folder)) as bed:
        yield bed, OF_QUOTA


@asynccontextmanager
async def _disks(folder: Path, flags: list[str]) -> AsyncIterator[_Made]:
    with small_disk(folder / "peers-disk") as peers, small_disk(folder / "own-disk") as own:
        places = {"peers": peers.place, "own": own.place}
        async with MeshBed(folder, flags=flags, clock=Clock(folder), disks=places) as bed:
            yield bed, of_disks({"peers": peers, "own": own})


@asynccontextmanager
async def _kubernetes(folder: Path, flags: list[str]) -> AsyncIterator[_Made]:
    async with (
        Api(folder / "kube") as api,
        MeshBed(folder, flags=flags, clock=Clock(folder), source=api) as bed,
    ):
        yield bed, of_api(api)


_BEDS: Mapping[str, Callable[[Path, list[str]], AbstractAsyncContextManager[_Made]]] = {
    "one etcd": _plain,
    "three members": _members,
    "a quota": _quota,
    **({} if os.geteuid() else {"small disks": _disks}),
    **({} if MISSING else {"a Kubernetes API": _kubernetes}),
}


def soak(end: float) -> int:
    """Exit code 0 when every round until `end` was well; at least one bed is made."""
    given = os.environ.get("SOAK_SEED")
    rounds = 0
    while True:
        seed = int(given) if given else random.SystemRandom().randrange(1 << 32)
        rng = random.Random(seed)
        print(f"bed with seed {seed}:", end=" ", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="clustermesh-soak-"))
        try:
            rounds += asyncio.run(_bed(rng, folder, end))
        except Exception as e:  # whatever it is, it is what the soak was for
            traceback.print_exc()
            print(f"failed: {e!r}\nagain: SOAK_SEED={seed} make soak ARGS=faults; logs in {folder}", file=sys.stderr)
            return 1
        shutil.rmtree(folder)
        if given or time.time() > end:
            print(f"{rounds} rounds of faults ended in the truth")
            return 0


async def _bed(rng: random.Random, folder: Path, end: float) -> int:
    kind = rng.choice(list(_BEDS))
    print(kind, flush=True)
    logging.basicConfig(filename=folder / "readers.log", force=True, format="%(asctime)s %(levelname)s %(message)s")
    async with AsyncExitStack() as stack:
        bed, more = await stack.enter_async_context(_BEDS[kind](folder, rng.choice(_FLAGS)))
        neighbour = await stack.enter_async_context(neighbour_of(bed))
        faults = {**FAULTS, **OF_TRUST, **of_neighbour(neighbour)}
        for number in range(_ROUNDS):
            if time.time() > end:
                return number
            await _round(bed, rng, draw(rng, faults, more), neighbour)
    return _ROUNDS


async def _round(bed: MeshBed, rng: random.Random, faults: Mapping[str, Fault], neighbour: Neighbour) -> None:
    began = time.monotonic()
    print(f"  {', '.join(faults)}", end=" ", flush=True)
    async with AsyncExitStack() as stack:
        for fault in faults.values():
            bed.change(rng, rng.randrange(6))
            await asyncio.sleep(rng.choice([0.0, 0.3]))
            await stack.enter_async_context(fault(bed, rng))
        bed.change(rng)
        await neighbour.change(rng)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
    bed.change(rng)
    await bed.until_true()
    await neighbour.until_known(bed)
    if any(fault.deletes for fault in faults.values()):
        await bed.listen()
    else:
        bed.check_heard()
    print(f"({time.monotonic() - began:.1f} s)", flush=True)
