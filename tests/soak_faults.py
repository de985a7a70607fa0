"""Faults at random on a real bed, one in the other, for as long as asked: the half of `make soak` that is no property.

    SOAK_SECONDS=3600 make soak ARGS=faults
    SOAK_SEED=4711 make soak ARGS=faults          what a seed draws, once

Every bed says its seed, every round its faults. A round ends in the truth, and nothing was told to be gone that was
not; where it does not, the soak ends, says what was known instead, and leaves the logs.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("beds")))

from clock import Clock
from mesh_bed import MeshBed
from mesh_faults import draw

_ROUNDS = 12  # of one bed
_FLAGS = ([], ["--initial-cluster-token=the-same"])  # of the second no emptied etcd looks like another cluster


def soak(end: float) -> int:
    """Exit code 0 when every round until `end` was well; at least one bed is made."""
    given = os.environ.get("SOAK_SEED")
    rounds = 0
    while True:
        seed = int(given) if given else random.SystemRandom().randrange(1 << 32)
        print(f"bed with seed {seed}", flush=True)
        folder = Path(tempfile.mkdtemp(prefix="clustermesh-soak-"))
        try:
            rounds += asyncio.run(_bed(seed, folder, end))
        except Exception as e:  # whatever it is, it is what the soak was for
            print(f"failed: {e!r}\nagain: SOAK_SEED={seed} make soak ARGS=faults; logs in {folder}", file=sys.stderr)
            return 1
        shutil.rmtree(folder)
        if given or time.time() > end:
            print(f"{rounds} rounds of faults ended in the truth")
            return 0


async def _bed(seed: int, folder: Path, end: float) -> int:
    rng = random.Random(seed)
    async with MeshBed(folder, flags=rng.choice(_FLAGS), clock=Clock(folder)) as bed:
        for number in range(_ROUNDS):
            if time.time() > end:
                return number
            await _round(bed, rng)
    return _ROUNDS


async def _round(bed: MeshBed, rng: random.Random) -> None:
    faults = draw(rng)
    began = time.monotonic()
    print(f"  {', '.join(faults)}", end=" ", flush=True)
    async with AsyncExitStack() as stack:
        for fault in faults.values():
            bed.change(rng, rng.randrange(6))
            await asyncio.sleep(rng.choice([0.0, 0.3]))
            await stack.enter_async_context(fault(bed, rng))
        bed.change(rng)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
    bed.change(rng)
    await bed.until_true()
    print(f"({time.monotonic() - began:.1f} s)", flush=True)
