"""Ports of servers that are started later, or again.

They lie below those that the kernel gives to clients: else a connection, even one to that very port, could take it
while its server is down. No port is given out twice in one run.
"""

from __future__ import annotations

import os
import socket
from itertools import chain

_FIRST, _LAST = 10_000, 32_000
_BEGIN = _FIRST + os.getpid() * 101 % (_LAST - _FIRST)  # runs beside each other begin apart
_candidates = chain(range(_BEGIN, _LAST), range(_FIRST, _BEGIN))


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
