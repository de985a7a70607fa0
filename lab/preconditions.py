"""What a lab needs of this machine, each with one sentence of what to do where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused
from lab import cgroups
from lab.machine import bin_folder
from lab.plan import FAMILIES

DATAPATH: Final = Path(__file__).resolve().parents[1] / "build" / "clustermesh.bpf.o"
_PROGRAMS: Final = {
    "etcd": "etcd-server",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "umount": "mount",
}
_KERNEL: Final = "boot Debian's own kernel (`apt-get install linux-image-amd64`)"
_TRY_NETWORK: Final = "ip link add try0 type veth peer name try1 && ip link add try2 type bridge"
_TRY_LAYER: Final = (
    "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w && "
    "mount -t overlay o -o lowerdir=/var/lib,upperdir=/mnt/u,workdir=/mnt/w /var/lib"
)


def check(families: Collection[str] = FAMILIES) -> None:
    """Refused with one sentence that names everything missing and what to do about it."""
    check_root()
    if found := list(missing(families)):
        raise Refused("; ".join(found))


def check_root() -> None:
    """Refused for anyone else."""
    if os.geteuid() != 0:
        raise Refused("the lab makes network namespaces and loads eBPF, which needs root: run it with sudo")


def missing(families: Collection[str] = FAMILIES) -> Iterator[str]:
    """One sentence for each thing that is not there. Assumes root."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            yield f"the program `{program}` is missing: `apt-get install {package}` (or `make setup`)"
    yield from _missing_kernel()
    if "ipv6" in families and not Path("/proc/sys/net/ipv6").exists():
        yield "this kernel has no IPv6: boot it without ipv6.disable=1, or make a lab with `--ip-families ipv4`"
    if shutil.which("wireguard-go") is None and not Path("/sys/module/wireguard").exists():
        yield "WireGuard is neither in the kernel nor installed: `apt-get install wireguard-go` (or `make setup`)"
    if not DATAPATH.exists():
        yield f"the compiled datapath {DATAPATH} is missing: run `make setup`"
    for script in ("clustermesh", "clustermesh-cni"):
        if not (bin_folder() / script).exists():
            yield f"{bin_folder() / script} is missing: run `make setup`"


def _missing_kernel() -> Iterator[str]:
    try:
        cgroups.cgroup2_root()
    except Refused as error:
        yield str(error)
    if "bpf" not in Path("/proc/filesystems").read_text().split():
        yield f"this kernel has no bpf file system: {_KERNEL}"
    for kind in ("net", "mnt", "pid", "cgroup", "uts"):
        if not Path(f"/proc/self/ns/{kind}").exists():
            yield f"this kernel has no {kind} namespaces: {_KERNEL}"
    if said := _fails("--net", _TRY_NETWORK):
        yield f"network namespaces with veth and bridge do not work here ({said}): {_KERNEL}"
    if said := _fails("--mount", _TRY_LAYER):
        yield f"overlay mounts do not work here ({said}): {_KERNEL}"


def _fails(namespace: str, script: str) -> str:
    """What went wrong with `script` in a throwaway namespace; "" where it worked, or cannot be tried."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return ""
    command = ["unshare", namespace, "sh", "-c", script]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (tried.stderr.strip() or f"exit code {tried.returncode}") if tried.returncode else ""
