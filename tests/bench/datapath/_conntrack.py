"""How many connections the kernel follows: as many as a round of comparisons makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MOST: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_ENOUGH: Final = 1 << 21


@contextmanager
def room_for_connections() -> Iterator[None]:
    """No namespace refuses a connection because it has seen many; afterwards it is as it was."""
    if not _MOST.exists():  # the module comes with the first rule, and its default is by memory
        yield
        return
    before = _MOST.read_text()
    _MOST.write_text(str(_ENOUGH))
    try:
        yield
    finally:
        _MOST.write_text(before)
