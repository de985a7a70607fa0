"""Looking at a folder of manifests once: which files changed, and what they say. Blocking; run it in a thread."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from clustermesh.settling import is_being_written
from clustermesh.sources.table import EMPTY, MAX_BYTES, Manifest, read_manifest, unreadable

SUFFIXES: Final = (".yaml", ".yml", ".json")
_RACY: Final = 50_000_000
"""Nanoseconds. A file read this soon after it was written may be written again within one tick of the file clock."""

Stamp = tuple[int, int, int]
"""Modification time in nanoseconds, size and inode of a file; () stands for "read it again whatever it looks like"."""


class Reading(NamedTuple):
    """A file that was read: what it says, when it was written (Unix ns), and its stamp.

    While it is `held`, as it may just be being written, it says nothing new; `inode` is then the file's, and `size` is
    still that of what it said last.
    """

    manifest: Manifest
    written: int
    stamp: Stamp | tuple[()]
    size: int = 0
    inode: int = 0
    held: bool = False


class Scan(NamedTuple):
    """What one look found. `error` says why part of the folder could not be seen; then nothing counts as removed."""

    read: Mapping[str, Reading]
    removed: frozenset[str]
    error: str = ""


def is_manifest(path: str) -> bool:
    """True for what is read, given its path relative to the folder: hidden files and folders are not."""
    return path.endswith(SUFFIXES) and not any(part.startswith(".") for part in path.split("/"))


def scan_folder(root: Path, known: Mapping[str, Reading], now: int) -> Scan:
    """The whole folder, compared with what is `known` of the files read before, by path relative to `root`."""
    faults: list[OSError] = []
    found: dict[str, Stamp] = {}
    for folder, folders, files in os.walk(root, onerror=faults.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(folder, name) for name in (*files, *folders) if is_manifest(name)):
            stamp = _stamp(path)
            if stamp is not None:
                found[os.path.relpath(path, root)] = stamp
    changed = [path for path, stamp in found.items() if path not in known or known[path].stamp != stamp]
    removed = frozenset() if faults else frozenset(known.keys() - found.keys())
    error = "; ".join(f"{fault.filename}: {fault.strerror}; kept as it was" for fault in faults)
    return Scan(_read_all(root, changed, known, now), removed, error)


def scan_files(root: Path, paths: Iterable[str], known: Mapping[str, Reading], now: int) -> Scan:
    """Only `paths`, which are read whatever their stamps say: somebody was told that they changed."""
    present = {path: _stamp(os.path.join(root, path)) is not None for path in paths}
    removed = frozenset(path for path, there in present.items() if not there and path in known)
    return Scan(_read_all(root, [path for path, there in present.items() if there], known, now), removed)


def _stamp(path: str) -> Stamp | None:
    """None for what is not there; a pipe, a folder or a link to nothing is there and will not be readable."""
    try:
        status = os.stat(path) if os.path.exists(path) else os.lstat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_all(root: Path, paths: Iterable[str], known: Mapping[str, Reading], now: int) -> dict[str, Reading]:
    return {path: _read(root, path, known.get(path), now) for path in sorted(paths)}


def _read(root: Path, path: str, before: Reading | None, now: int) -> Reading:
    try:
        status, data = _load(root / path)
    except OSError as e:
        return Reading(unreadable(path, f"{e.strerror}; kept as it was"), now, ())
    if before is not None and is_being_written(before, data, status.st_ino, status.st_mtime_ns, now):
        why = f"is {'cut short' if data.strip() else 'empty'}, perhaps just being written; kept as it was"
        return Reading(unreadable(path, why), now, (), before.size, status.st_ino, held=True)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    settled = time.time_ns() - status.st_mtime_ns > _RACY
    manifest = read_manifest(path, data, before.manifest if before else EMPTY)
    return Reading(manifest, status.st_mtime_ns, stamp if settled else (), status.st_size, status.st_ino)


def _load(path: Path) -> tuple[os.stat_result, bytes]:
    # Without O_NONBLOCK a named pipe in the place of a file would hold us for ever.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Is not a regular file")
        return status, file.read(MAX_BYTES + 1)
