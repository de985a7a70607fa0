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
    BackendKey,
    BackendValue,
    CidrKey,
    ClustersKey,
    ClustersValue,
    GroupsKey,
    GroupsValue,
    IpcacheValue,
    LbGroup,
    NodeIdentity,
    Reason,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from clustermesh.address import Address, from_int, masked, parse, parse_prefix
from clustermesh.mesh.resolve import Algorithm, BackendState, Kind, Scope

HEADER = Path(__file__).parents[3] / "bpf" / "layouts.h"
STRUCTS: Mapping[str, type[Any]] = {
    "lb_service_key": ServiceKey,
    "lb_service": ServiceValue,
    "lb_groups_key": GroupsKey,
    "lb_group": LbGroup,
    "lb_groups": GroupsValue,
    "lb_slots_key": SlotsKey,
    "lb_slots": SlotsValue,
    "lb_backend": BackendValue,
    "lb_clusters": ClustersValue,
    "lb_reverse_key": ReverseKey,
    "lb_reverse": ReverseValue,
    "ipcache_cidr_key": CidrKey,
    "ipcache_entry": IpcacheValue,
}
ENUMS: Mapping[str, tuple[type[IntEnum], str]] = {
    "service_kind": (Kind, "KIND_"),
    "service_scope": (Scope, "SCOPE_"),
    "algorithm": (Algorithm, "ALGORITHM_"),
    "backend_state": (BackendState, "BACKEND_"),
    "node_identity": (NodeIdentity, "IDENTITY_"),
    "reason": (Reason, "REASON_"),
}
CONSTANTS = ("LB_FULL", "LB_CLUSTERS", "GROUPS_PER_BLOCK", "SLOTS_PER_BLOCK")
_UNSIGNED = {"__u8": 1, "__u16": 2, "__be16": 2, "__u32": 4, "__be32": 4, "__u64": 8, "address": 16, "lb_group": 12}


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
        name: re.findall(r"(\w+) (\w+)(?:\[\w+\])?;", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.S)
        if name != "address"
    }
    enums = {name: re.findall(r"\b[A-Z]\w+", body) for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, re.S)}
    enums["constants"] = list(CONSTANTS)
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


def _of(kind: str, number: int) -> Any:
    """`number` as a field of this type has it."""
    if kind == "address":
        return from_int(number)
    return LbGroup.unpack(number.to_bytes(12, "big")) if kind == "lb_group" else number


def _zero(name: str, fields: list[Field]) -> Any:
    kinds = {field.name: field for field in fields}
    values = []
    for field in STRUCTS[name]._fields:
        one, places = _of(kinds[field].kind, 0), kinds[field].size // _UNSIGNED[kinds[field].kind]
        values.append(one if places == 1 else (one,) * places)
    return STRUCTS[name](*values)


