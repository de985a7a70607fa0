"""The few Linux system calls the lab needs and Python 3.11 lacks. Each raises OSError naming what it was about.

Numbers: linux/sched.h, linux/mount.h, linux/fs.h, linux/inotify.h.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SLAVE: Final = 0x80000

RENAME_EXCHANGE: Final = 0x2
_AT_FDCWD: Final = -100

IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, about: str) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), about)
    return result


def unshare(flags: int) -> None:
    """This process leaves the namespaces named by CLONE_NEW* `flags` for fresh ones (of the pid kind, its children)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Empty strings stand for NULL where the call takes it."""
    result = _libc.mount(
        source.encode(), target.encode(), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {fstype or source} on {target}")


def set_host_name(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def exchange(first: str, second: str) -> None:
    """Swap two files atomically. FileNotFoundError where either is gone, and then nothing has changed."""
    result = _libc.renameat2(_AT_FDCWD, first.encode(), _AT_FDCWD, second.encode(), ctypes.c_uint(RENAME_EXCHANGE))
    _check(result, second)


def inotify_open() -> int:
    """A new inotify descriptor, non-blocking and closed on exec."""
    return _check(_libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC), "inotify")


def inotify_watch(descriptor: int, folder: str, mask: int) -> None:
    """Report the IN_* events of `mask` in `folder`. Asking twice is one watch."""
    _check(_libc.inotify_add_watch(descriptor, folder.encode(), ctypes.c_uint32(mask)), folder)
