"""When Python looks for garbage: seldom while the start makes what stays, as ever afterwards. And where memory is."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_LARGE: Final = 64 << 10  # bytes


def one_heap() -> None:
    """Before any thread: one heap for all of them, and large blocks, as pages of a list are, go back when freed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE)


@contextmanager
def few_collections() -> Iterator[Callable[[], None]]:
    """Tens of thousands of values are made at the start and stay: walking over them all the time costs half a second.

    Call what is given once they are made; again is fine. They are not walked over any more, and what comes after them
    is collected as ever: each lost connection leaves a few objects in a ring, with a megabyte outside Python's count.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)

    def settle() -> None:
        if gc.get_threshold() != before:
            gc.collect()
            gc.freeze()
            gc.set_threshold(*before)

    try:
        yield settle
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
