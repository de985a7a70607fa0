"""What a peer may write that no decoder has seen before."""

from __future__ import annotations

import json
import random
from typing import Any

from mirror_bed import Peer

from clustermesh.store.client import Put

_PLACES = (
    "cilium/state/services/v1/{}/shop/g{}",
    "cilium/state/nodes/v1/{}/g{}",
    "cilium/state/ip/v1/default/10.3.9.{1}",
    "cilium/state/identities/v1/id/{1}",
    "cilium/state/serviceexports/v1/{}/shop/g{}",
    "cilium/state/endpointslices/v1/{}/shop/g{}",
)
_LARGE = 1_500_000
_WORDS = ("cluster", "name", "namespace", "backends", "frontends", "IPAddresses", "ClusterID", "IP", "ID", "labels")
_STALE = json.dumps(
    {"cluster": "alpha", "name": "always", "namespace": "shop", "backends": {"10.1.0.250": {}}}
).encode()
_WORDLESS = (b"", b"null", b"0", b'""', b"[]", b"{}", b"NaN", b"1e999", b"\xff\xfe", b"true")


async def write_garbage(peer: Peer, rng: random.Random, number: int = 10_000) -> None:
    """So many small values, less those drawn for one place, 20 that are large, and one at a place that is no text."""
    names = {_place(peer, rng, str(rng.randrange(100_000))) for _ in range(number)}
    await peer.client.transact([Put(name, _small(rng)) for name in sorted(names)])
    for large in range(20):
        value = (rng.choice([b"[", b'{"a":', b"\0", b'"']) * _LARGE)[:_LARGE]
        await peer.client.put(_place(peer, rng, f"{large}-large"), value)
    await peer.client.put(f"cilium/state/services/v1/{peer.name}/shop/".encode() + b"\xff\xfe", b"{}")


def _place(peer: Peer, rng: random.Random, name: str) -> bytes:
    return rng.choice(_PLACES).format(peer.name, name).encode()


def _small(rng: random.Random) -> bytes:
    """Random bytes, deep JSON, wrong types, numbers beyond all bounds, texts that are none, and what is alpha's."""
    depth = rng.choice([10, 1_000, 50_000])
    kinds = (
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: rng.choice([b"[" * depth, b'{"backends":' * depth, b"[" * depth + b"]" * depth]),
        lambda: json.dumps({word: _wrong(rng) for word in rng.sample(_WORDS, 4)}).encode(),
        lambda: b'{"ClusterID": %s, "ID": -1, "IP": "\\ud800"}' % (b"9" * rng.randrange(1, 5000)),
        lambda: rng.choice(_WORDLESS),
        lambda: _STALE[: rng.randrange(5, 200)],
        lambda: json.dumps([_wrong(rng) for _ in range(5)]).encode(),
    )
    return rng.choice(kinds)()


def _wrong(rng: random.Random) -> Any:
    return rng.choice([None, True, -1, 1 << 70, 1.5, "", "x" * 300, [], {}, [[None]], {"": {"": []}}, {"10.1.0.1": 7}])
