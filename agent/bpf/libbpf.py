"""libbpf.so.1 by ctypes: an ELF object opened, its maps replaced or resized, its programs loaded.

What libbpf prints (the verifier's log above all) is kept and becomes the text of the error.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final, NamedTuple, Self

from clustermesh.errors import Refused

_LOG_SIZE: Final = 1 << 18
_LOG_SHOWN: Final = 4000
_CONSTANTS: Final = ".rodata"
_DATASEC: Final = 15  # BTF_KIND_DATASEC
_BTF_TYPE: Final = Struct("=III")  # name, kind and number of what follows, size
_BTF_PLACE: Final = Struct("=III")  # of a variable: its id, offset and size
_DEBUG: Final = 2  # enum libbpf_print_level
_PRINT: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_P, _S, _U, _I, _B = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_int, ctypes.c_bool
_FUNCTIONS: Final = {
    "libbpf_set_print": (_P, [_P]),
    "libbpf_version_string": (_S, []),
    "bpf_object__open_file": (_P, [_S, _P]),
    "bpf_object__load": (_I, [_P]),
    "bpf_object__close": (None, [_P]),
    "bpf_object__next_map": (_P, [_P, _P]),
    "bpf_object__find_program_by_name": (_P, [_P, _S]),
    "bpf_object__next_program": (_P, [_P, _P]),
    "bpf_program__fd": (_I, [_P]),
    "bpf_program__name": (_S, [_P]),
    "bpf_program__set_autoload": (_I, [_P, _B]),
    "bpf_map__name": (_S, [_P]),
    "bpf_map__fd": (_I, [_P]),
    "bpf_map__type": (_U, [_P]),
    "bpf_map__key_size": (_U, [_P]),
    "bpf_map__value_size": (_U, [_P]),
    "bpf_map__max_entries": (_U, [_P]),
    "bpf_map__map_flags": (_U, [_P]),
    "bpf_map__set_max_entries": (_I, [_P, _U]),
    "bpf_map__reuse_fd": (_I, [_P, _I]),
    "bpf_map__initial_value": (_P, [_P, _P]),
    "bpf_object__btf": (_P, [_P]),
    "btf__find_by_name_kind": (_I, [_P, _S, _U]),
    "btf__name_by_offset": (_S, [_P, _U]),
    "btf__type_by_id": (_P, [_P, _U]),
    "btf__load_vmlinux_btf": (_P, []),
    "btf__free": (None, [_P]),
}


class MapShape(NamedTuple):
    """What must be equal for a pinned map to serve a program; `max_entries` apart, which can be changed."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class _Library:
    """The shared library, opened once, and what it has printed since `start_log`."""

    def __init__(self) -> None:
        try:
            self.so = ctypes.CDLL("libbpf.so.1", use_errno=True)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self.so, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as e:
            raise Refused(f"libbpf.so.1 cannot be used: {e}. Install libbpf 1.0 or later (Debian: libbpf1)") from e
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._vsnprintf.argtypes = [_P, ctypes.c_size_t, _P, _P]
        self._lines: list[str] = []
        self._print = _PRINT(self._on_print)  # kept: libbpf calls it for as long as the process lives
        self.so.libbpf_set_print(ctypes.cast(self._print, _P))

    def _on_print(self, level: int, text: int, arguments: int) -> int:
        # A va_list is handed on as the pointer it is passed as, by every ABI this runs on.
        if level < _DEBUG:
            line = ctypes.create_string_buffer(_LOG_SIZE)
            self._vsnprintf(line, _LOG_SIZE, text, arguments)
            self._lines.append(line.value.decode(errors="replace"))
        return 0

    def start_log(self) -> None:
        self._lines.clear()

    def log(self) -> str:
        """The end of what was printed: where the verifier gives its reason."""
        text = "".join(self._lines).strip()
        return text if len(text) <= _LOG_SHOWN else "..." + text[-_LOG_SHOWN:]


_loaded: list[_Library] = []


def _library() -> _Library:
    if not _loaded:
        _loaded.append(_Library())
    return _loaded[0]


def version() -> str:
    """ "v1.1"; Refused where there is no usable libbpf."""
    return str(_library().so.libbpf_version_string().decode())


def kernel_types(names: Iterable[str], kind: int) -> list[int]:
    """The running kernel's BTF ids of these. Refused where it has no BTF, or none of a name."""
    so = _library().so
    btf = so.btf__load_vmlinux_btf()
    if not btf:
        raise Refused(f"the kernel has no BTF: {os.strerror(ctypes.get_errno())}")
    try:
        found = {name: so.btf__find_by_name_kind(btf, name.encode(), kind) for name in names}
    finally:
        so.btf__free(btf)
    for name, number in found.items():
        if number < 0:
            raise Refused(f"the kernel has no {name}")
    return list(found.values())


