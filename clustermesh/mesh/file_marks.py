"""Whether files are what they were, without reading them.

Of a link it is the file at its end that counts: in a Secret volume the folder it leads through is swapped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

Mark: TypeAlias = tuple[int, ...] | None
_GRAIN: Final = 1_000_000_000  # ns; a file may change again within one tick of its time stamps, and look the same


class FileMarks:
    """What was seen of some files when they were read."""

    def __init__(self) -> None:
        self._marks: Mapping[str, Mark] = {}

    def note(self, paths: Iterable[Path]) -> None:
        """Remember `paths` as they are now; to be called before they are read."""
        self._marks = {str(path): _mark(str(path)) for path in paths}
        if any(mark is not None and mark[0] > time.time_ns() - _GRAIN for mark in self._marks.values()):
            self._marks = {}  # too fresh to be told from its next version

    def changed(self) -> bool:
        """Whether any of them may be another one now, or whether nothing was noted."""
        return not self._marks or any(_mark(path) != mark for path, mark in self._marks.items())


def _mark(path: str) -> Mark:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return max(found.st_mtime_ns, found.st_ctime_ns), found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
