"""The file system of a node: the host's own, with /run, /proc, /sys, bpffs, cgroup2 and state folders of its own.

Everything mounted here lives in the node's mount namespace and ends with its last process. Nothing is written to the
host. Standard library only.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.node_spec import NodeSpec
from lab.syscalls import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, MS_SLAVE, mount

_RESOLV_CONF = "/etc/resolv.conf"
_STATE = "/var/lib/clustermesh"


def make_private(spec: NodeSpec) -> None:
    """Turn the fresh mount namespace this process is in into the node's. OSError says which mount failed."""
    kept = {bind: os.open(bind, os.O_PATH) for bind in spec.binds}  # reachable after the lab's folder is covered
    resolv_conf = os.path.realpath(_RESOLV_CONF)
    mount("", "/", "", MS_REC | MS_SLAVE)  # what the host unmounts goes away here too; nothing goes the other way
    mount("proc", "/proc", "proc")
    _mount_sys(spec.cgroup2)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for folder in ("/run/lock", "/run/netns", "/run/clustermesh"):
        os.mkdir(folder)
    _layer("/var/lib")
    shutil.rmtree(_STATE, ignore_errors=True)  # of an agent of the host's: here only, since this is the layer above it
    os.makedirs(spec.folder, exist_ok=True)  # absent below /run, which was covered
    mount("tmpfs", spec.folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for target, descriptor in kept.items():
        os.makedirs(target)
        mount(f"/proc/self/fd/{descriptor}", target, "", MS_BIND)
        os.close(descriptor)
    for folder in spec.private:
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
    _own_resolv_conf(resolv_conf)


def _layer(folder: str) -> None:
    """What the node writes below `folder` goes to memory; the host's files shine through, and stay as they are."""
    upper, work = f"/run/layers{folder}/upper", f"/run/layers{folder}/work"
    os.makedirs(upper)
    os.makedirs(work)
    mount("overlay", folder, "overlay", 0, f"lowerdir={folder},upperdir={upper},workdir={work}")


def _mount_sys(cgroup2: str) -> None:
    """/sys of this network namespace; in it an own bpffs, and cgroup2 where the host has it, rooted at this node."""
    mount("sysfs", "/sys", "sysfs")
    mount("bpf", "/sys/fs/bpf", "bpf")
    if cgroup2 != "/sys/fs/cgroup":  # hybrid: the version 1 controllers stay out, nothing in a node needs them
        mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
        os.makedirs(cgroup2)
    mount("cgroup2", cgroup2, "cgroup2")


def _own_resolv_conf(target: str) -> None:
    """No name server: a node of the lab must not ask the host's. `target` may have been below the covered /run."""
    own = Path("/run/resolv.conf")
    own.write_text("# the lab has no name server\n")
    if target.startswith("/run/"):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    if os.path.exists(target):
        mount(str(own), target, "", MS_BIND)
