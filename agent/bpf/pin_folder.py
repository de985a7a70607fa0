"""The folder of all pins as an agent holds it: found again where its file system was taken off its place.

A bpf filesystem that was unmounted lazily lives as long as anybody has something of it open, and with it every map and
link that is pinned there. So they are pinned once more where the next agent looks for them.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.bpf.bpffs import ensure_bpffs
from agent.bpf.pins import pin_in_place
from agent.bpf.syscalls import object_get
from clustermesh.errors import Refused


class PinFolder:
    """`path`, which lies in the bpf filesystem at `bpffs`. OSError where it is not there."""

    def __init__(self, path: Path, bpffs: Path) -> None:
        self.path, self.bpffs = path, bpffs
        self._fd = _opened(path)

    def is_there(self) -> bool:
        """Whether this very folder is at its path."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        held = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def put_back(self) -> int:
        """Pin all that is in the folder at its path, in a bpf filesystem that is mounted there where none is; returns
        how much that was. Refused where another agent has that place. OSError."""
        ensure_bpffs(self.bpffs)
        self.path.mkdir(exist_ok=True)
        fresh = _opened(self.path)
        try:
            _lock(fresh, self.path)
            # Maps before links: an agent that finds a program without its maps would make these anew.
            names = [
                f"{folder}/{name}" for folder in sorted(os.listdir(self._fd), reverse=True) for name in self._in(folder)
            ]
            for name in names:
                self._pin_again(name)
        except BaseException:
            os.close(fresh)
            raise
        os.close(self._fd)
        self._fd = fresh
        return len(names)

    def close(self) -> None:
        os.close(self._fd)

    def _in(self, folder: str) -> list[str]:
        return sorted(os.listdir(f"/proc/self/fd/{self._fd}/{folder}"))

    def _pin_again(self, name: str) -> None:
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        fd = object_get(Path(f"/proc/self/fd/{self._fd}/{name}"))
        try:
            pin_in_place(fd, target)
        finally:
            os.close(fd)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def _lock(fd: int, path: Path) -> None:
    """As the agent has the folder it began with."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise Refused(f"another agent holds {path}: stop it first") from e
