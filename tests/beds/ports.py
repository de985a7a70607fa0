"""Ports of servers that are started later, or again.

None is of those that the kernel gives to clients: else a connection, even one to that very port, could take it while
its server is down. Nor does another run on this machine get them meanwhile: each process claims its ports in
blocks, by an abstract socket's name that the kernel frees when the process ends. No port is given out twice in one run.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

_FIRST, _LAST, _BLOCK = 10_000, 65_500, 100


def _starts() -> list[int]:
    """Of the blocks."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return [start for start in range(_FIRST, _LAST, _BLOCK) if start + _BLOCK <= low or start > high]


_STARTS = _starts()
_claims = list[socket.socket]()


def _claimed() -> Iterator[int]:
    """The ports of the blocks that nobody else has. We begin at one that depends on who we are: who still calls at a
    port of a run that has ended must not meet us."""
    begin = os.getpid() % len(_STARTS)
    for start in (*_STARTS[begin:], *_STARTS[:begin]):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0clustermesh-tests/ports/{start}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        yield from range(start, start + _BLOCK)


_candidates = _claimed()


def free_port() -> int:
    """A port of the loopback where nobody listens."""
    return next(port for port in _candidates if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
