"""Which eBPF programs act on a cgroup, and whether a program still exists: to prove that teardown unloads them.

bpf(2): BPF_PROG_QUERY and BPF_PROG_GET_FD_BY_ID of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path
from typing import Final

_PROG_GET_FD_BY_ID: Final = 13
_PROG_QUERY: Final = 16
_MOST: Final = 64  # programs per cgroup and hook
# connect4/6, sendmsg4/6, recvmsg4/6, getpeername4/6 of enum bpf_attach_type
_HOOKS: Final = (10, 11, 14, 15, 19, 20, 29, 30)
_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(platform.machine())

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """The result, or -1: whoever asks here cares only whether there is an answer."""
    if _SYS_BPF is None:
        return -1
    return int(_libc.syscall(_SYS_BPF, command, attributes, len(attributes)))


def attached_to(cgroup: Path) -> set[int]:
    """Ids of the socket programs attached to `cgroup`; empty where it does not exist."""
    found: set[int] = set()
    try:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return found
    try:
        for hook in _HOOKS:
            ids = (ctypes.c_uint32 * _MOST)()
            # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
            query = struct.pack("=IIIIQI", descriptor, hook, 0, 0, ctypes.addressof(ids), _MOST)
            attributes = ctypes.create_string_buffer(query, len(query))
            if _bpf(_PROG_QUERY, attributes) == 0:
                found.update(ids[: struct.unpack_from("=I", attributes, 24)[0]])
    finally:
        os.close(descriptor)
    return found


def exists(program: int) -> bool:
    """Whether the kernel still holds it. Ids are not used again until the counter has gone round."""
    attributes = ctypes.create_string_buffer(struct.pack("=III", program, 0, 0), 12)
    descriptor = _bpf(_PROG_GET_FD_BY_ID, attributes)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True
