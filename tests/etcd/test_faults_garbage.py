"""A peer that writes garbage: refused one by one, told, and everything else, its own good entries too, goes on."""

from __future__ import annotations

import random
from pathlib import Path

from garbage import write_garbage
from mesh_bed import MeshBed
from neighbour import neighbour_of

from clustermesh.wire import keys


async def test_ten_thousand_garbage_values_hurt_nobody(tmp_path: Path) -> None:
    rng = random.Random(7)
    async with MeshBed(tmp_path) as bed, neighbour_of(bed) as gamma:
        await write_garbage(gamma.peer, rng)
        bed.change(rng)
        await gamma.change(rng)
        await bed.until_true()
        bed.check_heard()
        await gamma.until_known(bed)
        assert sum(bed.readers["near"].state.refusals("gamma").counts.values()) > 0
        copies = {kv.key for kv in (await bed.beta.range(keys.CACHE)).kvs if b"gamma" in kv.key}
        assert len(copies) < 10
