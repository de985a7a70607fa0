"""eBPF maps as targets of the reconciler, written and read in batches; keys and values are bytes (agent.bpf.layouts).

The verbs are `async` as the port wants them, but run in place: a batch takes milliseconds, and between two batches the
event loop gets its turn.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import Final, TypeVar

from agent.bpf.programs import map_info
from agent.bpf.syscalls import Batch, Page, map_delete_batch, map_lookup_batch, map_update_batch
from clustermesh.errors import ApplyError, Unavailable

CHUNK: Final = 2048
"""Entries written per turn of the event loop: 2 ms when all is well, 20 ms when the kernel refuses each of them."""

_PAGE: Final = 1024  # entries read per turn
_BYTES: Final = 1 << 18  # of values, per turn
_SHARED: Final = 512  # entries, half of which are worth another thread's waking
_BESIDE: Final = ThreadPoolExecutor(1, "maps")

T = TypeVar("T")


class MapTarget:
    """The array, hash, LRU or LPM map behind `fd`, which stays its owner's and open."""

    at_once: Final = 64  # entries, some 50 us

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.shared_from = _SHARED
        info = map_info(fd)
        self.max_entries = info.max_entries
        self.chunk = max(1, min(CHUNK, _BYTES // info.value_size))
        self.page_size = min(self.chunk, _PAGE, info.max_entries)
        self._sizes = (info.key_size, info.value_size)
        self._lengths = ({info.key_size}, {info.value_size})

    async def dump(self) -> dict[bytes, bytes]:
        """Every entry. One written or deleted meanwhile may or may not be seen; every other is. Unavailable."""
        found: dict[bytes, bytes] = {}
        async for page in self.pages():
            found |= page
            await asyncio.sleep(0)
        return found

    async def pages(self) -> AsyncIterator[dict[bytes, bytes]]:
        """As `dump`, some entries at a time: a few ms each."""
        for page in self.read():
            yield page

    def read(self) -> Iterator[dict[bytes, bytes]]:
        """As `pages`, for whoever takes turns in another way."""
        cursor, chunk, seen = b"", self.page_size, 0
        while True:
            page = self._page(cursor, chunk)
            if page.error == errno.ENOSPC:
                chunk *= 2  # a bucket with more entries than asked for
                continue
            yield dict(page.entries(self._sizes))
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

    async def upsert(self, entries: Mapping[bytes, bytes]) -> None:
        """Write `entries`; ApplyError says which were not written and why, all others are."""
        failed: dict[Hashable, str] = {}
        all_keys, all_values = [*entries], [*entries.values()]
        for at in range(0, len(entries), self.chunk):
            keys, values = all_keys[at : at + self.chunk], all_values[at : at + self.chunk]
            if ({*map(len, keys)}, {*map(len, values)}) == self._lengths:
                self._update(keys, values, failed)
            else:  # the kernel would take the end of what is too long for the beginning of the next
                sound = [pair for pair in zip(keys, values, strict=True) if self._fits(*pair, failed)]
                self._update([key for key, _ in sound], [value for _, value in sound], failed)
            if len(entries) > self.at_once:
                await asyncio.sleep(0)
        _raise_failed(failed)

    def _fits(self, key: bytes, value: bytes, failed: dict[Hashable, str]) -> bool:
        if (len(key), len(value)) != self._sizes:
            failed[key] = f"is not of the size that the map {self.name} has"
        return key not in failed

    def _update(self, keys: Sequence[bytes], values: Sequence[bytes], failed: dict[Hashable, str]) -> None:
        """Many on two CPUs, in no order: the kernel's part is half of the work, and done without the interpreter's
        lock."""
        if len(keys) < self.shared_from or not _has_other_thread():
            self._write(keys, values, failed)
            return
        half = len(keys) // 2
        other = _BESIDE.submit(self._write, keys[half:], values[half:], failed)
        try:
            self._write(keys[:half], values[:half], failed)
        finally:
            other.result()

    def _write(self, keys: Sequence[bytes], values: Sequence[bytes], failed: dict[Hashable, str]) -> None:
        (key_size, value_size), done = self._sizes, 0
        all_keys, all_values = b"".join(keys), b"".join(values)
        while done < len(keys):
            rest = all_keys[done * key_size :], all_values[done * value_size :]
            batch = map_update_batch(self.fd, *rest, len(keys) - done)
            done += batch.done
            if batch.error:
                failed[keys[done]] = self._sentence(batch)
                done += 1

    async def delete(self, keys: Collection[bytes]) -> None:
        """Remove `keys`; absent is success. ApplyError says which are still there and why."""
        failed: dict[Hashable, str] = {}
        for chunk in _chunks(keys, self.chunk):
            self._delete(chunk, failed)
            if len(keys) > self.at_once:
                await asyncio.sleep(0)
        _raise_failed(failed)

    def _delete(self, keys: Sequence[bytes], failed: dict[Hashable, str]) -> None:
        packed, done = b"".join(keys), 0
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


def _has_other_thread() -> bool:
    """What is submitted while no thread can be started waits for a later one, which would write it then: so no part of
    a map is, before there is one."""
    try:
        return _start_other_thread()
    except RuntimeError:
        return False


@cache
def _start_other_thread() -> bool:
    _BESIDE.submit(int)
    return True


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    each = iter(items)
    while chunk := list(islice(each, size)):
        yield chunk


def _raise_failed(failed: Mapping[Hashable, str]) -> None:
    if failed:
        raise ApplyError(failed)
