"""Maps whose keys and values the kernel wants described: it makes storage that goes with a socket no other way.

The description is the smallest there is: a number, and an array of numbers as long as the value
(Documentation/bpf/btf.rst).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from agent.bpf.syscalls import Command, MapType, buffer_of, call

_MAGIC: Final = 0xEB9F
_INT: Final = struct.pack("=IIII", 1, 1 << 24, 4, 32)  # type 1: its name is at 1, it has 4 bytes and 32 bits
_ARRAY: Final = struct.Struct("=6I")
_NAMES: Final = b"\0u32\0"


def map_create_described(kind: MapType, value_size: int, max_entries: int, flags: int) -> int:
    """A map from an int to so many bytes, a multiple of 4. OSError."""
    described = _load(_INT + _ARRAY.pack(0, 3 << 24, 0, 1, 1, value_size // 4))
    try:
        content = struct.pack("=5I28xIII", kind, 4, value_size, max_entries, flags, described, 1, 2)
        return call(Command.MAP_CREATE, content)
    finally:
        os.close(described)


def _load(types: bytes) -> int:
    head = struct.pack("=HBBIIIII", _MAGIC, 1, 0, 24, 0, len(types), len(types), len(_NAMES))
    data = buffer_of(head + types + _NAMES)
    return call(Command.BTF_LOAD, struct.pack("=QQI", ctypes.addressof(data), 0, len(data)))
