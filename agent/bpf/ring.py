"""A ring buffer of the kernel, read in place (linux/bpf.h; kernel/bpf/ringbuf.c has the layout).

Its first page holds the reader's position, the second the writers', and then the records stand twice, one copy behind
the other, so that none is ever cut in two. There is one reader at a time, or records are lost to either.
"""

from __future__ import annotations

import mmap
from struct import Struct
from types import TracebackType
from typing import Final, Self

_BUSY: Final = 1 << 31  # being written
_DISCARDED: Final = 1 << 30
_HEAD: Final = Struct("=I4x")


class Ring:
    """The ring buffer behind `fd`, of `size` bytes, with records of `record_size` bytes; others are passed over.
    A context manager."""

    def __init__(self, fd: int, size: int, record_size: int) -> None:
        page = mmap.PAGESIZE
        self._size, self._record_size = size, record_size
        self._each = Struct(f"=I4x{record_size}s{-record_size % 8}x")
        self._consumer = mmap.mmap(fd, page, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page + 2 * size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=page)
        self._read = memoryview(self._consumer).cast("Q")
        self._written = memoryview(self._producer).cast("Q")
        self._data = memoryview(self._producer)[page:]

    def skip(self) -> None:
        """Leave out all that is there."""
        self._read[0] = self._written[0]

    def take(self, most: int) -> list[bytes]:
        """The next records in their order, not many more than `most`."""
        at, end, found = self._read[0], self._written[0], list[bytes]()
        while at < end and len(found) < most:
            start = at % self._size
            (head,) = _HEAD.unpack_from(self._data, start)
            if head & _BUSY:
                break
            if head != self._record_size:
                at += _HEAD.size + -(-(head & ~_DISCARDED) // 8) * 8
                continue
            count = min((end - at) // self._each.size, most)
            for head, record in self._each.iter_unpack(self._data[start : start + count * self._each.size]):
                if head != self._record_size:
                    break
                found.append(record)
                at += self._each.size
        self._read[0] = at
        return found

    def close(self) -> None:
        for view in (self._read, self._written, self._data):
            view.release()
        self._consumer.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
