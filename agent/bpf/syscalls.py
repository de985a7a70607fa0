"""bpf(2) by ctypes: maps, batches, pins, links, programs. Errors are OSError, as the kernel gives them.

Layouts of `union bpf_attr` are those of linux/bpf.h. File descriptors are plain ints, close-on-exec, and belong to the
caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from ctypes import addressof
from enum import IntEnum
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import ClassVar, Final, NamedTuple

_NUMBERS: Final = {
    "x86_64": 321,
    "i686": 357,
    "aarch64": 280,
    "armv7l": 386,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
}
_NUMBER: Final = _NUMBERS.get(os.uname().machine)
ENOTSUPP: Final = 524  # the kernel's own, absent from errno.h: "this kind of map does not do that"

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_ATTR_SIZE: Final = 144
_ELEMENT: Final = Struct("=I4xQQQ")


class Command(IntEnum):
    """enum bpf_cmd, as far as it is used."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ITER_CREATE = 33
    LINK_DETACH = 34


class MapType(IntEnum):
    """enum bpf_map_type, as far as it is used."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27


class ProgramType(IntEnum):
    """enum bpf_prog_type, as far as it is used."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18
    TRACING = 26


class AttachType(IntEnum):
    """enum bpf_attach_type, as far as it is used."""

    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    TRACE_ITER = 28
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC, a map flag
XDP_FLAGS: Final = {1: 1 << 2, 2: 1 << 1}  # XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE
BEFORE: Final = 1 << 3  # BPF_F_BEFORE, a link flag: first in its chain
AFTER_LINK: Final = 1 << 4 | 1 << 5 | 1 << 13  # BPF_F_AFTER | BPF_F_ID | BPF_F_LINK: right after the link of an id


Buffer = ctypes.Array[ctypes.c_char]


