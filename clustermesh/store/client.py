"""An etcd v3 client for one cluster: read, write, compare-and-swap, leases. Watching is in `follow`.

Every call makes one attempt, bounded by `timeout` (more only where etcd says that it did nothing), and raises a
ClusterMeshError: Unavailable (also when the outcome of a write is unknown), Refused, or one of `faults`. The next call
uses a new connection where the last one was at fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self

from msgspec import Struct

from clustermesh.errors import Unavailable
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.connection import Dialer
from clustermesh.store.faults import (
    AuthChanged,
    ClusterIdChanged,
    Compacted,
    Fenced,
    LeaseLost,
    Oversized,
    Replaced,
    TokenEnded,
    TooLarge,
)
from clustermesh.store.login import Login
from clustermesh.store.methods import Method
from clustermesh.store.operations import KEY_COST, Delete, Fence, KeyValue, Listing, Op, Put, batches, prefix_end
from clustermesh.store.silence import Silence
from clustermesh.store.stream import Stream
from clustermesh.store.tls import Tls

__all__ = [
    "ClusterIdChanged",
    "Compacted",
    "Delete",
    "EtcdClient",
    "Fence",
    "Fenced",
    "KeyValue",
    "LeaseLost",
    "Listing",
    "Op",
    "Oversized",
    "Put",
    "Replaced",
    "Status",
    "Tls",
]

PAGE: Final = 400  # keys of a list that is taken in while it comes: some 3 ms of work, and not much to hold
_PAGE_PATIENCE: Final = 4  # a page is much more to send than a key: so many times the timeout
_AT_ONCE: Final = 64  # leases renewed before the first answer is waited for
_FENCED: Final = "another process writes here, or is about to: this one does not"
_AUTH_PAUSES: Final = (0.01, 0.05, 0.2)  # seconds before a call is made again: users changed, or a token ended


class Status(Struct, frozen=True):
    """What an etcd member says of itself. `leader` is False where its cluster has none; sizes in bytes."""

    version: str
    member_id: int
    revision: int
    leader: bool
    db_size: int
    errors: tuple[str, ...]


class EtcdClient:
    """Connects at the first call. `timeout` in seconds bounds each; `aliases` maps a host to the address to dial.

    `login` is who we are where no certificate says so. Where `fence` is set, every write of a key is one transaction
    with it: Fenced where it does not hold.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: Tls | None = None,
        *,
        timeout: float = 5.0,
        aliases: Mapping[str, Sequence[str]] | None = None,
        login: Login | None = None,
    ) -> None:
        self.timeout = timeout
        self.fence: Fence | None = None
        self._dialer = Dialer(endpoints, tls, aliases or {}, timeout, login)

    @property
    def revision(self) -> int:
        """At which etcd was, as its last answer to anything says; 0 before there is one."""
        return self._dialer.revision

    @property
    def cluster_id(self) -> int:
        """Of the etcd cluster that answers; 0 before one does."""
        return self._dialer.cluster_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._dialer.close()

    async def call(self, method: Method, request: Any, *, patience: float = 1) -> Any:
        """One call of etcd's API; `patience` times the timeout bounds it."""
        for pause in _AUTH_PAUSES:
            try:
                return await self._dialer.unary(method, request, self.timeout * patience)
            except (AuthChanged, TokenEnded):
                await asyncio.sleep(pause)
        return await self._dialer.unary(method, request, self.timeout * patience)

    def stream(self, method: Method) -> AbstractAsyncContextManager[Stream]:
        """One streaming call of etcd's API, ended when the block is left."""
        return self._dialer.stream(method)

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """The value of `key` now, or as of `revision` (Compacted, or Replaced where that revision is yet to come)."""
        response = await self.call(methods.RANGE, pb.RangeRequest(key=key, revision=revision))
        return next(_key_values(response.kvs), None)

    async def created(self, keys: Iterable[bytes]) -> tuple[int, dict[bytes, int]]:
        """Those of `keys` that are there, each with the revision since which it is, and the revision of that."""
        revision, parts = await self.ranges([pb.RangeRequest(key=key, keys_only=True) for key in keys])
        return revision, {kv.key: kv.create_revision for part in parts for kv in part.kvs}

    async def ranges(self, wanted: Sequence[Any]) -> tuple[int, list[Any]]:
        """The answers to some RangeRequests, all in one transaction, and its revision."""
        reads = [pb.RequestOp(request_range=each) for each in wanted]
        answer = await self.call(methods.TXN, pb.TxnRequest(success=reads))
        if len(answer.responses) != len(reads):
            raise Unavailable(f"etcd was asked {len(reads)} questions and {len(answer.responses)} answers came")
        return answer.header.revision, [each.response_range for each in answer.responses]

    async def range(self, prefix: bytes, *, page: int = 1000, most_bytes: int | None = None) -> Listing:
        """Every key under `prefix` (b"": all) at one revision.

        Oversized where they are more than `most_bytes`, with KEY_COST for each.
        """
        kvs: list[KeyValue] = []
        async for part, more in self.pages(prefix, page=page, most_bytes=most_bytes):
            kvs.extend(part.kvs)
            if not more:
                return Listing(part.revision, kvs, part.cluster_id)
        raise AssertionError("a list has a last page")

    async def count(self, prefix: bytes) -> int:
        """How many keys there are under `prefix` (b"": all)."""
        request = pb.RangeRequest(key=prefix or b"\0", range_end=prefix_end(prefix), count_only=True)
        return int((await self.call(methods.RANGE, request)).count)

    async def keys(self, prefix: bytes) -> list[bytes]:
        """Those there are under `prefix` (b"": all): few enough for one answer."""
        request = pb.RangeRequest(key=prefix or b"\0", range_end=prefix_end(prefix), keys_only=True)
        return [kv.key for kv in (await self.call(methods.RANGE, request)).kvs]

    async def pages(
        self, prefix: bytes, *, page: int = PAGE, most_bytes: int | None = None
    ) -> AsyncGenerator[tuple[Listing, bool], None]:
        """As `range`, `page` keys at a time, fewer for as long as they are large; and whether more follows."""
        key, end = prefix or b"\0", prefix_end(prefix)
        revision = size = 0
        more, most = True, page
        while more:
            request = pb.RangeRequest(key=key, range_end=end, limit=page, revision=revision)
            try:
                response = await self.call(methods.RANGE, request, patience=_PAGE_PATIENCE)
            except TooLarge:
                if page == 1:
                    raise
                page = max(1, page // 4)
                continue
            revision, more = revision or response.header.revision, response.more
            kvs = list(_key_values(response.kvs))
            size += sum(KEY_COST + len(kv.key) + len(kv.value) for kv in kvs)
            if most_bytes is not None and size > most_bytes:
                raise Oversized(f"the list under {prefix.decode()} has more than {most_bytes} bytes")
            if more:
                key = _next_key(key, kvs)
            yield Listing(revision, kvs, response.header.cluster_id), more
            page = min(2 * page, most)

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        """Write one key; returns the revision it was written at."""
        if self.fence is not None:
            return await self.transact([Put(key, value, lease)])
        response = await self.call(methods.PUT, pb.PutRequest(key=key, value=value, lease=lease))
        return int(response.header.revision)

    async def delete(self, key: bytes) -> int:
        """Delete one key, absent or not; returns the store's revision."""
        if self.fence is not None:
            return await self.transact([Delete(key)])
        response = await self.call(methods.DELETE_RANGE, pb.DeleteRangeRequest(key=key))
        return int(response.header.revision)

    async def transact(self, ops: Iterable[Op | Sequence[Op]]) -> int:
        """Write `ops` in order; returns the revision of the last transaction, 0 for no ops.

        Up to 100 ops go into one transaction; what is given as one sequence always does. After an error the
        transactions before the failed one hold: writing all of it again is right.
        """
        revision = 0
        for batch in batches(ops):
            response = await self._write([], map(_request_op, batch))
            if not response.succeeded:
                raise Fenced(_FENCED)
            revision = response.header.revision
        return revision

    async def swap(self, key: bytes, expected_mod_revision: int, value: bytes, lease: int = 0) -> bool:
        """Write `key` if it was last written at `expected_mod_revision` (0: if it is absent); True where that was done.

        The fence counts as one condition more.

        After Unavailable it may or may not have been done: read before trying again.
        """
        unchanged = pb.Compare(
            target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=key, mod_revision=expected_mod_revision
        )
        write = _request_op(Put(key, value, lease))
        return bool((await self._write([unchanged], [write])).succeeded)

    async def check_fence(self) -> None:
        """Fenced where the fence does not hold now: asked right before what no transaction can do."""
        if self.fence is not None and not (await self._write([], [])).succeeded:
            raise Fenced(_FENCED)

    async def _write(self, conditions: Sequence[Any], operations: Iterable[Any]) -> Any:
        """One transaction: etcd's response."""
        compare = list(conditions)
        if self.fence is not None:
            key, made = self.fence.key, self.fence.create_revision
            if not made:
                raise Fenced(_FENCED)
            equal, create = pb.Compare.EQUAL, pb.Compare.CREATE
            compare.append(pb.Compare(target=create, result=equal, key=key, create_revision=made))
        return await self.call(methods.TXN, pb.TxnRequest(compare=compare, success=operations))

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds (etcd lengthens very short ones)."""
        return int((await self.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl))).ID)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; LeaseLost where there is none."""
        await self.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))

    async def keep_alive(self, leases: Sequence[int]) -> dict[int, int]:
        """Renew each lease; the seconds each has left, 0 for a lease that is gone."""
        left: dict[int, int] = {}
        if not leases:
            return left
        async with self.stream(methods.LEASE_KEEP_ALIVE) as stream:
            for at in range(0, len(leases), _AT_ONCE):
                asked = leases[at : at + _AT_ONCE]
                for lease in asked:
                    await stream.write(pb.LeaseKeepAliveRequest(ID=lease), self.timeout)
                for _ in asked:
                    response = await stream.read(Silence(self.timeout))
                    left[response.ID] = max(0, response.TTL)
        return left

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""
        await self.call(methods.COMPACT, pb.CompactionRequest(revision=revision, physical=True))

    async def status(self) -> Status:
        """How the member at the other end is; needs no permission."""
        response = await self.call(methods.STATUS, pb.StatusRequest())
        header, errors = response.header, tuple(response.errors)
        return Status(
            response.version, header.member_id, header.revision, bool(response.leader), response.dbSize, errors
        )


def key_value(kv: Any) -> KeyValue:
    """etcd's message as ours."""
    return KeyValue(kv.key, kv.value, kv.mod_revision, kv.lease, kv.version)


def _key_values(kvs: Any) -> Iterator[KeyValue]:
    return map(key_value, kvs)


def _next_key(key: bytes, kvs: Sequence[KeyValue]) -> bytes:
    """Where the page after `kvs` begins; a server that promises more without going on would never let us end."""
    following = kvs[-1].key + b"\0" if kvs else b""
    if following <= key:
        raise Unavailable("etcd promised more keys and sent none")
    return following


def _request_op(op: Op) -> Any:
    if isinstance(op, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=op.key, value=op.value, lease=op.lease))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=op.key))
