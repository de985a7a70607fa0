"""Waking up when something in a folder changes: inotify as a file descriptor to wait on. No event is ever interpreted;
the reader looks at the folder again (level, not edge), so lost or merged events cost nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lab import syscalls

_MASK: Final = (
    syscalls.IN_CLOSE_WRITE | syscalls.IN_MOVED_FROM | syscalls.IN_MOVED_TO | syscalls.IN_CREATE | syscalls.IN_DELETE
)


class FolderWatch:
    """Readable (`fileno`) once anything in `folder` or a folder below it was created, written, renamed or removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = syscalls.inotify_open()
        self.rearm()

    def fileno(self) -> int:
        return self._descriptor

    def rearm(self) -> None:
        """Forget what was reported, and watch folders that are new. Call before reading the folder, never after."""
        try:
            while os.read(self._descriptor, 65536):
                pass
        except BlockingIOError:
            pass
        for path, _, _ in os.walk(self._folder):
            try:
                syscalls.inotify_watch(self._descriptor, path, _MASK)
            except FileNotFoundError:  # removed between the walk and the watch: nothing to see there
                continue

    def close(self) -> None:
        os.close(self._descriptor)
