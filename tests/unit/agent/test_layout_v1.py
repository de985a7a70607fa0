"""Entries of the layout before this one, turned into ours and back; a service laid out as it was then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bpf.layouts import (
    BackendValue,
    CidrKey,
    GroupsKey,
    IpcacheValue,
    LbGroup,
    Number,
    Reduced,
    ReverseKey,
    ReverseValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    pack,
)
from agent.bpf.pins import Translation
from agent.older import downgrade, layout_v1
from clustermesh.address import Address, masked, parse

ports = st.integers(0, 65535)
ipv4s = st.binary(min_size=4, max_size=4).map(lambda last: Address(parse("0.0.0.0")[:12] + last))
values = st.builds(lambda identity, tunnel: IpcacheValue(identity, tunnel, 255), st.integers(0, 1 << 24), ipv4s)
KINDS: dict[
    str,
    tuple[
        Callable[[bytes, bytes], tuple[bytes, bytes] | None],
        Translation,
        Callable[[], st.SearchStrategy[tuple[bytes, bytes]]],
    ],
] = {
    "reverse": (
        layout_v1.reverse_to_v1,
        layout_v1.reverse_to_v2,
        lambda: st.tuples(
            st.builds(ReverseKey, st.integers(0, 2**64 - 1), ipv4s, ports).map(pack),
            st.builds(ReverseValue, ipv4s, ports, st.just(0)).map(pack),
        ),
    ),
    "address": (
        layout_v1.address_to_v1,
        layout_v1.address_to_v2,
        lambda: st.tuples(ipv4s, values.map(pack)),
    ),
    "cidr": (
        layout_v1.cidr_to_v1,
        layout_v1.cidr_to_v2,
        lambda: st.tuples(
            st.builds(lambda bits, ip: pack(CidrKey(bits, masked(ip, bits))), st.integers(96, 128), ipv4s),
            values.map(pack),
        ),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_of_ipv6_stays_behind(kind: str) -> None:
    address = parse("fd01::5")
    there = {"reverse": pack(ReverseKey(7, address, 80)), "address": address, "cidr": pack(CidrKey(128, address))}
    assert KINDS[kind][0](there[kind], pack(ReverseValue(address, 80))) is None


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_goes_back_a_layout_and_comes_again_is_the_same(kind: str, data: st.DataObject) -> None:
    to_v1, to_v2, entries = KINDS[kind]
    key, value = data.draw(entries())
    shape = {"reverse": "lb4_reverse_sk", "address": "ipcache4", "cidr": "ipcache4_cidr"}[kind]
    older = to_v1(key, value)
    assert older is not None
    assert [len(part) for part in older] == [layout_v1.SHAPES[shape].key_size, layout_v1.SHAPES[shape].value_size]
    if kind == "reverse" or any(older[1][4:8]):  # a tunnel to 0.0.0.0 is none
        assert to_v2(*older) == (key, value)


def packed(tables: Mapping[str, Mapping[Any, list[Any]]]) -> dict[str, dict[bytes, bytes]]:
    """Maps as they are dumped."""
    return {
        name: {pack(key): b"".join(map(pack, values)) for key, values in entries.items()}
        for name, entries in tables.items()
    }


def test_a_service_becomes_slots_of_one_map_without_clusters_that_are_out() -> None:
    tables = {
        "lb_services": {
            ServiceKey(parse("10.96.0.10"), 80, 6): [ServiceValue(7, 20, groups=2)],
            ServiceKey(parse("fd96::10"), 80, 6): [ServiceValue(8, 1, groups=1)],
        },
        "lb_groups": {GroupsKey(7): [LbGroup(18, 1, 18), LbGroup(20, 2, 2), *[LbGroup(20)] * 6]},
        "lb_slots": {
            SlotsKey(7, 0, 0): list(map(Number, range(1, 17))),
            SlotsKey(7, 0, 1): list(map(Number, (17, 18, *[17] * 14))),
            SlotsKey(7, 1, 0): list(map(Number, (19, 20, *[19] * 14))),
        },
        "lb_clusters": {Number(0): [Reduced(0)] * 512},
    }
    older = downgrade.services_of(packed(tables))
    where = bytes([10, 96, 0, 10]), (80).to_bytes(2, "big")
    assert older.pop(layout_v1.SERVICE_KEY.pack(*where, 0, 6)) == layout_v1.SERVICE.pack(0, 20, 0)
    assert older == {
        layout_v1.SERVICE_KEY.pack(*where, slot, 6): layout_v1.SERVICE.pack(slot, 0, 0) for slot in range(1, 21)
    }
    tables["lb_clusters"] = {Number(0): [Reduced(0), Reduced(65535), *[Reduced(0)] * 510]}
    assert set(downgrade.services_of(packed(tables)).values()) == {
        layout_v1.SERVICE.pack(*numbers) for numbers in ((0, 2, 0), (19, 0, 0), (20, 0, 0))
    }


def test_backends_keep_their_numbers_and_those_of_ipv6_are_left_out() -> None:
    tables = {
        "lb_backends": {
            Number(3): [BackendValue(parse("10.1.0.5"), 8080, 6, cluster_id=2)],
            Number(4): [BackendValue(parse("fd01::5"), 8080, 6, cluster_id=2)],
        }
    }
    backend = layout_v1.BACKEND.pack(bytes([10, 1, 0, 5]), (8080).to_bytes(2, "big"), 6, 0, 2)
    assert downgrade.backends_of(packed(tables)["lb_backends"]) == {pack(Number(3)): backend}
