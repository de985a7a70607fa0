"""Where a pod runs: its network namespace and its cgroup, and the processes of its containers in both."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused
from lab.pod_files import Container

NETNS: Final = Path("/run/netns")
_KILL_SECONDS: Final = 5.0


class Sandbox:
    """A pod's place on this node, named by `pod_id`; `cgroup2` is the root of the node's cgroup tree."""

    def __init__(self, pod_id: str, cgroup2: Path) -> None:
        self.id = pod_id
        self.netns = NETNS / pod_id
        self._cgroup = cgroup2 / "kubepods" / pod_id

    async def make(self) -> None:
        """A namespace with nothing but a loopback that is up, kept by a mount; and an empty cgroup."""
        self._cgroup.mkdir(parents=True, exist_ok=True)
        self.netns.touch()
        await _succeed("unshare", f"--net={self.netns}", "ip", "link", "set", "lo", "up")

    async def remove(self) -> None:
        """Ends what still runs in it. Absent is success."""
        await kill_cgroup(self._cgroup)
        if self.netns.exists():
            await _succeed("umount", str(self.netns))
            self.netns.unlink()

    async def start(self, container: Container) -> asyncio.subprocess.Process:
        """The container's command, in the pod's namespace and cgroup; it prints to the kubelet's log."""
        join = f'echo 0 > {shlex.quote(str(self._cgroup))}/cgroup.procs && exec "$@"'
        command = ["nsenter", f"--net={self.netns}", "--", *container.command, *container.args]
        environment = {**os.environ, **{variable.name: variable.value for variable in container.env}}
        return await asyncio.create_subprocess_exec(
            "sh", "-c", join, "container", *command, env=environment, start_new_session=True
        )


async def kill_cgroup(cgroup: Path) -> None:
    """Everything in `cgroup` ends and the cgroup goes. Refused where something outlives SIGKILL for five seconds."""
    end = time.monotonic() + _KILL_SECONDS
    while not _emptied(cgroup):
        if time.monotonic() > end:
            raise Refused(f"processes in {cgroup} outlive SIGKILL")
        await asyncio.sleep(0.005)


def _emptied(cgroup: Path) -> bool:
    """Kill what is in it; once nothing is, remove it and say True."""
    try:
        (cgroup / "cgroup.kill").write_text("1")
        if "populated 1" in (cgroup / "cgroup.events").read_text():
            return False
        cgroup.rmdir()
    except FileNotFoundError:
        pass
    return True


async def _succeed(*command: str) -> None:
    child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, errors = await child.communicate()
    if child.returncode:
        raise Refused(f"{shlex.join(command)} failed: {errors.decode(errors='replace').strip()}")
