"""What etcd has under some prefixes, in few bytes: how many keys there are, and when those of late were written.

etcd goes over all keys for that, some 2 us each, and sends back next to nothing. It is one request for all prefixes,
which any member may answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import Compacted
from clustermesh.store.operations import Digest, DigestOf, prefix_end


async def read_digests(client: EtcdClient, wanted: Sequence[DigestOf]) -> list[Digest]:
    """Those that are `wanted`, in order; as of now where what they are wanted as of is compacted.

    Raises ClusterMeshError.
    """
    try:
        return await _read(client, wanted)
    except Compacted:
        return await _read(client, [replace(each, revision=0) for each in wanted])


async def _read(client: EtcdClient, wanted: Sequence[DigestOf]) -> list[Digest]:
    revision, parts = await client.ranges([_range(each) for each in wanted])
    return [
        Digest(each.revision or revision, part.count, {kv.key: kv.mod_revision for kv in part.kvs})
        for each, part in zip(wanted, parts, strict=True)
    ]


def _range(wanted: DigestOf) -> Any:
    return pb.RangeRequest(
        key=wanted.prefix,
        range_end=prefix_end(wanted.prefix),
        revision=wanted.revision,
        min_mod_revision=wanted.since + 1,
        limit=wanted.most,
        keys_only=True,
        serializable=True,
    )
