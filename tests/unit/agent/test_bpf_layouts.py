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
    LB_CLUSTERS,
    LB_FULL,
    MEANT_WAYS,
    AddressKey,
    AffinityKey,
    AffinityValue,
    Allowed,
    BackendValue,
    CidrKey,
    ConfigFlag,
    CtDirect,
    CtEntry,
    CtFlag,
    CtFragment,
    CtFragmentKey,
    CtKey,
    Event,
    EventsWanted,
    EventType,
    Evicted,
    GroupsKey,
    IpcacheValue,
    LbGroup,
    MeantValue,
    NodeConfig,
    NodeIdentity,
    Number,
    PodDevice,
    PodSource,
    Reason,
    Reduced,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SourceRangeKey,
    Way,
    XdpDevice,
    XdpMode,
    as_active,
    in_state,
    meant_sockets,
    pack,
    pack_backends,
    pack_cidr,
    pack_evicted,
    pack_factors,
    pack_service_key,
    pack_slots,
    pack_source_range,
    unpack,
    unpack_each,
)
from clustermesh.address import Address, Prefix, from_int, parse, parse_prefix
from clustermesh.mesh.resolve import Backends, Kind, Scope, ServiceFlag
from clustermesh.model import Algorithm, BackendState

HEADER = Path(__file__).parents[3] / "bpf" / "layouts.h"
STRUCTS: Mapping[str, type[Any]] = {
    "lb_service_key": ServiceKey,
    "lb_service": ServiceValue,
    "lb_groups_key": GroupsKey,
    "lb_group": LbGroup,
    "lb_slots_key": SlotsKey,
    "lb_backend": BackendValue,
    "lb_affinity_key": AffinityKey,
    "lb_affinity": AffinityValue,
    "lb_source_range_key": SourceRangeKey,
    "lb_meant": MeantValue,
    "lb_reverse_key": ReverseKey,
    "lb_reverse": ReverseValue,
    "ipcache_cidr_key": CidrKey,
    "ipcache_entry": IpcacheValue,
    "ct_key": CtKey,
    "ct_entry": CtEntry,
    "ct_direct": CtDirect,
    "ct_fragment_key": CtFragmentKey,
    "ct_fragment": CtFragment,
    "node_config": NodeConfig,
    "pod_device": PodDevice,
    "event": Event,
    "events_wanted": EventsWanted,
    "pod_source": PodSource,
    "xdp_device": XdpDevice,
}
ARRAYS: Mapping[str, tuple[type[Any], int]] = {  # of what, and how many
    "lb_groups": (LbGroup, 8),
    "lb_slots": (Number, 16),
    "lb_clusters": (Reduced, 512),
    "lb_evicted": (Evicted, 512),
    "lb_maglev": (Number, 1021),
}
ENUMS: Mapping[str, tuple[type[IntEnum], str]] = {
    "service_kind": (Kind, "KIND_"),
    "service_scope": (Scope, "SCOPE_"),
    "service_flag": (ServiceFlag, "SERVICE_"),
    "algorithm": (Algorithm, "ALGORITHM_"),
    "backend_state": (BackendState, "BACKEND_"),
    "node_identity": (NodeIdentity, "IDENTITY_"),
    "reason": (Reason, "REASON_"),
    "ct_flag": (CtFlag, "CT_"),
    "way": (Way, "WAY_"),
    "config_flag": (ConfigFlag, "CONFIG_"),
    "event_type": (EventType, "EVENT_"),
    "xdp_mode": (XdpMode, "XDP_"),
}
CONSTANTS = (
    "LB_FULL",
    "LB_CLUSTERS",
    "GROUPS_PER_BLOCK",
    "SLOTS_PER_BLOCK",
    "MAGLEV_PLACES",
    "MEANT_SETS",
    "MEANT_WAYS",
    "SWEEP_HEAD",
    "SWEEP_MOST",
)
INTERNAL = {("lb_meant", "suspected")}  # fields that programs alone read and write


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
            name: [
                Field(kind, field, *answers[f"{name}.{field}"])
                for kind, field in fields
                if (name, field) not in INTERNAL
            ]
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


def _of(field: Field, number: int) -> Any:
    """`number` as this field has it."""
    if field.kind == "address":
        return from_int(number)
    return number if field.size <= 8 else number.to_bytes(field.size)


