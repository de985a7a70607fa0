"""Whether files are what they were, without reading them.

Of a link it is the file at its end that counts: in a Secret volume the folder it leads through is swapped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

Mark: TypeAlias = tuple[int, ...] | None
_TURNS: Final = 10
_GRAIN: Final = 1_000_000_000  # ns; a file may change again within one tick of its time stamps, and look the same


class FileMarks:
    """What was seen of some files when they were read."""

    def __init__(self) -> None:
        self._marks: Mapping[str, Mark] = {}
        self._turns: Iterator[list[str]] = iter(())

    def note(self, paths: Iterable[Path]) -> None:
        """Remember `paths` as they are now; to be called before they are read."""
        self._marks = {str(path): mark_of(str(path)) for path in paths}
        self._turns = iter(())
        if any(mark is not None and mark[0] > time.time_ns() - _GRAIN for mark in self._marks.values()):
            self._marks = {}  # too fresh to be told from its next version

    def changed(self, *always: Path) -> bool:
        """Whether any of `always`, or of a tenth of the rest in turn, may be another one now, or nothing was noted."""
        if not self._marks:
            return True
        turn = next(self._turns, None)
        if turn is None:
            paths = list(self._marks)
            self._turns = iter([paths[at::_TURNS] for at in range(_TURNS)])
            turn = next(self._turns)
        return any(mark_of(path) != self._marks.get(path) for path in (*map(str, always), *turn))


def mark_of(path: str) -> Mark:
    """What tells the file at `path` from its next version, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return max(found.st_mtime_ns, found.st_ctime_ns), found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev
