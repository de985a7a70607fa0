"""A single node for a test, without clusters: started, asked, killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from lab import cgroups, machine
from lab.node_spec import NodeSpec
from lab.processes import Process


class TestNode:
    """A node `name` in `folder`: its first process and how to run something in it."""

    __test__ = False

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.home = folder, name, folder / "nodes" / name
        self.cgroup = cgroups.lab_cgroup(folder) / name
        self.process = Process(pid=0, start=0)

    async def start(
        self, lifeline: int | None = None, private: Sequence[str] = (), cgroup2: str | None = None
    ) -> TestNode:
        self.home.mkdir(parents=True)
        spec = NodeSpec(
            name=self.name,
            folder=str(self.folder),
            cgroup=str(self.cgroup),
            cgroup2=cgroup2 or str(cgroups.cgroup2_root()),
            binds=[str(self.home)],
            private=list(private),
            environment=machine.environment(),
        )
        self.process = await machine.start(self.home, spec, lifeline)
        return self

    async def run(self, script: str, pod: str = "") -> str:
        """What a shell script printed in the node, or in one of its pods."""
        return await machine.run(machine.enter(self.process, str(self.cgroup), ["sh", "-c", script], pod))


async def eventually(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Until it is so; the bound is for a machine that is busy with everything else."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")
