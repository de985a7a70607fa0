"""eBPF maps as targets of the reconciler, written and read in batches.

The verbs are `async` as the port wants them, but run in place: a batch takes milliseconds, and between two batches the
event loop gets its turn.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import AsyncIterator, Collection, Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, Self, TypeVar

from agent.bpf.layouts import (
    LB_CLUSTERS,
    LB_FULL,
    AddressKey,
    BackendKey,
    BackendValue,
    CidrKey,
    ClustersKey,
    ClustersValue,
    GroupsKey,
    GroupsValue,
    IpcacheValue,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from agent.bpf.loader import Datapath
from agent.bpf.programs import map_info
from agent.bpf.syscalls import Batch, Page, map_delete_batch, map_lookup_batch, map_update_batch
from clustermesh.errors import ApplyError, Unavailable

CHUNK: Final = 1024
"""Entries per turn of the event loop: 2 ms when all is well, 10 ms when the kernel refuses each of them."""
_PAGE: Final = 512  # entries read at once, which takes longer: 4 ms at most


class Packed(Hashable, Protocol):
    """A key or value of a map: see agent.bpf.layouts."""

    def pack(self) -> bytes: ...
    @classmethod
    def unpack(cls, data: bytes) -> Self: ...


K = TypeVar("K", bound=Packed)
V = TypeVar("V", bound=Packed)
T = TypeVar("T")


class MapTarget(Generic[K, V]):
    """The hash, LRU or LPM map behind `fd`, which stays its owner's and open, with keys and values of these types."""

    def __init__(self, name: str, fd: int, key: type[K], value: type[V]) -> None:
        self.name = name
        self.fd = fd
        self._key, self._value = key, value
        info = map_info(fd)
        self.max_entries = info.max_entries
        self.page_size = min(_PAGE, info.max_entries)
        self.chunk = CHUNK
        self._sizes = (info.key_size, info.value_size)

    async def dump(self) -> dict[K, V]:
        """Every entry. One written or deleted meanwhile may or may not be seen; every other is. Unavailable."""
        found: dict[K, V] = {}
        async for page in self.pages():
            found |= page
            await asyncio.sleep(0)
        return found

    async def pages(self) -> AsyncIterator[dict[K, V]]:
        """As `dump`, some entries at a time: a few ms each."""
        cursor, chunk, seen = b"", self.page_size, 0
        while True:
            page = self._page(cursor, chunk)
            if page.error == errno.ENOSPC:
                chunk *= 2  # a bucket with more entries than asked for
                continue
            yield dict(self._entries(page))
            seen += page.size
            if page.error == errno.ENOENT:
                return
            if seen > 4 * self.max_entries:
                # An LPM walk starts over when the key it stands on is deleted by somebody else.
                raise Unavailable(f"the map {self.name} changes faster than it can be read")
            cursor = page.cursor

    def _page(self, cursor: bytes, chunk: int) -> Page:
        try:
            return map_lookup_batch(self.fd, cursor, self._sizes, chunk)
        except OSError as e:
            raise Unavailable(f"cannot read the map {self.name}: {e}") from e

    def _entries(self, page: Page) -> Iterator[tuple[K, V]]:
        keys, values = self._sizes
        for index in range(page.size):
            key = self._key.unpack(page.keys[index * keys : (index + 1) * keys])
            yield key, self._value.unpack(page.values[index * values : (index + 1) * values])

    async def upsert(self, entries: Mapping[K, V]) -> None:
        """Write `entries`; ApplyError says which were not written and why, all others are."""
        failed: dict[Hashable, str] = {}
        for chunk in _chunks(entries.items(), self.chunk):
            try:
                self._update(chunk, failed)
            except (struct.error, OverflowError):
                self._update([entry for entry in chunk if self._fits(*entry, failed)], failed)
            await asyncio.sleep(0)
        _raise_failed(failed)

    def _fits(self, key: K, value: V, failed: dict[Hashable, str]) -> bool:
        try:
            key.pack(), value.pack()
        except (struct.error, OverflowError) as e:
            failed[key] = f"does not fit the map {self.name}: {e}"
        return key not in failed

    def _update(self, entries: Sequence[tuple[K, V]], failed: dict[Hashable, str]) -> None:
        """struct.error or OverflowError, before anything is written, where one of them does not fit."""
        key_size, value_size = self._sizes
        keys, values = b"".join([key.pack() for key, _ in entries]), b"".join([value.pack() for _, value in entries])
        done = 0
        while done < len(entries):
            rest = keys[done * key_size :], values[done * value_size :]
            batch = map_update_batch(self.fd, *rest, len(entries) - done)
            done += batch.done
            if batch.error:
                failed[entries[done][0]] = self._sentence(batch)
                done += 1

    async def delete(self, keys: Collection[K]) -> None:
        """Remove `keys`; absent is success. ApplyError says which are still there and why."""
        failed: dict[Hashable, str] = {}
        for chunk in _chunks(keys, self.chunk):
            self._delete(chunk, failed)
            await asyncio.sleep(0)
        _raise_failed(failed)

    def _delete(self, keys: Sequence[K], failed: dict[Hashable, str]) -> None:
        packed, done = b"".join(key.pack() for key in keys), 0
        while done < len(keys):
            batch = map_delete_batch(self.fd, packed[done * self._sizes[0] :], len(keys) - done)
            done += batch.done
            if batch.error:
                if batch.error != errno.ENOENT:
                    failed[keys[done]] = self._sentence(batch)
                done += 1

    def _sentence(self, batch: Batch) -> str:
        if batch.error == errno.E2BIG:
            return f"the map {self.name} is full: all of its {self.max_entries} entries are taken"
        return f"the map {self.name} does not take it: {os.strerror(batch.error)}"


