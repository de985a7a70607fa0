"""Writing files so that a reader sees the old bytes or the new ones, and a power cut leaves one of the two."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700

# A writer that was killed leaves its file of this form behind; `sweep` takes it away.
_TEMPORARY_SUFFIX = ".clustermesh-tmp"


def write_atomically(path: Path, data: bytes, mode: int = FILE_MODE) -> None:
    """Replace `path` by `data`: written beside it, synced, renamed, and the folder synced. Raises OSError.

    The file has `mode` from its first instant, so that a private key is never readable by others, not even empty.
    """
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=_TEMPORARY_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one folder, on disk before this returns: later steps may rely on the order. Raises OSError."""
    os.replace(source, target)
    sync_folder(target.parent)


def remove_durably(path: Path) -> None:
    """Make `path` absent, on disk before this returns; absent already is success, read-only or not. Raises OSError."""
    if os.path.lexists(path):
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> None:
    """Make `folder` exist and be open to its owner only, also where it existed with a wider mode. Raises OSError."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o777 != FOLDER_MODE:
        folder.chmod(FOLDER_MODE)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only for a caller that knows no other writer is at work there."""
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
