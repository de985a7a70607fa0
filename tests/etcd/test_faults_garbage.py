"""A peer that writes garbage: refused one by one, told, and everything else, its own good entries too, goes on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mesh_bed import MeshBed
from mirror_bed import beating

from clustermesh.store.client import Put
from clustermesh.wire import keys

PLACES = (
    "cilium/state/services/v1/gamma/shop/g{}",
    "cilium/state/nodes/v1/gamma/g{}",
    "cilium/state/ip/v1/default/10.3.9.{}",
    "cilium/state/identities/v1/id/{}",
    "cilium/state/serviceexports/v1/gamma/shop/g{}",
    "cilium/state/endpointslices/v1/gamma/shop/g{}",
)
LARGE = 1_500_000
WORDS = ("cluster", "name", "namespace", "backends", "frontends", "IPAddresses", "ClusterID", "IP", "ID", "labels")


STALE = json.dumps({"cluster": "alpha", "name": "always", "namespace": "shop", "backends": {"10.1.0.250": {}}}).encode()
WORDLESS = (b"", b"null", b"0", b'""', b"[]", b"{}", b"NaN", b"1e999", b"\xff\xfe", b"true")


def garbage(rng: random.Random) -> bytes:
    """Random bytes, deep JSON, wrong types, numbers beyond all bounds, texts that are none, and what is alpha's."""
    depth = rng.choice([10, 1_000, 50_000])
    kinds = (
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: rng.choice([b"[" * depth, b'{"backends":' * depth, b"[" * depth + b"]" * depth]),
        lambda: json.dumps({word: wrong(rng) for word in rng.sample(WORDS, 4)}).encode(),
        lambda: b'{"ClusterID": %s, "ID": -1, "IP": "\\ud800"}' % (b"9" * rng.randrange(1, 5000)),
        lambda: rng.choice(WORDLESS),
        lambda: STALE[: rng.randrange(5, 200)],
        lambda: json.dumps([wrong(rng) for _ in range(5)]).encode(),
    )
    return rng.choice(kinds)()


def wrong(rng: random.Random) -> Any:
    return rng.choice([None, True, -1, 1 << 70, 1.5, "", "x" * 300, [], {}, [[None]], {"": {"": []}}, {"10.1.0.1": 7}])


async def test_ten_thousand_garbage_values_hurt_nobody(tmp_path: Path) -> None:
    rng = random.Random(7)
    async with MeshBed(tmp_path) as bed:
        gamma = await bed.another("gamma", 3)
        await gamma.publish()
        async with beating(gamma):
            await bed.until_copied_of(gamma)
            names = (rng.choice(PLACES).format(rng.randrange(100_000)).encode() for _ in range(10_000))
            await gamma.client.transact([Put(name, garbage(rng)) for name in names])
            for number in range(20):
                name = rng.choice(PLACES).format(f"{number}-large").encode()
                await gamma.client.put(name, (rng.choice([b"[", b'{"a":', b"\0", b'"']) * LARGE)[:LARGE])
            await gamma.client.put(b"cilium/state/services/v1/gamma/shop/\xff\xfe", b"{}")
            bed.change(rng)
            await gamma.put_service("last", "10.3.1.5")
            await bed.until_true()
            bed.check_heard()
            await bed.until(lambda: ("shop", "last") in bed.readers["near"].view("gamma").services)
            assert set(bed.readers["near"].view("gamma").services) == {("shop", "web"), ("shop", "last")}
            assert bed.session("near", "gamma").state.name == "FRESH"
            assert sum(bed.readers["near"].state.refusals("gamma").counts.values()) > 0
            copies = {kv.key for kv in (await bed.beta.range(keys.CACHE)).kvs if b"gamma" in kv.key}
            assert gamma.cached(gamma.service_key("last")) in copies
            assert len(copies) < 10
