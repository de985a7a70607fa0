"""Copies of descriptors of other processes' sockets (pidfd_getfd, Linux 5.6), and what these sockets are."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

_PIDFD_GETFD: Final = 438  # on every architecture
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_SO_COOKIE: Final = 57


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


def cookie_of(held: socket.socket) -> int:
    return int.from_bytes(held.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


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
