"""A file that others write in place: whether what is read of it may be its first half."""

from __future__ import annotations

from typing import Final, Protocol

SETTLED: Final = 1_000_000_000
"""Nanoseconds. A file that became empty or shorter in place is taken as still being written until it rested so long."""


class Before(Protocol):
    """What was last believed of a file; while it is `held`, `inode` is the file's as it was found since."""

    @property
    def size(self) -> int: ...
    @property
    def inode(self) -> int: ...
    @property
    def held(self) -> bool: ...


def is_being_written(before: Before, data: bytes, inode: int, written: int, now: int) -> bool:
    """The first half of a document is often a valid one. What was replaced by renaming is another file, and whole.

    `written` and `now` are Unix nanoseconds.
    """
    if not 0 <= now - written < SETTLED:
        return False
    return not data.strip() or (inode == before.inode and (before.held or len(data) < before.size))
