"""A node of the lab seen from the host: start its first process, run a command inside, keep services in it."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from clustermesh.errors import Refused, Unavailable
from lab import node_spec
from lab.node_spec import NodeSpec, Service
from lab.processes import Process, identify

_START_SECONDS: Final = 60.0
_NAMESPACES: Final = ("mnt", "net", "pid", "cgroup", "uts")


class _Line(Struct, kw_only=True):
    """One line of node_init's answer."""

    pid: int = 0
    failed: str = ""


def bin_folder() -> Path:
    """Where the console scripts of this installation are (clustermesh, clustermesh-cni)."""
    return Path(sys.executable).parent


def environment(context: Path | None = None) -> dict[str, str]:
    """What processes in a node see: nothing of the caller's but the way to programs, and the cluster's folder."""
    path = f"{bin_folder()}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    plain = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return plain if context is None else plain | {"CLUSTERMESH_CONTEXT": str(context)}


async def start(home: Path, spec: NodeSpec, lifeline: int | None = None) -> Process:
    """The node's first process, its namespaces and mounts made. Refused with what failed where they cannot be."""
    for folder in (home / "services", home / "log"):
        folder.mkdir(parents=True, exist_ok=True)
    os.mkdir(spec.cgroup)
    node_spec.write(home / "node.json", spec)
    command = [sys.executable, "-m", "lab.node_init", str(home)]
    child = await asyncio.create_subprocess_exec(
        *command,
        *([] if lifeline is None else [str(lifeline)]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        pass_fds=[] if lifeline is None else [lifeline],
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            output, errors = await child.communicate()
    except TimeoutError as error:
        raise Unavailable(f"node {spec.name} was not made within {_START_SECONDS:.0f} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    lines = [msgspec.json.decode(line, type=_Line) for line in output.splitlines()]
    failed = next((line.failed for line in lines if line.failed), "")
    process = identify(max(line.pid for line in lines)) if len(lines) == 2 else None
    if failed or process is None:
        raise Refused(f"node {spec.name} cannot be made: {failed or errors.decode(errors='replace').strip()[-500:]}")
    return process


def namespaces(process: Process) -> list[str]:
    """The node's namespaces as the kernel names them, "net:[4026531840]"."""
    found = [os.readlink(f"/proc/{process.pid}/ns/{kind}") for kind in _NAMESPACES if kind != "pid"]
    return [*found, os.readlink(f"/proc/{process.pid}/ns/pid_for_children")]


def inside(process: Process, path: str) -> Path:
    """The host's way to a file of the node (a socket in its /run, for example)."""
    return Path(f"/proc/{process.pid}/root{path}")


def enter(process: Process, cgroup: str, argv: Sequence[str], pod: str = "") -> list[str]:
    """The command that runs `argv` in the node, or in its pod with the network namespace and cgroup named `pod`.

    Joining a cgroup namespace does not join the cgroup, so that is done first, by hand.
    """
    cgroup_procs = shlex.quote(f"{cgroup}/kubepods/{pod}/cgroup.procs" if pod else f"{cgroup}/cgroup.procs")
    net = inside(process, f"/run/netns/{pod}") if pod else Path(f"/proc/{process.pid}/ns/net")
    nsenter = ["nsenter", f"--target={process.pid}", "--mount", "--pid", "--cgroup", "--uts", f"--net={net}", "--"]
    return ["sh", "-c", f'echo 0 > {cgroup_procs} && exec "$@"', "enter", *nsenter, *argv]


async def run(
    command: Sequence[str], *, seconds: float = 30.0, stdin: str = "", env: Mapping[str, str] | None = None
) -> str:
    """What `command` printed. Refused with its words where it fails, Unavailable after more than `seconds`."""
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment() if env is None else dict(env),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await child.communicate(stdin.encode())
    except TimeoutError as error:
        raise Unavailable(f"{shlex.join(command[-6:])} took more than {seconds:.0f} s") from error
    finally:
        if child.returncode is None:
            os.killpg(child.pid, 9)
            await child.wait()
    if child.returncode:
        said = (errors or output).decode(errors="replace").strip()
        raise Refused(f"{shlex.join(command[-6:])} failed ({child.returncode}): {said[-800:]}")
    return output.decode()


def keep(home: Path, name: str, argv: Sequence[str], restart: float = 1.0) -> None:
    """From now on `argv` runs in the node as the service `name`, started again whenever it ends."""
    node_spec.write(home / "services" / f"{name}.json", Service(argv=list(argv), restart=restart))


def stop(home: Path, name: str) -> None:
    """From now on it does not; SIGTERM, and SIGKILL five seconds later."""
    (home / "services" / f"{name}.json").unlink(missing_ok=True)
