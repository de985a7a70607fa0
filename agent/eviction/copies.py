"""Copies of descriptors of other processes' sockets (pidfd_getfd, Linux 5.6), and what these sockets mean."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from agent.bpf.layouts import MeantValue, unpack
from agent.bpf.syscalls import map_lookup

_PIDFD_GETFD: Final = 438  # on every architecture
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SIZE: Final = 40  # of struct lb_meant


def copied(inodes: Collection[int]) -> Iterator[tuple[int, socket.socket]]:
    """A copy of each of these sockets that a process here has open, with its inode; it is closed when the next is asked
    for. All that processes have open is gone over."""
    names, done = {f"socket:[{inode}]": inode for inode in inodes}, set[int]()
    for inode, pid, descriptor in _holders(names):
        if inode not in done:
            # It was closed, or is of a process that may not be looked into.
            with suppress(OSError), socket.socket(fileno=_copy(pid, descriptor)) as held:
                if os.fstat(held.fileno()).st_ino == inode:  # its number may be another file's by now
                    done.add(inode)
                    yield inode, held
        if len(done) == len(names):
            return


def meaning_of(held: socket.socket, meant: int) -> MeantValue | None:
    """What the socket means, by the map lb_meant."""
    value = map_lookup(meant, held.fileno().to_bytes(4, sys.byteorder), _SIZE)
    return None if value is None else unpack(MeantValue, value)


def _holders(names: dict[str, int]) -> Iterator[tuple[int, int, int]]:
    """Inode, process and descriptor of each."""
    for pid in filter(str.isdigit, os.listdir("/proc") if names else ()):
        folder = f"/proc/{pid}/fd"
        with suppress(OSError):  # it has ended
            for descriptor in os.listdir(folder):
                with suppress(OSError):
                    if (inode := names.get(os.readlink(f"{folder}/{descriptor}"))) is not None:
                        yield inode, int(pid), int(descriptor)


def _copy(pid: int, descriptor: int) -> int:
    process = os.pidfd_open(pid)
    try:
        copy: int = _LIBC.syscall(_PIDFD_GETFD, process, descriptor, 0)
        if copy < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return copy
    finally:
        os.close(process)
