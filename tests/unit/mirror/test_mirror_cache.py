"""In which order copies are written, where entries and what says that they are complete were lost together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from clustermesh.mesh.authority import Authority
from clustermesh.mirror.cache import PLACES, CacheWriter, make_cache
from clustermesh.mirror.copies import KINDS, Copy, cache_key, canary_key
from clustermesh.mirror.sink import MirrorSink
from clustermesh.model import Cluster, ClusterConfig, Identity
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Deleted, Listed
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.operations import KeyValue, Listing
from clustermesh.wire.kinds import IDENTITIES

ENTRY, CANARY = cache_key("beta", IDENTITIES, 131072), canary_key("beta", IDENTITIES)


class Etcd:
    """Takes every write, in `log`."""

    def __init__(self) -> None:
        self.revision, self.keys, self.log = 1, dict[bytes, KeyValue](), list[bytes]()

    async def grant(self, _ttl: int) -> int:
        return 7

    async def transact(self, groups: list[Any]) -> int:
        self.revision += 1
        for op in groups[0]:
            self.log.append(op.key)
            self.keys.pop(op.key, None)
            if hasattr(op, "value"):
                self.keys[op.key] = KeyValue(op.key, op.value, self.revision, op.lease)
        return self.revision

    async def pages(self, prefix: bytes) -> AsyncIterator[tuple[Listing, bool]]:
        yield Listing(self.revision, [kv for key, kv in self.keys.items() if key.startswith(prefix)]), False


async def test_a_canary_that_is_lost_with_a_copy_is_written_after_it_though_it_was_told_of_alone() -> None:
    etcd = Etcd()
    client = cast(EtcdClient, etcd)
    cache = make_cache("alpha", client, LeaseKeeper(client), LeaseKeeper(client))
    sink = MirrorSink("alpha", lambda kind, key, value: cache[kind].want(key, value))
    sink.state.authorize(Authority.of(Cluster(name="beta", id=2), ()))
    writer = CacheWriter(cache, sink, lambda: b"now", audit_every=1e9)
    for place in PLACES:
        cache.take(place, Listed([], 1))
    cache.lead()
    writer.lead()
    sink.know_own()
    sink.configure("beta", ClusterConfig(id=2, synced_canaries=True))
    sink.put("beta", IDENTITIES, 131072, Copy(Identity(id=131072, labels=()), b"x"), 1)
    for kind in KINDS:
        sink.listed("beta", kind)
    await writer.write()
    assert {ENTRY, CANARY} <= etcd.keys.keys()
    del etcd.keys[ENTRY], etcd.keys[CANARY]
    etcd.log.clear()
    etcd.revision += 1
    cache.take(PLACES[2], Changed([Deleted(CANARY)], etcd.revision))
    await writer.write()
    assert [key for key in etcd.log if key in (ENTRY, CANARY)] == [ENTRY, CANARY]
