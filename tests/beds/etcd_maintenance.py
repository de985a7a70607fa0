"""What etcdctl does by hand: defragment, take an alarm back, let another member lead, delete whatever there is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from clustermesh.errors import ClusterMeshError
from clustermesh.store import endpoint, methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.channel import Channel
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.operations import prefix_end

_PATIENCE = 60.0


async def make_room(etcd: LocalEtcd) -> None:
    """Defragment it, and take its alarm for want of space back: AlarmRequest{DEACTIVATE, it, NOSPACE}."""
    member = (await _status(etcd)).header.member_id
    await _ask(etcd, "Defragment", b"")
    await _ask(etcd, "Alarm", b"\x08\x02\x10" + _varint(member) + b"\x18\x01")


async def delete_prefix(client: EtcdClient, prefix: bytes) -> int:
    """Delete every key under `prefix` at once; returns how many there were."""
    request = pb.DeleteRangeRequest(key=prefix, range_end=prefix_end(prefix))
    return int((await client.call(methods.DELETE_RANGE, request)).deleted)


async def find_leader(members: Sequence[LocalEtcd]) -> LocalEtcd:
    """Who leads, as one of them says that leads."""
    while True:
        for member in members:
            try:
                status = await _status(member)
            except ClusterMeshError:
                continue
            if status.leader == status.header.member_id:
                return member
        await asyncio.sleep(0.02)


async def move_leader(members: Sequence[LocalEtcd], to: LocalEtcd) -> None:
    """MoveLeaderRequest{targetID}. Nothing where `to` leads already."""
    leader = await find_leader(members)
    if leader is not to:
        await _ask(leader, "MoveLeader", b"\x08" + _varint((await _status(to)).header.member_id))


async def _status(etcd: LocalEtcd) -> pb.StatusResponse:
    async with EtcdClient(etcd.endpoints, etcd.client_tls, timeout=2.0) as client:
        return await client.call(methods.STATUS, pb.StatusRequest())


async def _ask(etcd: LocalEtcd, name: str, request: bytes) -> None:
    where = endpoint.parse(etcd.endpoints[0])
    channel = Channel(where, where.host, etcd.client_tls)
    try:
        await channel.unary(f"/etcdserverpb.Maintenance/{name}", request, _PATIENCE, ())
    finally:
        await channel.close()


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
