"""Entries of conntrack as rows, for `clustermesh node bpf ct list`: a page at a time, in the map's own order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from agent.bpf.layouts import CtEntry, CtFlag, CtKey, unpack
from agent.bpf.pins import pages, shape_of
from agent.conntrack.entries import phase_of, protocol_name, seconds_left, ticks
from clustermesh.address import text

_PAGE: Final = 256


def rows(fd: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> Iterator[dict[str, Any]]:
    """OSError."""
    shape = shape_of(fd)
    for page in pages(fd, shape, _PAGE):
        now = clock_ns()
        for key, value in page.entries((shape.key_size, shape.value_size)):
            yield row(unpack(CtKey, key), unpack(CtEntry, value), now)


def row(key: CtKey, entry: CtEntry, now_ns: int) -> dict[str, Any]:
    """Ends as packets have them, and as they go on; IN is what comes back."""
    names = [flag.name.lower() for flag in CtFlag if flag & entry.flags and flag.name]
    return {
        "protocol": protocol_name(key.protocol),
        "direction": "IN" if entry.flags & CtFlag.REPLY else "OUT",
        "source": _end(key.source, key.source_port),
        "destination": _end(key.destination, key.destination_port),
        "new_source": _end(entry.source, entry.source_port),
        "new_destination": _end(entry.destination, entry.destination_port),
        "status": str(phase_of(entry.expires, entry.flags, ticks(now_ns))),
        "expires": round(seconds_left(entry.expires, now_ns)),
        "packets": entry.packets,
        "bytes": entry.bytes,
        "flags": names,
        "service_id": entry.service_id,
        "backend_id": entry.backend_id,
    }


def _end(address: Any, port: int) -> str:
    shown = text(address)
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