class _BatchAttr(ctypes.Structure):
    """The part of `union bpf_attr` that batches have. `count` is what is asked for, then what was done."""

    _fields_: ClassVar = [
        ("start", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("keys", ctypes.c_char_p),  # bytes go as they are: the kernel only reads them, but for a lookup's
        ("values", ctypes.c_char_p),
        ("count", ctypes.c_uint32),
        ("fd", ctypes.c_uint32),
        ("element_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]
    count: int


def call(command: Command, content: bytes) -> int:
    """One bpf(2) call whose attr is not read back."""
    return call_attr(command, attr_of(content))


def attr_of(content: bytes) -> Buffer:
    """A `union bpf_attr` that begins with `content`; what the kernel writes into it can be read from it."""
    return ctypes.create_string_buffer(content, _ATTR_SIZE)


def call_attr(command: Command, attr: Buffer | _BatchAttr) -> int:
    """One bpf(2) call; returns a descriptor or 0."""
    if _NUMBER is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {os.uname().machine} is not known")
    result: int = _LIBC.syscall(_NUMBER, int(command), ctypes.byref(attr), ctypes.sizeof(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, "not supported by this kind of map" if code == ENOTSUPP else os.strerror(code))
    return result


def buffer_of(data: bytes) -> Buffer:
    """`data` at an address the kernel can be given; keep a reference while it is used."""
    return ctypes.create_string_buffer(data, len(data))


def map_create(kind: MapType, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> int:
    return call(Command.MAP_CREATE, Struct("=5I").pack(kind, key_size, value_size, max_entries, flags))


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value at `key`, None where there is none. Per-CPU maps: `value_size` is 8 x possible CPUs."""
    key_buffer, value = buffer_of(key), ctypes.create_string_buffer(value_size)
    try:
        call(Command.MAP_LOOKUP, _ELEMENT.pack(fd, addressof(key_buffer), addressof(value), 0))
    except OSError as e:
        if e.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    key_buffer, value_buffer = buffer_of(key), buffer_of(value)
    call(Command.MAP_UPDATE, _ELEMENT.pack(fd, addressof(key_buffer), addressof(value_buffer), 0))


class Batch(NamedTuple):
    """`done` entries were applied, in order; `error` is the errno that stopped at the next one, 0 for none."""

    done: int
    error: int


class Page(NamedTuple):
    """A part of a map: `size` keys and values, each packed side by side. `error` is ENOENT after the last page, ENOSPC
    where not even one bucket fits, 0 while there is more to come from `cursor`."""

    keys: bytes
    values: bytes
    size: int
    cursor: bytes
    error: int

    def entries(self, sizes: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
        """Key by key with its value; `sizes` are those of both."""
        keys, values = (Struct(f"{size}s").iter_unpack for size in sizes)
        return zip(chain.from_iterable(keys(self.keys)), chain.from_iterable(values(self.values)), strict=True)


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> Batch:
    return _batch(Command.MAP_UPDATE_BATCH, fd, (keys, values), count)


def map_delete_batch(fd: int, keys: bytes, count: int) -> Batch:
    """Stops at the first absent key, with ENOENT."""
    return _batch(Command.MAP_DELETE_BATCH, fd, (keys, b""), count)


def _batch(command: Command, fd: int, data: tuple[bytes, bytes], count: int) -> Batch:
    attr = _BatchAttr(None, None, *data, count, fd)
    try:
        call_attr(command, attr)
    except OSError as e:
        # An error met before the first entry leaves the count as it was given.
        return Batch(0 if attr.count >= count else attr.count, e.errno or errno.EIO)
    return Batch(count, 0)


def map_lookup_batch(fd: int, cursor: bytes, sizes: tuple[int, int], count: int) -> Page:
    """Up to `count` entries after `cursor` (b"" at first); `sizes` are those of a key and a value."""
    key_size, value_size = sizes
    keys, values = ctypes.create_string_buffer(key_size * count), ctypes.create_string_buffer(value_size * count)
    # A cursor is a bucket number or a key, whatever kind of map it is.
    start, end = buffer_of(cursor), ctypes.create_string_buffer(max(key_size, 4))
    places = (addressof(start) if cursor else None, *map(addressof, (end, keys, values)))
    attr = _BatchAttr(*places, count, fd)
    code = 0
    try:
        call_attr(Command.MAP_LOOKUP_BATCH, attr)
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOSPC):
            raise
        code = e.errno
    got = 0 if code == errno.ENOSPC else attr.count
    return Page(keys.raw[: got * key_size], values.raw[: got * value_size], got, end.raw, code)


def object_pin(fd: int, path: Path) -> None:
    name = buffer_of(os.fsencode(path) + b"\0")
    call(Command.OBJ_PIN, Struct("=QII").pack(addressof(name), fd, 0))


def object_get(path: Path) -> int:
    """A new descriptor of what is pinned at `path`; FileNotFoundError where nothing is."""
    name = buffer_of(os.fsencode(path) + b"\0")
    return call(Command.OBJ_GET, Struct("=QII").pack(addressof(name), 0, 0))


def link_create(program: int, target: int, attach_type: AttachType, flags: int = 0, after: int = 0) -> int:
    """Attach to a cgroup (`target` is its descriptor) or a device (`target` is its index). `after` is the link's id
    where `flags` are AFTER_LINK."""
    return call(Command.LINK_CREATE, Struct("=5I").pack(program, target, attach_type, flags, after))


def link_update(link: int, program: int) -> None:
    """Put `program` in the place of the link's program: no packet or socket meets neither."""
    call(Command.LINK_UPDATE, Struct("=4I").pack(link, program, 0, 0))


def link_detach(link: int) -> None:
    """Detach for good, whoever else still holds the link."""
    call(Command.LINK_DETACH, Struct("=I").pack(link))


def iterator_open(program: int) -> int:
    """A file that runs an iterator program over everything while it is read. Sockets are those of the network namespace
    of whoever opens it."""
    link = call(Command.LINK_CREATE, Struct("=4I").pack(program, 0, AttachType.TRACE_ITER, 0))
    try:
        return call(Command.ITER_CREATE, Struct("=II").pack(link, 0))
    finally:
        os.close(link)
