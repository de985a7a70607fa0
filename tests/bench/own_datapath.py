"""Our own datapath for a bench: maps and programs below pins of their own, filled from desired state."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.bpf.bpffs import cgroup2_root, ensure_bpffs
from agent.bpf.loader import Datapath
from agent.domains.tables import open_map
from agent.plan.services import ServiceTrackers
from clustermesh.reconcile import Tracker


@contextmanager
def datapath() -> Iterator[Datapath]:
    """Loaded over empty maps, attached to nothing."""
    with ExitStack() as undo:
        folder = Path(tempfile.mkdtemp())
        undo.callback(shutil.rmtree, folder)
        ensure_bpffs(folder)
        undo.callback(subprocess.run, ["umount", str(folder)], check=True)
        made = Datapath.open(None, folder / "bench")
        undo.callback(Datapath.remove, folder / "bench")
        undo.callback(made.close)
        yield made


def trackers(of: Datapath) -> ServiceTrackers[Tracker[bytes, bytes]]:
    """What a planner writes to, over the maps of `of`."""
    return ServiceTrackers(*(Tracker(name, open_map(of, f"lb_{name}")) for name in ServiceTrackers._fields))


@contextmanager
def cgroup(name: str) -> Iterator[Path]:
    """An empty cgroup, which whoever is in it has left when it goes."""
    root = cgroup2_root()
    assert root is not None
    path = root / f"clustermesh-bench-{name}-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextmanager
def joined_cgroup(name: str) -> Iterator[Path]:
    """A cgroup that this process is in for as long."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    with cgroup(name) as path:
        (path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield path
        finally:
            (path.parent / line.removeprefix("0::/") / "cgroup.procs").write_text(str(os.getpid()))
