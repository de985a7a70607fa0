"""Programming 1,000 services of 10 backends into the maps, beside iptables-restore with rules like kube-proxy's.

Both start from nothing, in this machine's kernel but in namespaces of their own; generating text and entries counts.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from typing import Any

from agent.bpf.layouts import Backend, BackendKey, ServiceKey, ServiceValue
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.targets.maps import MapTarget
from lab.lab import Lab

_SERVICES, _BACKENDS, _ROUNDS = 1000, 10, 5
_RESTORE = "iptables-legacy-restore"


async def run(_lab: Lab) -> list[dict[str, Any]]:
    """One figure in ms; without iptables there is no peer, and that is said."""
    ours = [await _program_maps() for _ in range(_ROUNDS)]
    figure: dict[str, Any] = {
        "name": f"program {_SERVICES} services x {_BACKENDS} (median of {_ROUNDS})",
        "value": round(statistics.median(ours) * 1000, 1),
        "unit": "ms",
    }
    if shutil.which(_RESTORE) is None:
        figure["name"] += f" [no peer: {_RESTORE} is not installed]"
        return [figure]
    theirs = [_program_iptables() for _ in range(3)]
    return [figure | {"peer": _RESTORE, "peer_value": round(statistics.median(theirs) * 1000, 1)}]


async def _program_maps() -> float:
    services_fd = map_create(MapType.HASH, 12, 8, 65536, NO_PREALLOC)
    backends_fd = map_create(MapType.HASH, 4, 12, 65536, NO_PREALLOC)
    begun = time.monotonic()
    backends = {BackendKey(n): Backend(0x0A3C0000 + n, 8080, 6, 0, 1) for n in range(1, _SERVICES * _BACKENDS + 1)}
    services = {}
    for number in range(_SERVICES):
        for slot in range(1, _BACKENDS + 1):
            services[ServiceKey(0x0A6F0000 + number, 80, slot, 6)] = ServiceValue(number * _BACKENDS + slot)
        services[ServiceKey(0x0A6F0000 + number, 80, 0, 6)] = ServiceValue(slots=_BACKENDS)
    await MapTarget("backends", backends_fd, BackendKey, Backend).upsert(backends)
    await MapTarget("services", services_fd, ServiceKey, ServiceValue).upsert(services)
    return time.monotonic() - begun


def _program_iptables() -> float:
    begun = time.monotonic()
    lines = ["*nat", ":SERVICES - [0:0]"]
    rules = []
    for number in range(_SERVICES):
        lines.append(f":SVC{number} - [0:0]")
        rules.append(f"-A SERVICES -d 10.111.{number // 250}.{number % 250 + 1}/32 -p tcp --dport 80 -j SVC{number}")
        for n in range(_BACKENDS):
            lines.append(f":SEP{number}x{n} - [0:0]")
            share = f"-m statistic --mode random --probability {1 / (_BACKENDS - n):.10f} " if n < _BACKENDS - 1 else ""
            rules.append(f"-A SVC{number} {share}-j SEP{number}x{n}")
            rules.append(f"-A SEP{number}x{n} -p tcp -j DNAT --to-destination 10.60.{number % 250}.{n + 1}:8080")
    text = "\n".join([*lines, *rules, "COMMIT", ""])
    subprocess.run(["unshare", "--net", _RESTORE], input=text.encode(), check=True, timeout=120)
    return time.monotonic() - begun