def test_every_struct_of_the_header_has_its_tuple(compiled: Compiled) -> None:
    assert set(compiled.fields) == {*STRUCTS, *ARRAYS, "lb_meant_set"}
    for name, kind in STRUCTS.items():
        assert tuple(field.name for field in compiled.fields[name] if field.name != "pad") == kind._fields, name


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_where_the_compiler_has_it(compiled: Compiled, name: str) -> None:
    """One field is set at a time: its bytes are at its offset in its order, and all others are zero."""
    fields = [field for field in compiled.fields[name] if field.name != "pad"]
    zero = STRUCTS[name](*(_of(field, 0) for field in fields))
    assert pack(zero) == bytes(compiled.sizes[name])
    for field in fields:
        pattern = bytes(range(1, field.size + 1))
        packed = pack(zero._replace(**{field.name: _of(field, int.from_bytes(pattern, "big"))}))
        end = field.offset + field.size
        is_bytes = field.kind.startswith("__be") or field.kind == "address" or field.size > 8
        in_order = is_bytes or sys.byteorder == "big"
        assert packed[field.offset : end] == (pattern if in_order else pattern[::-1]), field
        assert not any(packed[: field.offset] + packed[end:]), field


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_is_its_elements_side_by_side(compiled: Compiled, name: str) -> None:
    kind, count = ARRAYS[name]
    (field,) = compiled.fields[name]
    assert (field.offset, field.size) == (0, compiled.sizes[name])
    assert field.size == count * len(pack(kind(*[0] * len(kind._fields))))


def test_what_sockets_mean_is_read_from_where_it_is_in_its_sets(compiled: Compiled) -> None:
    cookies, meant = compiled.fields["lb_meant_set"]
    assert (cookies.offset, cookies.size) == (0, 8 * MEANT_WAYS)
    assert (meant.offset, meant.size) == (cookies.size, MEANT_WAYS * compiled.sizes["lb_meant"])
    sets, wanted = b"", {}
    for number in range(3):
        values = [MeantValue(ONE, parse("fd00::1"), number, way, 7, 6) for way in range(MEANT_WAYS)]
        taken = [(number << 40 | 5 + way) * (way != number) for way in range(MEANT_WAYS)]
        sets += b"".join(each.to_bytes(8, sys.byteorder) for each in taken) + b"".join(map(pack, values))
        wanted |= {cookie: value for cookie, value in zip(taken, values, strict=True) if cookie}
    assert meant_sockets(sets) == wanted
    assert len(sets) == 3 * compiled.sizes["lb_meant_set"]


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
    assert pack(Number(0x01020304)) == (0x01020304).to_bytes(4, sys.byteorder)
    assert pack(AddressKey(parse("fd00::1"))) == parse("fd00::1")


_U8, _U16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
_U32, _U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, 2**64 - 1)
_ADDRESS = st.binary(min_size=16, max_size=16).map(Address)
_ANY = st.one_of(
    st.builds(ServiceKey, _ADDRESS, _U16, _U8, _U8),
    st.builds(ServiceValue, _U32, _U32, _U32, _U16, _U16, _U8, _U8, _U8),
    st.builds(GroupsKey, _U32, _U16),
    st.builds(LbGroup, _U32, _U16, _U16, _U8),
    st.builds(SlotsKey, _U32, _U16, _U16),
    st.builds(Number, _U32),
    st.builds(BackendValue, _ADDRESS, _U16, _U8, _U8, _U16, _U16, _U16),
    st.builds(Reduced, _U16),
    st.builds(AffinityKey, _ADDRESS, _U32),
    st.builds(AffinityValue, _U64, _U32, _U16, _U16),
    st.builds(SourceRangeKey, st.integers(0, 160), _U32, _ADDRESS),
    st.builds(Allowed, _U8),
    st.builds(MeantValue, _ADDRESS, _ADDRESS, _U16, _U16, _U32, _U8),
    st.builds(ReverseKey, _U64, _ADDRESS, _U16),
    st.builds(ReverseValue, _ADDRESS, _U16, _U16),
    st.builds(AddressKey, _ADDRESS),
    st.builds(CidrKey, st.integers(0, 128), _ADDRESS),
    st.builds(IpcacheValue, _U32, _ADDRESS, _U8, _U8),
    st.builds(
        Event,
        *[_U64] * 2,
        *[_ADDRESS] * 4,
        *[_U16] * 4,
        *[_U32] * 3,
        _U16,
        *[_U8] * 4,
        st.binary(min_size=64, max_size=64),
    ),
    st.builds(EventsWanted, _U64, _U32),
)


