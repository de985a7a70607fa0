"""etcd keys as a target of the reconciler: batched transactions, each key under a lease that this process keeps."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from clustermesh.apiserver.stamps import Stamps
from clustermesh.errors import ApplyError, ClusterMeshError
from clustermesh.pace import Load, Pace
from clustermesh.store.client import Delete, EtcdClient, LeaseLost, Op, Put
from clustermesh.store.lease import LeaseKeeper
from clustermesh.store.operations import KeyValue, batches
from clustermesh.wire import keys

WRITES: Final = Load(at_once=4, per_second=5000)
"""Transactions. While etcd is at work on some, the next is put together."""


class Held(Struct, frozen=True, gc=False):
    """What a key holds, and whether it hangs on a lease that this process keeps alive: only then will it last."""

    value: bytes
    kept: bool


class KeysTarget:
    """The keys of `places`: those under it where a place ends in "/", else that one key. `but` are
    places in them that are another's.

    `stamps`, where given, are written in the transactions of the keys they are of. `written` holds the revision at
    which a key was last written by us, for whoever hears of it by a watch. All that share a `pace` keep it together.
    """

    def __init__(
        self,
        client: EtcdClient,
        keeper: LeaseKeeper,
        places: Sequence[bytes],
        stamps: Stamps | None = None,
        but: tuple[bytes, ...] = (),
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace(WRITES)
        self.client, self.keeper, self._stamps = client, keeper, stamps
        self._not_under, self._not = tuple(p for p in but if p.endswith(b"/")), frozenset(but)
        self.prefixes = tuple(place for place in places if place.endswith(b"/"))
        self.keys = tuple(place for place in places if not place.endswith(b"/"))
        self.written: dict[bytes, int] = {}

    def held(self, kv: KeyValue) -> Held:
        return Held(kv.value, self.keeper.claim(kv.key, kv.lease))

    def covers(self, key: bytes) -> bool:
        """Whether `key` is one of these, under a prefix."""
        return key.startswith(self.prefixes) and not key.startswith(self._not_under) and key not in self._not

    async def dump(self) -> Mapping[bytes, Held]:
        found = [kv for prefix in self.prefixes for kv in (await self.client.range(prefix)).kvs if self.covers(kv.key)]
        found += [kv for key in self.keys if (kv := await self.client.get(key)) is not None]
        return {kv.key: self.held(kv) for kv in found}

    async def upsert(self, entries: Mapping[bytes, Held]) -> None:
        """Write `entries`; ApplyError where some were not written, Unavailable or Refused where none was."""
        await self._write([Put(key, held.value, await self.keeper.lease_for(key)) for key, held in entries.items()])

    async def delete(self, gone: Collection[bytes]) -> None:
        await self._write(map(Delete, gone))
        for key in gone:
            self.keeper.release(key)

    async def _write(self, ops: Iterable[Op]) -> None:
        """Write batch by batch, a few at once. The first failure ends it: what etcd refuses now it will refuse again.

        No key is in two of them, so their order means nothing.
        """
        waiting = deque(batches(ops))
        errors: list[ClusterMeshError] = []
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._pace.load.at_once, len(waiting)) - 1):
                tasks.create_task(self._work_off(waiting, errors))
            await self._work_off(waiting, errors)
        if errors:
            raise _not_written(waiting, errors[0]) from errors[0]

    async def _work_off(self, waiting: deque[list[Op]], errors: list[ClusterMeshError]) -> None:
        """What fails is `waiting` again, and its error among `errors`."""
        while waiting and not errors:
            batch = waiting.popleft()
            try:
                async with self._pace:
                    revision = await self.client.transact([self._with_stamps(batch)])
            except ClusterMeshError as e:
                waiting.append(batch)
                errors.append(e)
                if isinstance(e, LeaseLost):
                    self.keeper.check()
                return
            self.written.update((op.key, revision) for op in batch)
            if self._stamps is not None:
                self._stamps.written(batch)

    def _with_stamps(self, ops: Sequence[Op]) -> Sequence[Op]:
        value = None if self._stamps is None else self._stamps.of(ops)
        return ops if value is None else [*ops, Put(keys.CHANGED_SERVICES, value)]


def _not_written(waiting: Iterable[Iterable[Op]], error: ClusterMeshError) -> ApplyError:
    return ApplyError({op.key: str(error) for batch in waiting for op in batch})