def test_every_struct_of_the_header_has_its_tuple(compiled: Compiled) -> None:
    assert set(compiled.fields) == set(STRUCTS)
    for name, fields in compiled.fields.items():
        assert tuple(field.name for field in fields if field.name != "pad") == STRUCTS[name]._fields, name


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_where_the_compiler_has_it(compiled: Compiled, name: str) -> None:
    """One field is set at a time: its bytes are at its offset in its order, and all others are zero."""
    zero = _zero(name, compiled.fields[name])
    assert zero.pack() == bytes(compiled.sizes[name])
    for field in compiled.fields[name]:
        size = _UNSIGNED[field.kind]
        for place in range(0 if field.name == "pad" else field.size // size):
            pattern = bytes(range(1, size + 1))
            if STRUCTS[name] is CidrKey and field.name == "prefix_length":
                pattern = (128).to_bytes(4, "big")  # no prefix beyond
            if field.kind == "lb_group":
                pattern = LbGroup.unpack(pattern).pack()  # its padding is zero
            value: Any = _of(field.kind, int.from_bytes(pattern, "big"))
            if field.size > size:
                value = tuple(value if n == place else old for n, old in enumerate(getattr(zero, field.name)))
            changed = {field.name: value}
            if STRUCTS[name] is CidrKey and field.name == "address":  # no address without a prefix that covers it
                changed["prefix_length"] = 128
            packed = zero._replace(**changed).pack()
            at = field.offset + place * size
            in_order = field.kind.startswith("__be") or field.kind in ("address", "lb_group")
            assert packed[at : at + size] == (pattern if in_order or sys.byteorder == "big" else pattern[::-1]), field
            others = packed[:at] + packed[at + size :]
            assert not any(others) or "prefix_length" in changed, field


@pytest.mark.parametrize("name", ENUMS)
def test_every_name_has_the_number_it_has_in_c(compiled: Compiled, name: str) -> None:
    kind, prefix = ENUMS[name]
    values = dict(compiled.enums[name])
    if kind is Reason:
        assert values.pop("REASONS") == len(Reason)
    assert {member.removeprefix(prefix): value for member, value in values.items()} == {
        member.name: member.value for member in kind
    }


def test_every_constant_is_what_it_is_in_c(compiled: Compiled) -> None:
    assert {name: getattr(layouts, name) for name in CONSTANTS} == compiled.enums["constants"]


def test_single_numbers_as_keys_are_four_bytes_and_addresses_are_themselves() -> None:
    for kind in (BackendKey, ClustersKey):
        assert kind(0x01020304).pack() == (0x01020304).to_bytes(4, sys.byteorder)
    assert AddressKey(parse("fd00::1")).pack() == parse("fd00::1")


_U8, _U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
_U32, _U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1)
_ADDRESS = st.binary(min_size=16, max_size=16).map(Address)
_ANY = st.one_of(
    st.builds(ServiceKey, _ADDRESS, _U16, _U8, _U8),
    st.builds(ServiceValue, _U32, _U32, _U32, _U16, _U16, _U8, _U8, _U8),
    st.builds(GroupsKey, _U32, _U16),
    st.builds(GroupsValue, st.tuples(*[st.builds(LbGroup, _U32, _U16, _U16, _U8)] * 8)),
    st.builds(SlotsKey, _U32, _U16, _U16),
    st.builds(SlotsValue, st.tuples(*[_U32] * 16)),
    st.builds(BackendKey, _U32),
    st.builds(BackendValue, _ADDRESS, _U16, _U8, _U8, _U16, _U16, _U16),
    st.builds(ClustersKey, _U32),
    st.builds(ClustersValue, st.tuples(_U16, _U16).map(lambda ends: (*ends, *[0] * 510))),
    st.builds(ReverseKey, _U64, _ADDRESS, _U16),
    st.builds(ReverseValue, _ADDRESS, _U16),
    st.builds(AddressKey, _ADDRESS),
    st.builds(lambda length, address: CidrKey(length, masked(address, length)), st.integers(0, 128), _ADDRESS),
    st.builds(IpcacheValue, _U32, _ADDRESS, _U8, _U8),
)


@given(_ANY)
def test_what_is_packed_is_unpacked_again(value: Any) -> None:
    assert type(value).unpack(value.pack()) == value


ONE, SHORT = parse("10.0.0.1"), Address(bytes(4))


@pytest.mark.parametrize(
    "value",
    [
        ServiceKey(SHORT, 0, 0, 0),
        ServiceKey(ONE, 65536, 0, 0),
        ServiceKey(ONE, 0, 256, 0),
        ServiceKey(ONE, 0, 0, 256),
        ServiceValue(1, groups=65536),
        GroupsValue((LbGroup(0),) * 7),
        SlotsValue((0,) * 15),
        ClustersValue((0,) * 511),
        BackendValue(ONE, -1, 0),
        BackendValue(SHORT, 0, 0),
        BackendKey(1 << 32),
        ReverseKey(0, SHORT, 0),
        AddressKey(SHORT),
        IpcacheValue(0, SHORT),
        CidrKey(129, ONE),
        CidrKey(-1, ONE),
        CidrKey(120, ONE),
    ],
)
def test_what_does_not_fit_is_never_cut(value: Any) -> None:
    with pytest.raises((OverflowError, struct.error)):
        value.pack()


def test_a_cidr_is_a_prefix_as_the_kernel_orders_it() -> None:
    assert CidrKey.of(parse_prefix("10.1.0.0/16")) == CidrKey(112, parse("10.1.0.0"))


def test_drops_are_told_from_other_counters() -> None:
    assert {reason for reason in Reason if reason.is_drop} == {
        Reason.DROP_NO_BACKEND,
        Reason.DROP_CLEAR_INGRESS,
        Reason.DROP_CLEAR_EGRESS,
    }
