"""Keys and values as Python packs them are what the C compiler makes of bpf/layouts.h, field by field."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf import layouts
from agent.bpf.layouts import (
    AddressKey,
    Backend,
    BackendKey,
    BackendState,
    CidrKey,
    IpcacheValue,
    NodeIdentity,
    Reason,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
)

HEADER = Path(__file__).parents[3] / "bpf" / "layouts.h"
STRUCTS: Mapping[str, type[Any]] = {
    "lb4_service_key": ServiceKey,
    "lb4_service": ServiceValue,
    "lb4_backend": Backend,
    "lb4_reverse_key": ReverseKey,
    "lb4_reverse": ReverseValue,
    "ipcache4_cidr_key": CidrKey,
    "ipcache4_entry": IpcacheValue,
}
RENAMED = {("lb4_service", "count"): "slots"}  # a tuple has a method `count`
ENUMS: Mapping[str, tuple[type[IntEnum], str]] = {
    "backend_state": (BackendState, "BACKEND_"),
    "node_identity": (NodeIdentity, "IDENTITY_"),
    "reason": (Reason, "REASON_"),
}
_UNSIGNED = {"__u8": 1, "__u16": 2, "__be16": 2, "__u32": 4, "__be32": 4, "__u64": 8}


class Field(NamedTuple):
    kind: str
    name: str
    offset: int
    size: int


class Compiled(NamedTuple):
    """What the compiler says of the header."""

    fields: dict[str, list[Field]]
    sizes: dict[str, int]
    enums: dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    structs = {
        name: re.findall(r"(\w+) (\w+)(?:\[\d+\])?;", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.S)
    }
    enums = {name: re.findall(r"\b[A-Z]\w+", body) for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, re.S)}
    answers = _run(tmp_path_factory.mktemp("layouts"), structs, enums)
    return Compiled(
        {
            name: [Field(kind, field, *answers[f"{name}.{field}"]) for kind, field in fields]
            for name, fields in structs.items()
        },
        {name: answers[name][0] for name in structs},
        {name: {member: answers[member][0] for member in members} for name, members in enums.items()},
    )


def _run(folder: Path, structs: Mapping[str, Any], enums: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Compile and run a program that prints offset and size of each field, size of each struct, value of each name."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("a C compiler is missing: layouts cannot be compared")
    lines = [f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{']
    for name, fields in structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for _, field in fields:
            place = f"offsetof(struct {name}, {field}), sizeof(((struct {name} *)0)->{field})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
    lines += [f'printf("{member} %d\\n", {member});' for members in enums.values() for member in members]
    (folder / "layouts.c").write_text("\n".join([*lines, "return 0; }"]))
    program = folder / "layouts"
    subprocess.run([compiler, "-Wall", "-Werror", "-o", program, folder / "layouts.c"], check=True, timeout=60)
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10).stdout
    return {name: tuple(map(int, numbers)) for name, *numbers in map(str.split, printed.splitlines())}


def test_every_struct_of_the_header_has_its_tuple(compiled: Compiled) -> None:
    assert set(compiled.fields) == set(STRUCTS)
    for name, fields in compiled.fields.items():
        named = [RENAMED.get((name, field.name), field.name) for field in fields if field.name != "pad"]
        assert tuple(named) == STRUCTS[name]._fields, name


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_where_the_compiler_has_it(compiled: Compiled, name: str) -> None:
    """One field is set at a time: its bytes are at its offset in its order, and all others are zero."""
    kind = STRUCTS[name]
    zero = kind(*[0] * len(kind._fields))
    assert zero.pack() == bytes(compiled.sizes[name])
    for field in compiled.fields[name]:
        if field.name == "pad":
            continue
        size = _UNSIGNED[field.kind]
        assert size == field.size
        value = int.from_bytes(bytes(range(1, size + 1)), "big")
        changed = {RENAMED.get((name, field.name), field.name): value}
        if kind is CidrKey:  # no address without a prefix that covers it, no prefix beyond 32
            changed = {"prefix_length": 32} | changed if field.name == "address" else {"prefix_length": 32}
        packed = zero._replace(**changed).pack()
        order = "big" if field.kind.startswith("__be") else sys.byteorder
        stored = packed[field.offset : field.offset + size]
        assert int.from_bytes(stored, order) == changed[RENAMED.get((name, field.name), field.name)], field
        others = packed[: field.offset] + packed[field.offset + size :]
        assert not any(others) or kind is CidrKey, field


@pytest.mark.parametrize("name", ENUMS)
def test_every_name_has_the_number_it_has_in_c(compiled: Compiled, name: str) -> None:
    kind, prefix = ENUMS[name]
    values = dict(compiled.enums[name])
    if kind is Reason:
        assert values.pop("REASONS") == len(Reason)
    assert {member.removeprefix(prefix): value for member, value in values.items()} == {
        member.name: member.value for member in kind
    }


def test_single_numbers_as_keys_are_four_bytes() -> None:
    assert BackendKey(0x01020304).pack() == (0x01020304).to_bytes(4, sys.byteorder)
    assert AddressKey(0x01020304).pack() == bytes([1, 2, 3, 4])


_U8, _U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
_U32, _U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1)
_ANY = st.one_of(
    st.builds(ServiceKey, _U32, _U16, _U16, _U8),
    st.builds(ServiceValue, _U32, _U16, _U16),
    st.builds(BackendKey, _U32),
    st.builds(Backend, _U32, _U16, _U8, _U8, _U16),
    st.builds(ReverseKey, _U64, _U32, _U16),
    st.builds(ReverseValue, _U32, _U16),
    st.builds(AddressKey, _U32),
    st.builds(lambda length, address: CidrKey(length, address & ~(0xFFFFFFFF >> length)), st.integers(0, 32), _U32),
    st.builds(IpcacheValue, _U32, _U32, _U8),
)


@given(_ANY)
def test_what_is_packed_is_unpacked_again(value: Any) -> None:
    assert type(value).unpack(value.pack()) == value


@pytest.mark.parametrize(
    "value",
    [
        ServiceKey(1 << 32, 0, 0, 0),
        ServiceKey(0, 65536, 0, 0),
        ServiceKey(0, 0, 65536, 0),
        ServiceKey(0, 0, 0, 256),
        Backend(-1, 0, 0),
        BackendKey(1 << 32),
        CidrKey(33, 0),
        CidrKey(-1, 0),
        CidrKey(24, 0x0A000001),
    ],
)
def test_a_number_that_does_not_fit_is_never_cut(value: Any) -> None:
    with pytest.raises((OverflowError, struct.error)):
        value.pack()


def test_addresses_and_cidrs_are_read_as_people_write_them() -> None:
    assert layouts.ipv4("10.0.0.1") == 0x0A000001
    assert layouts.ipv4_text(0x0A000001) == "10.0.0.1"
    assert CidrKey.parse("10.1.0.0/16") == CidrKey(16, 0x0A010000)
    assert CidrKey.parse("0.0.0.0/0") == CidrKey(0, 0)
    for bad in ("10.1.0.1/16", "fd00::/8", "10.1.0.0/33", ""):
        with pytest.raises(ValueError, match=r"\S"):
            CidrKey.parse(bad)


def test_drops_are_told_from_other_counters() -> None:
    assert {reason for reason in Reason if reason.is_drop} == {
        Reason.DROP_NO_BACKEND,
        Reason.DROP_CLEAR_INGRESS,
        Reason.DROP_CLEAR_EGRESS,
    }