@given(_ANY)
def test_what_is_packed_is_unpacked_again(value: Any) -> None:
    assert unpack(type(value), pack(value)) == value


ONE, SHORT = parse("10.0.0.1"), Address(bytes(4))


@pytest.mark.parametrize(
    "value",
    [
        ServiceKey(SHORT, 0, 0, 0),
        ServiceKey(ONE, 65536, 0, 0),
        ServiceKey(ONE, 0, 256, 0),
        ServiceKey(ONE, 0, 0, 256),
        ServiceValue(1, groups=65536),
        BackendValue(ONE, -1, 0),
        BackendValue(SHORT, 0, 0),
        Number(1 << 32),
        ReverseKey(0, SHORT, 0),
        AddressKey(SHORT),
        IpcacheValue(0, SHORT),
    ],
)
def test_what_does_not_fit_is_never_cut(value: Any) -> None:
    with pytest.raises((OverflowError, struct.error)):
        pack(value)


@given(_ADDRESS, _U16, _U8, _U8)
def test_a_services_key_is_packed_as_any_tuple(address: Address, port: int, protocol: int, scope: int) -> None:
    assert pack_service_key(address, port, protocol, scope) == pack(ServiceKey(address, port, protocol, scope))


def test_a_services_key_with_a_short_address_is_refused() -> None:
    with pytest.raises(OverflowError, match="no address"):
        pack_service_key(SHORT, 80, 6, 0)


def test_a_cidr_is_a_prefix_as_the_kernel_orders_it() -> None:
    assert unpack(CidrKey, pack_cidr(parse_prefix("10.1.0.0/16"))) == CidrKey(112, parse("10.1.0.0"))


def test_a_cidr_with_host_bits_is_refused() -> None:
    with pytest.raises(OverflowError, match="beyond its length"):
        pack_cidr(Prefix(ONE, 120))


def test_a_source_range_is_a_prefix_behind_its_service() -> None:
    for written in ("10.1.0.0", "10.1.2.3"):
        key = unpack(SourceRangeKey, pack_source_range(7, Prefix(parse(written), 96 + 16)))
        assert key == SourceRangeKey(32 + 96 + 16, 7, parse("10.1.0.0"))


def test_backends_are_packed_as_active_ones_and_put_in_a_state() -> None:
    backends = [Backends((ONE,), 80), Backends((ONE,), 81, BackendState.TERMINATING)]
    values = pack_backends(backends, 6, 3)
    assert values == [pack(BackendValue(ONE, port, 6, cluster_id=3)) for port in (80, 81)]
    for state in BackendState:
        assert in_state(values[0], state) == pack(BackendValue(ONE, 80, 6, state, cluster_id=3))
        assert as_active(in_state(values[0], state)) == values[0]


@given(st.lists(st.builds(Number, _U32), max_size=40))
def test_the_last_block_is_filled_up_with_its_first_backend(ids: list[Number]) -> None:
    blocks = [unpack_each(Number, value) for value in pack_slots([*map(pack, ids)])]
    assert all(len(block) == 16 for block in blocks)
    slots = [each for block in blocks for each in block]
    assert slots[: len(ids)] == ids
    assert len(slots) - len(ids) < 16
    assert all(each == blocks[-1][0] for each in slots[len(ids) :])


def test_clusters_that_are_not_named_have_their_whole_share() -> None:
    reduced = unpack_each(Reduced, pack_factors({1: 0, 2: 0.5, 511: 1}))
    assert len(reduced) == LB_CLUSTERS
    assert {number: part for number, (part,) in enumerate(reduced) if part} == {1: LB_FULL, 2: LB_FULL - 32768}


def test_clusters_that_are_named_are_evicted_and_no_other() -> None:
    evicted = unpack_each(Evicted, pack_evicted({1, 511}))
    assert len(evicted) == LB_CLUSTERS
    assert [number for number, (is_evicted,) in enumerate(evicted) if is_evicted] == [1, 511]
