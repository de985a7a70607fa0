"""Memory that is given back: what an agent takes for a moment (a whole list of etcd's) does not stay its own."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

# Entries by the hundred thousand come at the start and stay: to walk over them again and again holds up everything else
# for half a second each time.
GC_THRESHOLDS: Final = (5_000, 5, 10_000)

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_LARGE: Final = 64 << 10  # bytes


def be_frugal() -> None:
    """Before any thread: one heap for all of them, and large blocks apart from it, which go back when they are freed.
    Before what is imported, too, which stays as all else from the start: to look for garbage in it is for nothing.

    By itself glibc takes up to eight heaps for each CPU, and begins to keep large blocks once one was freed.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    libc = _libc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)


def keep_what_is_there() -> None:
    """What was made at the start stays: looking for garbage in it, again and again, would hold everything up."""
    gc.freeze()


def _libc() -> ctypes.CDLL | None:
    """glibc; None where this Python is linked against another one."""
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None
