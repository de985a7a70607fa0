"""The second loader: the same sources, compiled by BCC on the node, loaded by bpf(2) alone.

For nodes without libbpf or without the compiled object. What comes out of the compiler is kept in a folder, by all
that went into it: only the first start takes seconds. Maps are found, adopted and pinned as with the other one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from base64 import b64decode
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple, Self

from agent.bpf.hooks import PROGRAMS, Kind
from agent.bpf.libbpf import MapShape
from agent.bpf.programs import code_load
from agent.bpf.syscalls import MapType, map_create
from clustermesh.errors import Refused, Unavailable

SOURCES_VARIABLE: Final = "CLUSTERMESH_BPF_SOURCES"
_SOURCE: Final = "clustermesh.bpf.c"
_PYTHON: Final = "/usr/bin/python3"  # Debian's, which python3-bpfcc is for
_TIME: Final = 120.0  # seconds a compiler may take
_SHOWN: Final = 2000  # characters of what it says
_INSTRUCTION: Final = Struct("=BBhi")
_LOAD_64: Final = 0x18
_MOVE: Final = 0xB7
_U32: Final = 0xFFFFFFFF
_MAP_FD: Final = 1  # BPF_PSEUDO_MAP_FD, as a source register


def find_sources() -> Path:
    """$CLUSTERMESH_BPF_SOURCES, else bpf/ of this checkout, else beside this module."""
    named, here = os.environ.get(SOURCES_VARIABLE), Path(__file__).resolve().parent
    places = [Path(named)] if named else [here.parents[1] / "bpf", here / "sources"]
    for place in places:
        if (place / _SOURCE).is_file():
            return place
    looked = " nor ".join(map(str, places))
    raise Refused(f"no sources of the eBPF programs at {looked}: set {SOURCES_VARIABLE}")


class _Map(NamedTuple):
    number: int
    shape: MapShape


def compiled(sources: Path, constants: Mapping[str, int], cache: Path) -> dict[str, bytes]:
    """The code of each function, as it is kept in `cache` or else compiled now. Refused, with the compiler's words."""
    flags = ["-DCLUSTERMESH_BCC", f"-I{sources}", *(f"-D{name}_value={value}" for name, value in constants.items())]
    digest = hashlib.sha256(" ".join([os.uname().release, *flags]).encode())
    compiler = Path(__file__).with_name("bcc_compile.py")
    for path in [*sorted(sources.glob("*.[ch]")), compiler]:
        digest.update(path.name.encode() + path.read_bytes())
    kept = cache / f"bcc-{digest.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {name: b64decode(code) for name, code in json.loads(kept.read_bytes()).items()}
    said = _run([_PYTHON, "-I", str(compiler), str(sources / _SOURCE), *flags])
    _keep(kept, said)
    return {name: b64decode(code) for name, code in json.loads(said).items()}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME, check=False)
    except subprocess.TimeoutExpired as e:
        raise Unavailable(f"BCC did not compile the programs within {_TIME:.0f} s") from e
    except OSError as e:
        raise Refused(f"BCC cannot be started: {e}. Install it (Debian: python3-bpfcc)") from e
    if done.returncode:
        raise Refused(f"BCC compiled no programs: {done.stderr.strip()[-_SHOWN:]}")
    return done.stdout


def _keep(path: Path, content: str) -> None:
    """In the place of what was kept of other sources. On a disk that takes nothing it is compiled at each start."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("bcc-*.json"):
            old.unlink()
        fresh = path.with_suffix(".partial")
        fresh.write_text(content)
        fresh.rename(path)


class BccObject:
    """What `agent.bpf.libbpf.Object` is to a compiled object, over the sources. A context manager."""

    def __init__(self, sources: Path, constants: Mapping[str, int], cache: Path) -> None:
        self.path = sources / _SOURCE
        self._code = compiled(sources, constants, cache)
        self._maps = {name[4:]: self._declared(name[4:]) for name in self._code if name.startswith("map_")}
        self._sizes = {name: each.shape.max_entries for name, each in self._maps.items()}
        self._map_fds: dict[str, int] = {}
        self._program_fds: dict[str, int] = {}

    def _declared(self, name: str) -> _Map:
        """As DECLARE_SIZES of bpf/maps.h puts it into two numbers."""
        kinds, sizes = _returned(self._code[f"map_{name}"]), _returned(self._code[f"size_{name}"])
        shape = MapShape(kinds >> 40 & 0xFF, kinds >> 32 & 0xFF, kinds & _U32, sizes & _U32, sizes >> 32)
        return _Map(kinds >> 48, shape)

    @property
    def maps(self) -> frozenset[str]:
        return frozenset(self._maps)

    def shape(self, name: str) -> MapShape:
        return self._maps[name].shape._replace(max_entries=self._sizes[name])

    def resize(self, name: str, max_entries: int) -> None:
        self._sizes[name] = max_entries

    def reuse(self, name: str, fd: int) -> None:
        self._map_fds[name] = os.dup(fd)

    def load(self, programs: Collection[str]) -> None:
        """Those of these names. OSError, with the verifier's log, where the kernel will not have it."""
        for name in self._maps:
            if name not in self._map_fds:
                self._map_fds[name] = _make(self.shape(name))
        for program in [each for each in PROGRAMS if each.name in programs]:
            attach_type = program.attach_type if program.kind is Kind.SOCKETS else 0
            if (code := self._code.get(program.name)) is None:
                raise Refused(f"{self.path} has no program {program.name}: these are other sources")
            self._program_fds[program.name] = code_load(
                program.program_type, self._with_maps(code), program.name, attach_type
            )

    def _with_maps(self, code: bytes) -> bytes:
        """With descriptors where the compiler has the maps' numbers."""
        fds = {each.number: self._map_fds[name] for name, each in self._maps.items()}
        instructions = [*_INSTRUCTION.iter_unpack(code)]
        for at, (opcode, registers, offset, number) in enumerate(instructions):
            if opcode == _LOAD_64 and registers >> 4 == _MAP_FD:
                instructions[at] = (opcode, registers, offset, fds[number])
        return b"".join(_INSTRUCTION.pack(*each) for each in instructions)

    def map_fd(self, name: str) -> int:
        return self._map_fds[name]

    def program_fd(self, name: str) -> int:
        return self._program_fds[name]

    def close(self) -> None:
        for fd in [*self._map_fds.values(), *self._program_fds.values()]:
            os.close(fd)
        self._map_fds, self._program_fds = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make(shape: MapShape) -> int:
    return map_create(MapType(shape.type), shape.key_size, shape.value_size, shape.max_entries, shape.flags)


def _returned(code: bytes) -> int:
    """The constant that a function returns which does nothing else."""
    first, second, *_ = [*_INSTRUCTION.iter_unpack(code), (0, 0, 0, 0)]
    if first[0] == _LOAD_64:
        return int((second[3] & _U32) << 32 | first[3] & _U32)
    if first[0] == _MOVE and first[3] >= 0:
        return int(first[3])
    raise Refused("BCC made something else of a map's declaration than a constant")
