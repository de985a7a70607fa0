"""Whether keys were deleted, or have died with their leases: etcd tells of both in the same way. When a lease was
renewed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from clustermesh.errors import Refused
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import Compacted
from clustermesh.store.operations import Renewals


async def find_lease_ends(client: EtcdClient, deletions: Mapping[int, bytes], living: int) -> frozenset[int]:
    """Those of `deletions`, revisions with one key each that was deleted then, at which a lease may have ended.

    Whose lease lives still, like the one that is known to be `living`, was deleted. What etcd has forgotten may have
    died with its lease: that no evidence is left is none. Raises ClusterMeshError.
    """
    try:
        leases = await _leases_before(client, deletions)
    except Compacted:
        return frozenset(deletions)
    ended = [lease for lease in set(leases.values()) - {0, living} if not await _lives(client, lease)]
    return frozenset(revision for revision, lease in leases.items() if lease in ended)


async def _leases_before(client: EtcdClient, deletions: Mapping[int, bytes]) -> Mapping[int, int]:
    """The lease that each key had, 0 for none."""
    _, parts = await client.ranges(
        [
            pb.RangeRequest(key=key, revision=revision - 1, keys_only=True, serializable=True)
            for revision, key in deletions.items()
        ]
    )
    found = (next(iter(part.kvs), None) for part in parts)
    return {revision: 0 if kv is None else kv.lease for revision, kv in zip(deletions, found, strict=True)}


async def _lives(client: EtcdClient, lease: int) -> bool:
    try:
        return bool((await _ask(client, lease)).TTL > 0)
    except Refused:  # newer etcds: keys hang on it that are none of our business
        return True


async def find_renewals(client: EtcdClient, leases: Collection[int]) -> Renewals:
    """Nothing is known of one that has ended, or that etcd does not tell us of. Raises ClusterMeshError."""
    ages, terms = dict[int, float](), set[int]()
    for lease in leases:
        try:
            answer = await _ask(client, lease)
        except Refused:
            continue
        terms.add(answer.header.raft_term)
        if answer.TTL > 0:
            ages[lease] = max(answer.grantedTTL - answer.TTL, 0)  # etcd rounds what is left down
    return Renewals(ages, terms.pop()) if len(terms) == 1 else Renewals()


async def _ask(client: EtcdClient, lease: int) -> Any:
    return await client.call(methods.LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(ID=lease))
