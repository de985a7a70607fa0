"""What a service costs: new connections to a service's address beside connections straight to its backend.

One after another, in rounds that take turns, from the client pod to the web pod of the same node.
"""

from __future__ import annotations

import statistics
from typing import Any

from lab.lab import Lab

_ROUNDS, _CONNECTIONS = 7, 2000
_PROGRAM = """
import socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begun = time.perf_counter()
for _ in range(count):
    with socket.create_connection((host, port), timeout=5) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
print((time.perf_counter() - begun) / count * 1e6)
"""


async def run(lab: Lab) -> list[dict[str, Any]]:
    """One figure in microseconds per connect and close."""
    service, *_ = [  # one for each address family
        row
        for row in await lab.ask_agent("alpha-1", "services")
        if row["service"] == "default/web" and row["protocol"] == "TCP"
    ]
    backend = service["backends"][0]
    through, direct = [], []
    for _ in range(_ROUNDS):
        direct.append(await _connect(lab, backend["address"], backend["port"]))
        through.append(await _connect(lab, service["address"], service["port"]))
    return [
        {
            "name": f"connect through a service (median of {_ROUNDS} x {_CONNECTIONS})",
            "value": round(statistics.median(through), 1),
            "unit": "us",
            "peer": "straight to the backend",
            "peer_value": round(statistics.median(direct), 1),
        }
    ]


async def _connect(lab: Lab, host: str, port: int) -> float:
    return float(await lab.run("alpha/client", "python3", "-c", _PROGRAM, host, str(port), str(_CONNECTIONS)))
