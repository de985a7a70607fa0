"""Memory that is given back: what an agent takes for a moment (a whole list of etcd's) does not stay its own."""

from __future__ import annotations

import gc
from typing import Final

from clustermesh.heap import one_heap

# Entries by the hundred thousand come at the start and stay: to walk over them again and again holds up everything else
# for half a second each time.
GC_THRESHOLDS: Final = (5_000, 5, 10_000)


def be_frugal() -> None:
    """Before any thread, and before what is imported, which all stays: to look for garbage in it is for nothing."""
    one_heap()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.disable()


def keep_what_is_there() -> None:
    """What was made so far stays: looking for garbage in it, again and again, would hold everything up."""
    gc.freeze()
    gc.enable()
