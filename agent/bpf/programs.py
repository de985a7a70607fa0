"""bpf(2) by ctypes, second part: loading programs, and what the kernel says of its objects.

Errors are OSError.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from agent.bpf.syscalls import AttachType, Command, ProgramType, attr_of, buffer_of, call, call_attr

_LOG_SIZE: Final = 1 << 16
_INFO_SIZE: Final = 256
_MOST_MAPS: Final = 64
_INSTRUCTION: Final = Struct("=BBhi")
_PROGRAM_MAPS_AT: Final = 52  # nr_map_ids, then the pointer map_ids
_LINK_CGROUP: Final = 3  # enum bpf_link_type
_LINK_XDP: Final = 6
_LINK_TCX: Final = 11


class Instruction(NamedTuple):
    """struct bpf_insn, with both registers in one byte: what a probe's tiny programs are made of."""

    opcode: int
    registers: int = 0
    offset: int = 0
    immediate: int = 0


EXIT: Final = Instruction(0x95)


def set_result(value: int) -> Instruction:
    """r0 = value"""
    return Instruction(0xB7, immediate=value)


def call_helper(number: int) -> Instruction:
    return Instruction(0x85, immediate=number)


def program_load(
    kind: ProgramType, instructions: Sequence[Instruction], attach_type: int = 0, attach_type_id: int = 0
) -> int:
    """Load a program; `attach_type_id` is the kernel's BTF id of what it is for. The OSError's text ends with the
    verifier's log."""
    code = b"".join(_INSTRUCTION.pack(*each) for each in instructions)
    return code_load(kind, code, "probe", attach_type, attach_type_id)


def code_load(kind: ProgramType, code: bytes, name: str, attach_type: int = 0, attach_type_id: int = 0) -> int:
    """`program_load` of what is compiled. The log is asked for where it is refused: of a large program it is long."""
    try:
        return _load(kind, code, name, (attach_type, attach_type_id), 0)
    except OSError:
        return _load(kind, code, name, (attach_type, attach_type_id), 1)


def _load(kind: ProgramType, code: bytes, name: str, attach: tuple[int, int], log_level: int) -> int:
    instructions, license_name = buffer_of(code), buffer_of(b"Dual BSD/GPL\0")
    log = ctypes.create_string_buffer(_LOG_SIZE if log_level else 1)
    attr = struct.pack(
        "=IIQQIIQ4x4x16s4xI36xI",
        kind,
        len(code) // _INSTRUCTION.size,
        ctypes.addressof(instructions),
        ctypes.addressof(license_name),
        log_level,
        _LOG_SIZE if log_level else 0,
        ctypes.addressof(log) if log_level else 0,
        name.encode(),
        *attach,
    )
    try:
        return call(Command.PROG_LOAD, attr)
    except OSError as e:
        raise OSError(e.errno, f"{e.strerror}: {log.value.decode(errors='replace')[-1000:].strip()}") from e


def program_run(program: int, frame: bytes) -> int:
    """What a tc program returns for this frame, which nobody has sent."""
    kept = buffer_of(frame)
    attr = attr_of(struct.pack("=IIIIQ", program, 0, len(frame), 0, ctypes.addressof(kept)))
    call_attr(Command.PROG_TEST_RUN, attr)
    (returned,) = struct.unpack_from("=I", attr.raw, 4)
    return int(returned)


class MapInfo(NamedTuple):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class ProgramInfo(NamedTuple):
    """`tag` is a digest of the instructions, `map_ids` the maps they use."""

    id: int
    tag: str
    map_ids: frozenset[int]


class LinkInfo(NamedTuple):
    """`target` is a cgroup id or a device index: 0 when what the link was attached to is gone, or of another kind."""

    id: int
    program_id: int
    target: int
    attach_type: int


def map_info(fd: int) -> MapInfo:
    return MapInfo(*struct.unpack_from("=6I", _info(fd)))


def program_info(fd: int) -> ProgramInfo:
    ids = (ctypes.c_uint32 * _MOST_MAPS)()
    info = _info(fd, struct.pack("=52xIQ", _MOST_MAPS, ctypes.addressof(ids)))
    number, tag = struct.unpack_from("=4xI8s", info)
    (count,) = struct.unpack_from("=I", info, _PROGRAM_MAPS_AT)
    return ProgramInfo(number, tag.hex(), frozenset(ids[: min(count, _MOST_MAPS)]))


def link_info(fd: int) -> LinkInfo:
    info = _info(fd)
    kind, number, program = struct.unpack_from("=III", info)
    target = attach_type = 0
    if kind == _LINK_CGROUP:
        target, attach_type = struct.unpack_from("=QI", info, 16)
    elif kind == _LINK_TCX:
        target, attach_type = struct.unpack_from("=II", info, 16)
    elif kind == _LINK_XDP:
        (target,), attach_type = struct.unpack_from("=I", info, 16), AttachType.XDP
    return LinkInfo(number, program, target, attach_type)


def _info(fd: int, given: bytes = b"") -> bytes:
    info = ctypes.create_string_buffer(given, _INFO_SIZE)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, _INFO_SIZE, ctypes.addressof(info)))
    return info.raw


def program_of_id(number: int) -> int:
    """A new descriptor of the program with this id; FileNotFoundError where there is none."""
    return call(Command.PROG_GET_FD_BY_ID, struct.pack("=I", number))
