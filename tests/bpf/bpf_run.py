"""Programs of packets run over a packet, by bpf(2): BPF_PROG_TEST_RUN; and by a process of their own."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import traceback
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from agent.bpf.programs import EXIT, program_load, set_result
from agent.bpf.syscalls import Command, ProgramType, attr_of, buffer_of, call, call_attr

_CONTEXT_SIZE = 192  # of struct __sk_buff, as linux/bpf.h has it
_IFINDEX_AT, _GSO_SIZE_AT = 40, 176
_INFO_SIZE, _VERIFIED_AT = 256, 216  # of struct bpf_prog_info
_SUMMED = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE
_XDP_CONTEXT = struct.Struct("=6I")  # struct xdp_md: data, data_end, data_meta, ingress_ifindex and two more


class RunResult(NamedTuple):
    """`verdict` is what the program returned (as a signed int), `data` the packet after it, `ns` what one run took."""

    verdict: int
    data: bytes
    ns: int


class WrongSum(Exception):
    """A program has left another sum of the packet's bytes than they have; or none, as one that cuts a packet does."""


def program_test_run(
    program: int, packet: bytes, device: int = 0, repeat: int = 1, gso_size: int = 0, summed: bool = False
) -> RunResult:
    """Run a tc program over `packet`, an Ethernet frame, as if it came by the device of this index (0: loopback), and
    stood for many of `gso_size` bytes. Programs of sockets cannot be run like this. `summed`: the device has computed a
    checksum over all of it (CHECKSUM_COMPLETE), which WrongSum says not to hold afterwards, where the kernel looks."""
    context = bytearray(_CONTEXT_SIZE if device else 0)
    if device:
        struct.pack_into("=I", context, _IFINDEX_AT, device)
        struct.pack_into("=I", context, _GSO_SIZE_AT, gso_size)
    try:
        return _run(program, packet, bytes(context), repeat, _SUMMED if summed and looks_at_sums() else 0)
    except OSError as e:
        if e.errno == errno.EBADMSG:
            raise WrongSum from e
        raise


@cache
def looks_at_sums() -> bool:
    """Whether this kernel runs programs over packets that a device has summed up (Linux 6.16)."""
    program = program_load(ProgramType.SCHED_CLS, (set_result(0), EXIT))
    try:
        _run(program, bytes(64), b"", 1, _SUMMED)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return False
    finally:
        os.close(program)
    return True


def xdp_test_run(program: int, packet: bytes, device: int, repeat: int = 1) -> RunResult:
    """The same for an XDP program."""
    return _run(program, packet, _XDP_CONTEXT.pack(0, len(packet), 0, device, 0, 0), repeat)


def _run(program: int, packet: bytes, context: bytes, repeat: int, flags: int = 0) -> RunResult:
    given, result = buffer_of(packet), ctypes.create_string_buffer(len(packet) + 256)
    addresses = (ctypes.addressof(given), ctypes.addressof(result))
    kept = buffer_of(context)
    attr = attr_of(
        struct.pack(
            "=IIIIQQIIIIQQI4x",
            program,
            0,
            len(packet),
            len(result),
            *addresses,
            repeat,
            0,
            len(context),
            0,
            ctypes.addressof(kept) if context else 0,
            0,
            flags,
        )
    )
    call_attr(Command.PROG_TEST_RUN, attr)
    verdict, _, size = struct.unpack_from("=iII", attr.raw, 4)
    (ns,) = struct.unpack_from("=I", attr.raw, 36)
    return RunResult(verdict, result.raw[:size], ns)


def verified_instructions(program: int) -> int:
    """How many the verifier went through, of a million at most: bpf_prog_info.verified_insns (Linux 5.16)."""
    info = ctypes.create_string_buffer(_INFO_SIZE)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, _INFO_SIZE, ctypes.addressof(info)))
    (found,) = struct.unpack_from("=I", info, _VERIFIED_AT)
    return int(found)


def fork(work: Callable[[], None]) -> int:
    """The id of a process that does `work`, in the namespaces of whoever calls, and ends with 1 where that raises."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
