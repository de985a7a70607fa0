"""Taking a lab down, whatever state it is in, and counting what is left of it: the count is the proof, so it is data.

Nothing here trusts state.json alone: the lab's cgroup holds every process of it, and everything else a lab makes lives
in namespaces that end with those processes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clustermesh.errors import DecodeError
from lab import bpf_programs, cgroups, own_folder, state
from lab.plan import INTERNET
from lab.processes import exists, kill_and_wait, start_time
from lab.state import LabState

_KILL_SECONDS: Final = 10.0
_SETTLE_SECONDS: Final = 10.0  # the kernel frees programs, links and namespaces shortly after their last user


def down(folder: Path) -> list[str]:
    """Remove the lab in `folder`, whole, half-made or already gone; what `left_behind` says afterwards.

    Refused where the folder holds anything, and is no lab's.
    """
    own_folder.check(folder)
    known = _load(folder)
    cgroup = cgroups.lab_cgroup(folder)
    programs = {program for path in cgroups.tree(cgroup) for program in bpf_programs.attached_to(path)}
    cgroups.remove(cgroup, _KILL_SECONDS)
    for process in known.processes.values() if known else ():
        kill_and_wait(process, _KILL_SECONDS)
    own_folder.remove(folder)
    end = time.monotonic() + _SETTLE_SECONDS
    while (left := left_behind(folder, known, programs)) and time.monotonic() < end:
        time.sleep(0.05)
        own_folder.remove(folder)  # a mount of a dying namespace may have held a part of it
    return left


def _load(folder: Path) -> LabState | None:
    """What is known of the lab. A broken file is as good as none: the cgroup says what runs."""
    try:
        return state.load(folder)
    except DecodeError:
        return None


def left_behind(folder: Path, known: LabState | None, programs: set[int]) -> list[str]:
    """Everything of the lab that still exists, one line each, its kind first."""
    return [
        *_cgroup_leftovers(cgroups.lab_cgroup(folder)),
        *(f"process {p.pid}" for p in (known.processes.values() if known else ()) if exists(p)),
        *_namespace_leftovers(set(known.namespaces if known else ())),
        *(f"mount {line.split()[4]}" for line in _mounts() if str(folder) in line),
        *(f"bpf program {program}" for program in sorted(programs) if bpf_programs.exists(program)),
        *(f"file {path}" for path in _files(folder)),
        *_host_leftovers(known),
    ]


def _files(folder: Path) -> list[Path]:
    """The lab's folder and all in it; an empty one that bears no mark was there before the lab."""
    return [folder, *folder.glob("**/*")] if own_folder.is_lab(folder) else []


def _cgroup_leftovers(top: Path) -> Iterator[str]:
    yield from (f"process {pid}" for pid in cgroups.processes(top))
    yield from (f"cgroup {path}" for path in cgroups.tree(top))


def _namespace_leftovers(names: set[str]) -> Iterator[str]:
    """A namespace lives as long as a process is in it or a mount holds it."""
    held = {line.split()[3] for line in _mounts() if " nsfs " in line}
    for process in Path("/proc").glob("[0-9]*"):
        if start_time(int(process.name)) is None:  # a zombie, which only its parent can remove, names them still
            continue
        for kind in ("mnt", "net", "pid", "cgroup", "uts"):
            try:
                held.add(os.readlink(process / "ns" / kind))
            except OSError:  # ended meanwhile, or a kernel thread
                continue
    yield from (f"namespace {name}" for name in sorted(names & held))


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def host_network() -> list[str]:
    """Links, routes and rules of the host's own network namespace: a lab must change none of them."""
    links = [f"link {path.name}" for path in Path("/sys/class/net").iterdir()]
    return sorted([*links, *_ip_lines("route", "route", "show", "table", "all"), *_ip_lines("rule", "rule", "show")])


def _ip_lines(kind: str, *command: str) -> list[str]:
    shown = subprocess.run(["ip", *command], capture_output=True, text=True, timeout=10, check=False).stdout
    return [f"{kind} {' '.join(line.split())}" for line in shown.splitlines()]


def _host_leftovers(known: LabState | None) -> list[str]:
    """What of the lab's names or addresses turned up in the host's network since the lab was begun."""
    if known is None:
        return []
    mine = {INTERNET, "br0", *(machine.name for machine in known.plan.machines)}
    prefixes = [f"10.{part}." for cluster in known.plan.clusters for part in (cluster.id, 96 + cluster.id)]
    fresh = [line for line in host_network() if line not in set(known.host)]
    return [
        line
        for line in fresh
        if line.startswith("rule ") or line.split()[1] in mine or any(p in line for p in (*prefixes, "172.20."))
    ]