def _chunks(items: Collection[T], size: int) -> Iterator[list[T]]:
    each = iter(items)
    while chunk := list(islice(each, size)):
        yield chunk


def _raise_failed(failed: Mapping[Hashable, str]) -> None:
    if failed:
        raise ApplyError(failed)


def services(datapath: Datapath) -> MapTarget[ServiceKey, ServiceValue]:
    return MapTarget("lb_services", datapath.maps["lb_services"], ServiceKey, ServiceValue)


def groups(datapath: Datapath) -> MapTarget[GroupsKey, GroupsValue]:
    return MapTarget("lb_groups", datapath.maps["lb_groups"], GroupsKey, GroupsValue)


def slots(datapath: Datapath) -> MapTarget[SlotsKey, SlotsValue]:
    return MapTarget("lb_slots", datapath.maps["lb_slots"], SlotsKey, SlotsValue)


def backends(datapath: Datapath) -> MapTarget[BackendKey, BackendValue]:
    return MapTarget("lb_backends", datapath.maps["lb_backends"], BackendKey, BackendValue)


def clusters(datapath: Datapath) -> MapTarget[ClustersKey, ClustersValue]:
    return MapTarget("lb_clusters", datapath.maps["lb_clusters"], ClustersKey, ClustersValue)


def reverse_sockets(datapath: Datapath) -> MapTarget[ReverseKey, ReverseValue]:
    return MapTarget("lb_reverse_sk", datapath.maps["lb_reverse_sk"], ReverseKey, ReverseValue)


def addresses(datapath: Datapath) -> MapTarget[AddressKey, IpcacheValue]:
    return MapTarget("ipcache", datapath.maps["ipcache"], AddressKey, IpcacheValue)


def cidrs(datapath: Datapath) -> MapTarget[CidrKey, IpcacheValue]:
    return MapTarget("ipcache_cidr", datapath.maps["ipcache_cidr"], CidrKey, IpcacheValue)


async def set_factors(datapath: Datapath, factors: Mapping[int, float]) -> None:
    """Give each cluster, by its id, this part (0 to 1) of the share its backends have in every service; those not named
    have all of it. One write: a cluster at 0 is out with it, for new connections and datagrams."""
    reduced = [0] * LB_CLUSTERS
    for cluster_id, factor in factors.items():
        reduced[cluster_id] = LB_FULL - round(factor * LB_FULL)
    await clusters(datapath).upsert({ClustersKey(): ClustersValue(tuple(reduced))})
