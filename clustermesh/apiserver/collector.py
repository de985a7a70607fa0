"""When Python looks for garbage: seldom while the start makes what stays, as ever afterwards."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def few_collections() -> Iterator[Callable[[], None]]:
    """Tens of thousands of values are made at the start and stay: walking over them all the time costs half a second.

    Call what is given once they are made; again is fine. They are not walked over any more, and what comes after them
    is collected as ever: each lost connection leaves some objects in a ring.
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
