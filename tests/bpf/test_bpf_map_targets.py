"""Map targets on real maps, beside a stupid twin: a dict. Also what happens when a map is full, huge or gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bpf.layouts import (
    AddressKey,
    BackendKey,
    BackendValue,
    CidrKey,
    ClustersKey,
    GroupsKey,
    GroupsValue,
    IpcacheValue,
    LbGroup,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from agent.bpf.loader import Datapath
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.targets import maps
from agent.targets.maps import CHUNK, MapTarget
from clustermesh.address import Address, from_int, masked, parse
from clustermesh.errors import ApplyError, Unavailable

pytestmark = pytest.mark.root

_U8, _U16, _U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
_FEW = st.integers(0, 5)
_ADDRESS = st.binary(min_size=16, max_size=16).map(Address)
_FEW_ADDRESSES = st.integers(0, 20).map(from_int)


def _cidr(length: int, address: int) -> CidrKey:
    return CidrKey(length, masked(from_int(address), length))


# Few keys, so that entries are met again; whole ranges for the values.
_IPCACHE = st.builds(IpcacheValue, _U32, _ADDRESS, _U8, _U8)
_KINDS = {
    "lb_services": (
        st.builds(ServiceKey, _FEW_ADDRESSES, _FEW, _U8, _U8),
        st.builds(ServiceValue, _U32, _U32, _U32, _U16, _U16, _U8, _U8, _U8),
    ),
    "lb_groups": (
        st.builds(GroupsKey, _FEW, _FEW),
        st.builds(GroupsValue, st.tuples(*[st.builds(LbGroup, _U32, _U16, _U16, _U8)] * 8)),
    ),
    "lb_slots": (st.builds(SlotsKey, _FEW, _FEW, _FEW), st.builds(SlotsValue, st.tuples(*[_U32] * 16))),
    "lb_backends": (
        st.builds(BackendKey, st.integers(0, 20)),
        st.builds(BackendValue, _ADDRESS, _U16, _U8, _U8, _U16, _U16, _U16),
    ),
    "ipcache": (st.builds(AddressKey, _FEW_ADDRESSES), _IPCACHE),
    "ipcache_cidr": (st.builds(_cidr, st.integers(0, 128), st.integers(0, 3).map(lambda n: n << 124 | n)), _IPCACHE),
}
_TYPES = {
    "lb_services": (ServiceKey, ServiceValue),
    "lb_groups": (GroupsKey, GroupsValue),
    "lb_slots": (SlotsKey, SlotsValue),
    "lb_backends": (BackendKey, BackendValue),
    "ipcache": (AddressKey, IpcacheValue),
    "ipcache_cidr": (CidrKey, IpcacheValue),
}


def _key(number: int) -> AddressKey:
    return AddressKey(from_int(number))


@contextmanager
def _scratch(kind: MapType, size: int) -> Iterator[MapTarget[AddressKey, IpcacheValue]]:
    fd = map_create(kind, 16, 24, size, NO_PREALLOC if kind == MapType.HASH else 0)
    try:
        yield MapTarget("scratch", fd, AddressKey, IpcacheValue)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", _KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_map_behaves_as_a_dict(datapath: Datapath, name: str, data: st.DataObject) -> None:
    key, value = _KINDS[name]
    target: MapTarget = MapTarget(name, datapath.maps[name], *_TYPES[name])  # type: ignore[type-arg, type-var]

    async def live() -> None:
        await target.delete(await target.dump())
        twin: dict[object, object] = {}
        for _ in range(3):
            entries = data.draw(st.dictionaries(key, value, max_size=12))
            await target.upsert(entries)
            twin |= entries
            assert await target.dump() == twin
            gone = data.draw(st.lists(key, max_size=12))
            await target.delete(gone)
            twin = {each: twin[each] for each in twin if each not in gone}
            assert await target.dump() == twin

    asyncio.run(live())


def test_ten_thousand_services_go_in_and_come_out(datapath: Datapath) -> None:
    target = maps.services(datapath)
    entries = {ServiceKey(from_int(n), n % 65536, 6): ServiceValue(n, n % 100) for n in range(10_000)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete([*list(entries)[::2], ServiceKey(from_int(1), 1, 17)])
        assert await target.dump() == dict(list(entries.items())[1::2])

    asyncio.run(live())


def test_ten_thousand_cidrs_come_out_of_the_trie(datapath: Datapath) -> None:
    target = maps.cidrs(datapath)
    entries = {_cidr(120, n << 8): IpcacheValue(n) for n in range(9_999)} | {_cidr(0, 0): IpcacheValue(2)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete(entries)
        assert await target.dump() == {}

    asyncio.run(live())


def test_a_bucket_larger_than_a_page_is_read_whole() -> None:
    """A map of 16 entries that is read by pages of one: two keys of one bucket do not fit into the first page."""
    with _scratch(MapType.HASH, 16) as target:
        entries = {_key(n): IpcacheValue(n) for n in range(16)}
        asyncio.run(target.upsert(entries))
        target.page_size = 1
        assert asyncio.run(target.dump()) == entries


def test_a_full_map_says_which_keys_are_missing_and_keeps_the_rest() -> None:
    with _scratch(MapType.HASH, 4) as target:
        entries = {_key(n): IpcacheValue(n) for n in range(6)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert raised.value.failed == {
            _key(n): "the map scratch is full: all of its 4 entries are taken" for n in (4, 5)
        }
        # What is there already can still be changed, also behind keys that find no room.
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert({_key(9): IpcacheValue(9), _key(0): IpcacheValue(77)}))
        assert list(raised.value.failed) == [_key(9)]
        expected = {_key(n): IpcacheValue(n) for n in range(1, 4)} | {_key(0): IpcacheValue(77)}
        assert asyncio.run(target.dump()) == expected


def test_a_thousand_entries_too_many_are_each_named() -> None:
    with _scratch(MapType.HASH, 2 * CHUNK) as target:
        entries = {_key(n): IpcacheValue(n) for n in range(2 * CHUNK + 1000)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == set(list(entries)[2 * CHUNK :])


def test_an_entry_that_fits_no_map_is_named_and_the_others_are_written() -> None:
    with _scratch(MapType.HASH, 8) as target:
        entries = {
            _key(1): IpcacheValue(1),
            _key(2): IpcacheValue(2, key=256),
            AddressKey(Address(b"")): IpcacheValue(3),
        }
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == {_key(2), AddressKey(Address(b""))}
        assert asyncio.run(target.dump()) == {_key(1): IpcacheValue(1)}


def test_a_cidr_with_host_bits_is_named_and_not_written(datapath: Datapath) -> None:
    target = maps.cidrs(datapath)
    with pytest.raises(ApplyError, match="beyond its prefix"):
        asyncio.run(target.upsert({CidrKey(120, parse("10.0.0.1")): IpcacheValue(1)}))
    assert asyncio.run(target.dump()) == {}


def test_what_is_no_map_is_unavailable() -> None:
    with _scratch(MapType.HASH, 4) as target, open(os.devnull) as other:
        os.dup2(other.fileno(), target.fd)
        with pytest.raises(Unavailable, match="scratch"):
            asyncio.run(target.dump())
        for attempt in (target.upsert({_key(1): IpcacheValue(1)}), target.delete([_key(1)])):
            with pytest.raises(ApplyError, match="the map scratch"):
                asyncio.run(attempt)


def test_the_event_loop_runs_between_chunks(datapath: Datapath) -> None:
    """Three chunks leave room for at least two turns of somebody else."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def live() -> None:
        other = asyncio.create_task(count())
        await maps.addresses(datapath).upsert({_key(n): IpcacheValue(n) for n in range(3 * CHUNK)})
        other.cancel()

    asyncio.run(live())
    assert turns >= 2


def test_factors_are_kept_in_one_entry(datapath: Datapath) -> None:
    async def live() -> None:
        await maps.set_factors(datapath, {1: 0, 2: 0.5, 511: 1})
        (value,) = (await maps.clusters(datapath).dump()).values()
        assert {number: part for number, part in enumerate(value.reduced) if part} == {1: 65535, 2: 65535 - 32768}
        await maps.set_factors(datapath, {})
        assert not any((await maps.clusters(datapath).dump())[ClustersKey()].reduced)

    asyncio.run(live())


def test_bpffs_is_where_the_maps_are(datapath: Datapath, bpffs: Path) -> None:
    pinned = {path.name for path in (datapath.pin_dir / "v2").iterdir()}
    assert pinned == set(datapath.maps) == {*_TYPES, "lb_clusters", "lb_reverse_sk", "metrics"}
