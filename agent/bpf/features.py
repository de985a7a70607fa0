"""What this kernel has of all that the datapath can use, and what is done where it lacks something.

For a person who asks: a start tries only what it cannot do without (`agent.bpf.probe`). Each is found out by loading a
program that uses it, gone again at once; nothing is attached anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf import libbpf, probe
from agent.bpf.links import Hook, Mechanism
from agent.bpf.programs import EXIT, Instruction, call_helper, program_load, set_result
from agent.bpf.syscalls import MapType, ProgramType, map_create
from clustermesh.errors import ClusterMeshError

_FIB_LOOKUP: Final = 69  # numbers of helpers
_RINGBUF_OUTPUT: Final = 130
_REDIRECT_NEIGH: Final = 152
_REDIRECT_PEER: Final = 155
_SOCK_OF_ITER: Final = 8  # offset of bpf_iter__tcp.sk_common
_FUNC: Final = 12  # BTF_KIND_FUNC
_TRACE_ITER: Final = 28
_REDIRECT: Final = 23
_PAGE: Final = 4096
_STATUS: Final = Path("/proc/thread-self/status")
_NEEDED: Final = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19}


class State(StrEnum):
    NATIVE = "native"
    DEGRADED = "degraded"  # something else is done instead
    OFF = "off"


class Support(NamedTuple):
    """`says` is what it is for, or what is done instead of it; `why` the kernel's answer, "" where it is native."""

    name: str
    state: State
    says: str
    why: str


class _Wanted(NamedTuple):
    name: str
    load: Callable[[], int]
    native: str
    otherwise: str
    lacking: State = State.DEGRADED


def supports(started_with: Iterable[probe.Feature]) -> list[Support]:
    """What was tried at the start, and all the rest. Takes some 30 ms, most of it to read the kernel's BTF."""
    first = [
        Support(each.name, State.NATIVE if each.present else State.DEGRADED, each.sentence, each.remedy)
        for each in started_with
    ]
    return [*first, *map(_support, _WANTED), _move_udp()]


def acceleration(asked: str, hooks: Iterable[Hook], problems: Mapping[str, str]) -> Support:
    """What has become of --bpf-lb-acceleration, which is `asked`: on which devices it is by `hooks`, on which it is not
    by `problems`."""
    name, otherwise = "xdp", "calls from outside of backends elsewhere are translated by tc"
    if asked == "disabled":
        return Support(name, State.OFF, otherwise, "--bpf-lb-acceleration is disabled")
    kernel = _support(_Wanted(name, _xdp, "", otherwise, State.OFF))
    if kernel.state is State.OFF:
        return kernel
    found = {hook.target: hook.mechanism for hook in hooks if hook.target not in problems}
    left = [f"on {device} by tc: {why}" for device, why in sorted(problems.items())]
    if not found:
        return Support(name, State.OFF, otherwise, "; ".join(left) or "no device leads outside")
    generic = sorted(device for device, mechanism in found.items() if mechanism is Mechanism.XDP_GENERIC)
    says = "calls from outside of backends elsewhere are translated before they are packets"
    if not generic and not left:
        return Support(name, State.NATIVE, says, "")
    why = [f"on {device} by the kernel, not by its driver" for device in generic]
    return Support(name, State.DEGRADED, says, "; ".join([*why, *left]))


def _move_udp() -> Support:
    """Whether other processes' sockets can be reached: the first process of a container's own sees no others, and what
    somebody else has open is listed to who may read any folder."""
    name, held = "pidfd_getfd", int(re.search(r"CapEff:\s*(\w+)", _STATUS.read_text())[1], 16)  # type: ignore[index]
    lacking = [capability for capability, bit in _NEEDED.items() if not held >> bit & 1]
    why = f"without {' and '.join(lacking)}" if lacking else ""
    if os.getpid() == 1:
        why = "no process but the agent's own is seen (a pod has hostPID for that)"
    if why:
        return Support(name, State.DEGRADED, "connected UDP sockets of a backend that went are ended", why)
    return Support(name, State.NATIVE, "connected UDP sockets of a backend that went get another one", "")


def _support(wanted: _Wanted) -> Support:
    try:
        os.close(wanted.load())
    except OSError as e:
        return Support(wanted.name, wanted.lacking, wanted.otherwise, _reason(e.strerror or str(e)))
    except ClusterMeshError as e:
        return Support(wanted.name, wanted.lacking, wanted.otherwise, str(e))
    return Support(wanted.name, State.NATIVE, wanted.native, "")


