"""Where the C library keeps a process's memory, and when it gives some back."""

from __future__ import annotations

import ctypes
from typing import Final

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_LARGE: Final = 512 << 10  # bytes; asyncio asks for 256 KiB for each record of TLS, and most of it goes back at once


def one_heap() -> None:
    """Before any thread: one heap for all of them, and large blocks, as pages of a list are, go back when freed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)
