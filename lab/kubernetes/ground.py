"""What clusters need of this machine: what must be there, the bridge, and a way back to where nothing was.

Everything has a name that begins with NAME, so that what a killed run left is found without knowing of that run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused, Unavailable

NAME: Final = "cmk8s"
NETWORK: Final = IPv4Network("10.210.0.0/24")
FOLDER: Final = Path("/var/tmp/clustermesh-kubernetes")
BUILD: Final = Path(__file__).resolve().parents[2] / "build"
GROUPS: Final = Path("/sys/fs/cgroup")
CONTROLLERS: Final = (
    *("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", "unified"),
)
PATIENCE: Final = 90.0
_PROGRAMS: Final = ("containerd", "ctr", "runc", "ip", "nsenter", "unshare", "setpriv", "etcd", "/usr/lib/cni/loopback")
_BUILT: Final = ("kube", "helm", "images/.complete")


def missing() -> str:
    """One sentence of what this machine lacks for it, and what to do; "" where it can."""
    if os.geteuid() != 0:
        return "nodes need root: run it with sudo"
    absent = [each for each in _PROGRAMS if shutil.which(each) is None]
    absent += [str(BUILD / each) for each in _BUILT if not (BUILD / each).exists()]
    if absent:
        return f"{', '.join(absent)} missing: run tools/setup-kube"
    if unmounted := [each for each in CONTROLLERS if not os.path.ismount(GROUPS / each)]:
        return (
            f"no cgroup hierarchy of version 1 for {', '.join(unmounted)}: containerd 1.6 has nowhere to put pods "
            "(boot with systemd.unified_cgroup_hierarchy=0)"
        )
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
        for each in "abcd":
            (Path(folder) / each).mkdir()
        option = f"lowerdir={folder}/a,upperdir={folder}/b,workdir={folder}/c"
        argv = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", option, f"{folder}/d"]
        tried = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"no overlay mounts below {FOLDER.parent}: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def only_one() -> Iterator[None]:
    """Refused while another process of this machine has clusters."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0{NAME}")  # abstract: freed with its process
        except OSError as error:
            raise Refused("another run has Kubernetes clusters on this machine: wait until it ends") from error
        yield


@contextmanager
def standing() -> Iterator[None]:
    """The bridge and an empty FOLDER. What an earlier run left is removed first, and all of this run's at the end."""
    remove()
    FOLDER.mkdir(mode=0o755)
    try:
        ip("link", "add", NAME, "type", "bridge")
        ip("link", "set", NAME, "up")
        yield
    finally:
        with _undisturbed():
            remove()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is half removed is worse than a second of patience."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ip(*words: str) -> None:
    """Unavailable where it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")


def remove() -> None:
    """All that bears NAME, and FOLDER. Unavailable where something is still there after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while left := left_behind():
        for pid in _processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for namespace in _namespaces():
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)
        for link in _links():
            subprocess.run(["ip", "link", "del", link], stderr=subprocess.DEVNULL, check=False)
        for group in _groups():
            with suppress(OSError):
                group.rmdir()
        if not _groups():  # nobody uses it any more
            shutil.rmtree(FOLDER, ignore_errors=True)
        if time.monotonic() > deadline:
            raise Unavailable(f"cannot be removed: {', '.join(left)}")
        time.sleep(0.02)


def left_behind() -> list[str]:
    """One line for each thing of a run that exists."""
    return [
        *(f"process {pid}" for pid in _processes()),
        *(f"network namespace {name}" for name in _namespaces()),
        *(f"link {name}" for name in _links()),
        *(f"cgroup {path}" for path in _groups()),
        *([f"folder {FOLDER}"] if FOLDER.exists() else []),
    ]


def _links() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob(f"{NAME}*")]


def _namespaces() -> list[str]:
    return [path.name for path in Path("/run/netns").glob(f"{NAME}*")]


def _groups() -> list[Path]:
    """Leaves first."""
    tops = [path for each in CONTROLLERS for path in (GROUPS / each).glob(f"{NAME}*")]
    return [Path(path) for top in tops for path, _, _ in os.walk(top, topdown=False)]


def _processes() -> set[int]:
    """In the nodes' cgroups: all that a node began is there."""
    found = set[int]()
    for group in _groups():
        with suppress(OSError):
            found |= set(map(int, (group / "cgroup.procs").read_text().split()))
    return found - {os.getpid()}