def _reason(text: str) -> str:
    """The errno's words, and of a verifier's log what refused the program: its last line but the statistics."""
    errno, _, log = text.partition(": ")
    lines = [line for line in log.splitlines() if not line.startswith("processed ")]
    return f"{errno}: {lines[-1]}" if lines else errno


# -- programs -----------------------------------------------------------------------------------------------------


def _move(to: int, value: int) -> Instruction:
    return Instruction(0xB7, to, immediate=value)


def _copy(to: int, other: int) -> Instruction:
    return Instruction(0xBF, other << 4 | to)


def _add(to: int, value: int) -> Instruction:
    return Instruction(0x07, to, immediate=value)


def _read(to: int, other: int, offset: int) -> Instruction:
    return Instruction(0x79, other << 4 | to, offset)


def _clear(offset: int) -> Instruction:
    return Instruction(0x7A, 10, offset)


def _map(to: int, fd: int) -> tuple[Instruction, Instruction]:
    return Instruction(0x18, 1 << 4 | to, immediate=fd), Instruction(0)


def _tc(*code: Instruction) -> int:
    return program_load(ProgramType.SCHED_CLS, code)


def _redirect_peer() -> int:
    return _tc(_move(1, 1), _move(2, 0), call_helper(_REDIRECT_PEER), EXIT)


def _redirect_neigh() -> int:
    return _tc(*(_move(each, each == 1) for each in (1, 2, 3, 4)), call_helper(_REDIRECT_NEIGH), EXIT)


def _fib_lookup() -> int:
    empty = [_clear(-offset) for offset in range(64, 0, -8)]
    params = (_copy(2, 10), _add(2, -64), _move(3, 64), _move(4, 0))
    return _tc(*empty, *params, call_helper(_FIB_LOOKUP), set_result(-1), EXIT)


def _xdp() -> int:
    empty = [_clear(-offset) for offset in range(64, 0, -8)]
    params = (_copy(6, 1), _copy(2, 10), _add(2, -64), _move(3, 64), _move(4, 0))
    out = (_move(1, 1), _move(2, 0), call_helper(_REDIRECT), EXIT)
    return program_load(ProgramType.XDP, (*empty, *params, call_helper(_FIB_LOOKUP), *out))


def _over(fd: int, load: Callable[[Sequence[Instruction]], int], code: Sequence[Instruction]) -> int:
    try:
        return load(code)
    finally:
        os.close(fd)


def _ring_buffer() -> int:
    fd = map_create(MapType.RINGBUF, 0, 0, _PAGE)
    code = (_clear(-8), *_map(1, fd), _copy(2, 10), _add(2, -8), _move(3, 8), _move(4, 0))
    return _over(fd, lambda code: _tc(*code), (*code, call_helper(_RINGBUF_OUTPUT), set_result(-1), EXIT))


def _socket_destroy() -> int:
    """An iterator over TCP sockets that would destroy each of them."""
    iterator, destroy = libbpf.kernel_types(["bpf_iter_tcp", "bpf_sock_destroy"], _FUNC)
    skip = Instruction(0x15, 1, 1)
    kernel_function = Instruction(0x85, 2 << 4, immediate=destroy)
    code = (_read(1, 1, _SOCK_OF_ITER), skip, kernel_function, set_result(0), EXIT)
    return program_load(ProgramType.TRACING, code, _TRACE_ITER, iterator)


_NO_PACKETS: Final = "no program of devices is loaded: services are translated at sockets only"
_WANTED: Final = (
    _Wanted(
        "ring buffer",
        _ring_buffer,
        "programs tell `node monitor` what happens",
        "no program is loaded, the agent does not start",
        State.OFF,
    ),
    _Wanted(
        "socket destroy",
        _socket_destroy,
        "sockets of a backend that went are ended by an iterator",
        "sockets of a backend that went are ended one by one, by inet_diag",
    ),
    # Whether they are asked or not, the programs have calls of them.
    _Wanted("redirect_peer", _redirect_peer, "packets can go straight into a pod", _NO_PACKETS, State.OFF),
    _Wanted("redirect_neigh", _redirect_neigh, "packets can go straight out of a device", _NO_PACKETS, State.OFF),
    _Wanted("fib_lookup", _fib_lookup, "programs ask the routes", _NO_PACKETS, State.OFF),
)
