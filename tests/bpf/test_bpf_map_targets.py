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

from agent.bpf.layouts import AddressKey, Backend, BackendKey, CidrKey, IpcacheValue, ServiceKey, ServiceValue
from agent.bpf.loader import Datapath
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.targets import maps
from agent.targets.maps import CHUNK, MapTarget
from clustermesh.errors import ApplyError, Unavailable

pytestmark = pytest.mark.root

_U8, _U16, _U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
_FEW = st.integers(0, 5)


def _cidr(length: int, address: int) -> CidrKey:
    return CidrKey(length, address & ~(0xFFFFFFFF >> length))


# Few keys, so that entries are met again; whole ranges for the values.
_KINDS = {
    "lb4_services": (st.builds(ServiceKey, _FEW, _FEW, _FEW, _U8), st.builds(ServiceValue, _U32, _U16, _U16)),
    "lb4_backends": (st.builds(BackendKey, st.integers(0, 20)), st.builds(Backend, _U32, _U16, _U8, _U8, _U16)),
    "ipcache4": (st.builds(AddressKey, st.integers(0, 20)), st.builds(IpcacheValue, _U32, _U32, _U8)),
    "ipcache4_cidr": (
        st.builds(_cidr, st.integers(0, 32), st.integers(0, 3).map(lambda n: n << 28 | n)),
        st.builds(IpcacheValue, _U32, _U32, _U8),
    ),
}
_TYPES = {
    "lb4_services": (ServiceKey, ServiceValue),
    "lb4_backends": (BackendKey, Backend),
    "ipcache4": (AddressKey, IpcacheValue),
    "ipcache4_cidr": (CidrKey, IpcacheValue),
}


@contextmanager
def _scratch(kind: MapType, size: int) -> Iterator[MapTarget[AddressKey, IpcacheValue]]:
    fd = map_create(kind, 4, 12, size, NO_PREALLOC if kind == MapType.HASH else 0)
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
    entries = {ServiceKey(n, n % 65536, n % 11, 6): ServiceValue(n, n % 100) for n in range(10_000)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete([*list(entries)[::2], ServiceKey(1, 1, 60000, 17)])
        assert await target.dump() == dict(list(entries.items())[1::2])

    asyncio.run(live())


def test_ten_thousand_cidrs_come_out_of_the_trie(datapath: Datapath) -> None:
    target = maps.cidrs(datapath)
    entries = {CidrKey(24, n << 8): IpcacheValue(n) for n in range(9_999)} | {CidrKey(0, 0): IpcacheValue(2)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete(entries)
        assert await target.dump() == {}

    asyncio.run(live())


def test_a_bucket_larger_than_a_page_is_read_whole() -> None:
    """A map of 16 entries that is read by pages of one: two keys of one bucket do not fit into the first page."""
    with _scratch(MapType.HASH, 16) as target:
        entries = {AddressKey(n): IpcacheValue(n) for n in range(16)}
        asyncio.run(target.upsert(entries))
        target.page_size = 1
        assert asyncio.run(target.dump()) == entries


def test_a_full_map_says_which_keys_are_missing_and_keeps_the_rest() -> None:
    with _scratch(MapType.HASH, 4) as target:
        entries = {AddressKey(n): IpcacheValue(n) for n in range(6)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert raised.value.failed == {
            AddressKey(n): "the map scratch is full: all of its 4 entries are taken" for n in (4, 5)
        }
        # What is there already can still be changed, also behind keys that find no room.
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert({AddressKey(9): IpcacheValue(9), AddressKey(0): IpcacheValue(77)}))
        assert list(raised.value.failed) == [AddressKey(9)]
        expected = {AddressKey(n): IpcacheValue(n) for n in range(1, 4)} | {AddressKey(0): IpcacheValue(77)}
        assert asyncio.run(target.dump()) == expected


def test_a_thousand_entries_too_many_are_each_named() -> None:
    with _scratch(MapType.HASH, 2 * CHUNK) as target:
        entries = {AddressKey(n): IpcacheValue(n) for n in range(2 * CHUNK + 1000)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == set(list(entries)[2 * CHUNK :])


def test_an_entry_that_fits_no_map_is_named_and_the_others_are_written() -> None:
    with _scratch(MapType.HASH, 8) as target:
        entries = {
            AddressKey(1): IpcacheValue(1),
            AddressKey(2): IpcacheValue(2, key=256),
            AddressKey(-1): IpcacheValue(3),
        }
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == {AddressKey(2), AddressKey(-1)}
        assert asyncio.run(target.dump()) == {AddressKey(1): IpcacheValue(1)}


def test_a_cidr_with_host_bits_is_named_and_not_written(datapath: Datapath) -> None:
    target = maps.cidrs(datapath)
    with pytest.raises(ApplyError, match="beyond its prefix"):
        asyncio.run(target.upsert({CidrKey(24, 0x0A000001): IpcacheValue(1)}))
    assert asyncio.run(target.dump()) == {}


def test_what_is_no_map_is_unavailable() -> None:
    with _scratch(MapType.HASH, 4) as target, open(os.devnull) as other:
        os.dup2(other.fileno(), target.fd)
        with pytest.raises(Unavailable, match="scratch"):
            asyncio.run(target.dump())
        for attempt in (target.upsert({AddressKey(1): IpcacheValue(1)}), target.delete([AddressKey(1)])):
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
        await maps.addresses(datapath).upsert({AddressKey(n): IpcacheValue(n) for n in range(3 * CHUNK)})
        other.cancel()

    asyncio.run(live())
    assert turns >= 2


def test_bpffs_is_where_the_maps_are(datapath: Datapath, bpffs: Path) -> None:
    pinned = {path.name for path in (datapath.pin_dir / "v1").iterdir()}
    assert pinned == set(datapath.maps) == {*_TYPES, "lb4_reverse_sk", "metrics"}
