"""Programming 1,000 services of 10 backends into the maps, beside iptables-restore with rules like kube-proxy's.

Both start from nothing, in this machine's kernel but in namespaces of their own; generating text and entries counts.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from contextlib import closing
from typing import Any

from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.plan.services import ServicePlanner, ServiceTrackers
from agent.targets.maps import MapTarget
from clustermesh.address import from_int, parse, to_int
from clustermesh.mesh.resolve import Backends, Frontend, Group, ServiceEntry
from clustermesh.model import Protocol
from clustermesh.reconcile import Reconciler, Tracker
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
    with closing(_Maps()) as kernel:
        begun = time.monotonic()
        planner = ServicePlanner(kernel.trackers)
        for number in range(_SERVICES):
            addresses = [from_int(to_int(parse("10.60.0.1")) + number * _BACKENDS + n) for n in range(_BACKENDS)]
            group = Group(1, _BACKENDS, (Backends(tuple(addresses), 8080),))
            frontend = Frontend(from_int(to_int(parse("10.111.0.1")) + number), 80, Protocol.TCP)
            planner.update(("default", str(number)), [ServiceEntry(frontend, (group,))])
        await Reconciler(*kernel.trackers).flush()
        return time.monotonic() - begun


class _Maps:
    """Maps as the programs' are, in no one's use."""

    def __init__(self) -> None:
        kinds = {"backends": (4, 28), "slots": (8, 64), "groups": (8, 96), "maglev": (4, 4084)}
        kinds |= {"source_ranges": (24, 1), "services": (20, 20)}
        self._fds = [map_create(MapType.HASH, *sizes, 131072, NO_PREALLOC) for sizes in kinds.values()]
        targets = [MapTarget(name, fd) for name, fd in zip(kinds, self._fds, strict=True)]
        self.trackers = ServiceTrackers(*(Tracker(target.name, target) for target in targets))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


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
