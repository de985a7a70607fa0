"""The bpf filesystem, where pinned objects outlive the process that made them, and the cgroup2 mount."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Final, NamedTuple

from clustermesh.errors import Refused

_MOUNTS: Final = Path("/proc/self/mounts")
_BPF_FS_MAGIC: Final = 0xCAFE4A11  # linux/magic.h
_STATFS: Final = 256  # bytes, more than a struct statfs has; it begins with the type, a long
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    path: Path
    kind: str


def mounts() -> list[Mount]:
    """Every mount of this process's namespace, later ones after those they cover."""
    found = []
    for line in _MOUNTS.read_bytes().splitlines():
        _, path, kind, *_ = line.split(b" ")
        # The kernel writes blanks and backslashes of a path in octal.
        found.append(Mount(Path(os.fsdecode(path.decode("unicode_escape").encode("latin-1"))), kind.decode()))
    return found


def cgroup2_root() -> Path | None:
    """Where cgroup2 is mounted (/sys/fs/cgroup, /sys/fs/cgroup/unified, ...), None where it is not."""
    return next((mount.path for mount in mounts() if mount.kind == "cgroup2"), None)


def is_bpffs(path: Path) -> bool:
    """Whether `path`, which need not exist, lies in a bpf filesystem. By what is there: a list of mounts has those that
    others cover, too."""
    there = next(
        each for each in (path.absolute(), *path.absolute().parents) if os.path.exists(each)
    )  # a name with a dot may not even be asked for there
    found = ctypes.create_string_buffer(_STATFS)
    if _LIBC.statfs(os.fsencode(there), found) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(there))
    return int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == _BPF_FS_MAGIC


def ensure_bpffs(path: Path) -> None:
    """Mount a bpf filesystem at `path` (mode 0700) unless one is there; Refused where that is not allowed."""
    if is_bpffs(path):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        if _LIBC.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700") != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    except OSError as e:
        raise Refused(f"cannot mount a bpf filesystem at {path}: {e}. Run as root: mount -t bpf bpf {path}") from e