class Object:
    """An opened ELF object, a context manager. Descriptors it gives out die with it: duplicate what is to live on."""

    def __init__(self, path: Path) -> None:
        self._library = _library()
        self._library.start_log()
        self._so = self._library.so
        self.path = path
        self._object = self._so.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise Refused(f"{path} is no eBPF object: {os.strerror(ctypes.get_errno())}\n{self._library.log()}".strip())
        self._maps = {self._so.bpf_map__name(each).decode(): each for each in self._each_map()}

    def _each_map(self) -> Iterator[int]:
        each = self._so.bpf_object__next_map(self._object, None)
        while each:
            yield each
            each = self._so.bpf_object__next_map(self._object, each)

    @property
    def maps(self) -> frozenset[str]:
        """The names of the maps the object defines, its constants (".rodata") left out."""
        return frozenset(name for name in self._maps if "." not in name)

    def shape(self, name: str) -> MapShape:
        each = self._maps[name]
        return MapShape(
            self._so.bpf_map__type(each),
            self._so.bpf_map__key_size(each),
            self._so.bpf_map__value_size(each),
            self._so.bpf_map__max_entries(each),
            self._so.bpf_map__map_flags(each),
        )

    def resize(self, name: str, max_entries: int) -> None:
        """Before `load`."""
        self._check(self._so.bpf_map__set_max_entries(self._maps[name], max_entries), f"resize {name}")

    def reuse(self, name: str, fd: int) -> None:
        """Before `load`: use this existing map. The descriptor is duplicated."""
        self._check(self._so.bpf_map__reuse_fd(self._maps[name], fd), f"reuse {name}")

    def set_constants(self, values: Mapping[str, int]) -> None:
        """Before `load`: what the object's constants (const volatile) are, each by its name. Refused where the object
        has others."""
        name = next(name for name in self._maps if name.endswith(_CONSTANTS))
        size = ctypes.c_size_t()
        content = self._so.bpf_map__initial_value(self._maps[name], ctypes.byref(size))
        places = self._constants()
        if places.keys() != values.keys():
            has, given = (", ".join(sorted(each)) or "none" for each in (places, values))
            raise Refused(f"{self.path} has the constants {has}, not {given}: it was built from other sources")
        for each, value in values.items():
            offset, length = places[each]
            ctypes.memmove(content + offset, int(value).to_bytes(length, sys.byteorder), length)

    def _constants(self) -> dict[str, tuple[int, int]]:
        """Offset and size of each, as the object's BTF says (struct btf_type and btf_var_secinfo of linux/btf.h)."""
        btf = self._so.bpf_object__btf(self._object)
        section = self._so.btf__find_by_name_kind(btf, _CONSTANTS.encode(), _DATASEC)
        self._check(section, f"find the constants of {self.path.name}")
        head = self._so.btf__type_by_id(btf, section)
        _, info, _ = _BTF_TYPE.unpack(ctypes.string_at(head, _BTF_TYPE.size))
        found = {}
        for variable, offset, size in _BTF_PLACE.iter_unpack(
            ctypes.string_at(head + _BTF_TYPE.size, (info & 0xFFFF) * _BTF_PLACE.size)
        ):
            name, _, _ = _BTF_TYPE.unpack(ctypes.string_at(self._so.btf__type_by_id(btf, variable), _BTF_TYPE.size))
            found[self._so.btf__name_by_offset(btf, name).decode()] = offset, size
        return found

    def load(self, programs: Collection[str] | None = None) -> None:
        """All programs, or those of these names. Refused, with the verifier's log, where the kernel refuses one."""
        each = self._so.bpf_object__next_program(self._object, None)
        while each:
            name = self._so.bpf_program__name(each).decode()
            wanted = programs is None or name in programs
            self._check(self._so.bpf_program__set_autoload(each, wanted), f"choose {name}")
            each = self._so.bpf_object__next_program(self._object, each)
        self._check(self._so.bpf_object__load(self._object), f"load {self.path.name}")

    def map_fd(self, name: str) -> int:
        return int(self._so.bpf_map__fd(self._maps[name]))

    def program_fd(self, name: str) -> int:
        program = self._so.bpf_object__find_program_by_name(self._object, name.encode())
        if not program:
            raise Refused(f"{self.path} has no program {name}: it was built from other sources")
        return int(self._so.bpf_program__fd(program))

    def close(self) -> None:
        if self._object:
            self._so.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, result: int, doing: str) -> None:
        if result < 0:
            raise Refused(f"cannot {doing}: {os.strerror(-result)}\n{self._library.log()}".strip())
