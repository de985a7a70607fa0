"""Programs of packets run over a packet, by bpf(2): BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

from agent.bpf.syscalls import Command, attr_of, buffer_of, call_attr


class RunResult(NamedTuple):
    """`verdict` is what the program returned (as a signed int), `data` the packet after it."""

    verdict: int
    data: bytes


def program_test_run(program: int, packet: bytes) -> RunResult:
    """Run a tc program over `packet`, an Ethernet frame. Programs of sockets cannot be run like this."""
    given, result = buffer_of(packet), ctypes.create_string_buffer(len(packet) + 256)
    addresses = (ctypes.addressof(given), ctypes.addressof(result))
    attr = attr_of(struct.pack("=IIIIQQII", program, 0, len(packet), len(result), *addresses, 1, 0))
    call_attr(Command.PROG_TEST_RUN, attr)
    verdict, _, size = struct.unpack_from("=iII", attr.raw, 4)
    return RunResult(verdict, result.raw[:size])
