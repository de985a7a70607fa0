"""The lab's corner of the host's cgroup2 tree. Every process of the lab is in it, also one nobody else knows of."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from clustermesh.errors import Refused
from lab import own_folder


def cgroup2_root() -> Path:
    """Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1. Refused where it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return Path(target)
    raise Refused("no cgroup2 is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup` (or boot with cgroup v2)")


def lab_cgroup(folder: Path) -> Path:
    """The top of the lab that lives in `folder`."""
    return cgroup2_root() / own_folder.identity(folder)


def tree(top: Path) -> list[Path]:
    """`top` and all cgroups below it, leaves first; empty where it does not exist."""
    return [Path(path) for path, _, _ in os.walk(top, topdown=False)]


def processes(top: Path) -> list[int]:
    """Pids of all processes in `top` and below."""
    found: list[int] = []
    for cgroup in tree(top):
        try:
            found += map(int, (cgroup / "cgroup.procs").read_text().split())
        except OSError:  # removed meanwhile
            continue
    return found


def remove(top: Path, seconds: float) -> None:
    """SIGKILL everything in it, then remove it. What still stands after `seconds` stays, for the count of leftovers."""
    end = time.monotonic() + seconds
    while top.exists() and time.monotonic() < end:
        with suppress(FileNotFoundError):
            (top / "cgroup.kill").write_text("1")  # acts on everything below too
        for cgroup in tree(top):
            try:
                cgroup.rmdir()
            except OSError:  # still populated, or gone already
                continue
        time.sleep(0.005)
