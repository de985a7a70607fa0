"""Which folder is a lab's: a lab writes its mark into it first and removes it last, and only what bears it is removed.

The mark names the folder, so a copy of a lab, or one that was moved, is nobody's to remove.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused

_MARK: Final = ".clustermesh-lab"


def identity(folder: Path) -> str:
    """A name that no other lab has and nothing else on this machine: for the lab's cgroup and its lock."""
    return f"clustermesh-lab-{hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:12]}"


def is_lab(folder: Path) -> bool:
    """Whether a lab made it."""
    try:
        return (folder / _MARK).read_text() == _mark(folder)
    except (OSError, UnicodeDecodeError):
        return False


def check(folder: Path) -> None:
    """Refused where a lab may neither be made nor be removed: the folder holds something that no lab put there."""
    if is_lab(folder) or not os.path.lexists(folder) or _is_empty(folder):
        return
    rule = "only a new folder, an empty one or a lab's own is used or removed"
    raise Refused(f"{folder} is not the folder of a lab: {rule}; give another with --folder")


def take(folder: Path) -> None:
    """Make it a lab's. Refused as `check` says."""
    check(folder)
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / _MARK).write_text(_mark(folder))


def remove(folder: Path) -> None:
    """As much of it as can be; the mark goes last, so that a second attempt is allowed. Not a lab's: nothing."""
    if not is_lab(folder):
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _MARK:
            path.unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == [_MARK]:
        shutil.rmtree(folder, ignore_errors=True)


def _mark(folder: Path) -> str:
    return f"the lab at {os.path.realpath(folder)}\n"


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:
        return False
