"""What this kernel can do, found out by trying: real programs, real maps, real links, gone again at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf import libbpf
from agent.bpf.bpffs import cgroup2_root, is_bpffs
from agent.bpf.hooks import SOCKET_PROGRAMS, Program
from agent.bpf.programs import EXIT, Instruction, call_helper, program_load, set_result
from agent.bpf.syscalls import (
    NO_PREALLOC,
    AttachType,
    MapType,
    ProgramType,
    link_create,
    map_create,
    map_lookup_batch,
    map_update_batch,
)
from clustermesh.errors import ClusterMeshError

_SET_RETVAL: Final = 187  # bpf_set_retval
_ALLOW: Final = (set_result(1), EXIT)
_NEXT: Final = (set_result(-1), EXIT)
_NO_DEVICE: Final = 0x7FFFFFFF


class Feature(NamedTuple):
    """One thing the agent needs or prefers. `remedy` is "" where it is present; `needed` is False where there is a
    second way without it."""

    name: str
    present: bool
    needed: bool
    sentence: str
    remedy: str


def probe(bpffs: Path = Path("/sys/fs/bpf")) -> list[Feature]:
    """Everything the datapath rests on. Takes about 5 ms and never raises."""
    bpf = _bpf()
    tried = [make() if bpf.present else _untried(name, needed, bpf.remedy) for name, needed, make in _IN_KERNEL]
    return [bpf, _bpffs(bpffs), _libbpf(), _cgroup2(), *tried]


def _untried(name: str, needed: bool, remedy: str) -> Feature:
    return Feature(name, False, needed, "cannot be tried without bpf", remedy)


def has_set_retval() -> bool:
    """Whether a program can say with which errno connect fails (Linux 5.18); without, it is EPERM."""
    code = (Instruction(0xB7, 1, immediate=-errno.ECONNREFUSED), call_helper(_SET_RETVAL), set_result(0), EXIT)
    return _failure(lambda: program_load(ProgramType.CGROUP_SOCK_ADDR, code, AttachType.CGROUP_INET4_CONNECT)) == 0


def has_tcx() -> bool:
    """Whether devices take BPF links (Linux 6.6)."""

    def attach() -> int:
        program = program_load(ProgramType.SCHED_CLS, _NEXT)
        try:
            # A device that does not exist: known attach types say ENODEV, unknown ones EINVAL.
            return link_create(program, _NO_DEVICE, AttachType.TCX_INGRESS)
        finally:
            os.close(program)

    return _failure(attach) == errno.ENODEV


def _failure(make: Callable[[], int]) -> int:
    """The errno of `make`, 0 where it gave a descriptor (which is closed)."""
    try:
        os.close(make())
    except OSError as e:
        return e.errno or errno.EIO
    return 0


def _feature(name: str, failure: str, present: str, remedy: str, *, needed: bool = True) -> Feature:
    return Feature(name, not failure, needed, failure or present, remedy if failure else "")


def _reason(code: int) -> str:
    return os.strerror(code) if code else ""


def _bpf() -> Feature:
    code = _failure(lambda: program_load(ProgramType.SCHED_CLS, _NEXT))
    remedy = {
        errno.EPERM: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN",
        errno.ENOSYS: "use a kernel with CONFIG_BPF_SYSCALL=y",
    }.get(code, "see the kernel's log")
    failure = f"bpf(2) loads no program: {_reason(code)}" if code else ""
    return _feature("bpf", failure, "bpf(2) loads programs", remedy)


def _bpffs(path: Path) -> Feature:
    failure = "" if is_bpffs(path) else f"no bpf filesystem is mounted at {path}"
    return _feature("bpffs", failure, f"pins are kept at {path}", f"mount -t bpf bpf {path}")


def _libbpf() -> Feature:
    try:
        return _feature("libbpf", "", f"libbpf {libbpf.version()} loads the programs", "")
    except ClusterMeshError as e:
        return _feature("libbpf", str(e), "", "install libbpf 1.0 or later (Debian: libbpf1)")


def _maps() -> Feature:
    kinds = {"hash": (MapType.HASH, NO_PREALLOC), "LRU": (MapType.LRU_HASH, 0), "LPM": (MapType.LPM_TRIE, NO_PREALLOC)}
    missing = [name for name, (kind, flags) in kinds.items() if not _map_works(kind, flags)]
    failure = f"no {' nor '.join(missing)} map with batch operations" if missing else ""
    return _feature("maps", failure, "hash, LRU and LPM maps work, in batches", "use Linux 5.13 or later")


def _map_works(kind: MapType, flags: int) -> bool:
    try:
        fd = map_create(kind, 8, 4, 8, flags)
    except OSError:
        return False
    try:
        key = b"\x00" * 8
        return map_update_batch(fd, key, b"\x00" * 4, 1).error == 0 and map_lookup_batch(fd, b"", (8, 4), 8).size == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _cgroup2() -> Feature:
    root = cgroup2_root()
    failure = "" if root else "no cgroup2 is mounted"
    return _feature("cgroup2", failure, f"cgroup2 is mounted at {root}", "mount -t cgroup2 none /sys/fs/cgroup")


def _socket_hooks() -> Feature:
    missing = [each.name for each in SOCKET_PROGRAMS if not _loads(_ALLOW, each)]
    failure = f"the kernel has no hook for {', '.join(missing)}" if missing else ""
    return _feature(
        "sock_addr",
        failure,
        "services can be translated at the socket",
        "use Linux 5.9 or later with CONFIG_CGROUP_BPF=y",
    )


def _loads(code: Sequence[Instruction], program: Program) -> bool:
    return _failure(lambda: program_load(program.program_type, code, program.attach_type)) == 0


def _cgroup_link() -> Feature:
    def attach() -> int:
        program = program_load(ProgramType.CGROUP_SOCK_ADDR, _ALLOW, AttachType.CGROUP_INET4_CONNECT)
        try:
            return link_create(program, -1 & 0xFFFFFFFF, AttachType.CGROUP_INET4_CONNECT)
        finally:
            os.close(program)

    code = _failure(attach)  # no such cgroup: EBADF where links are known
    failure = "" if code == errno.EBADF else f"cgroups take no links: {_reason(code)}"
    return _feature("cgroup links", failure, "programs on cgroups outlive the agent", "use Linux 5.7 or later")


def _set_retval() -> Feature:
    failure = "" if has_set_retval() else "a service without backends refuses with EPERM instead of ECONNREFUSED"
    present = "a service without backends refuses with ECONNREFUSED"
    return _feature("set_retval", failure, present, "use Linux 5.18 or later", needed=False)


def _tcx() -> Feature:
    failure = "" if has_tcx() else "devices take no links: their programs are clsact filters"
    present = "programs of devices are attached by links"
    return _feature("tcx", failure, present, "use Linux 6.6 or later", needed=False)


_IN_KERNEL: Final = (
    ("maps", True, _maps),
    ("sock_addr", True, _socket_hooks),
    ("cgroup links", True, _cgroup_link),
    ("set_retval", False, _set_retval),
    ("tcx", False, _tcx),
)
