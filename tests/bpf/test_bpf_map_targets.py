"""Map targets on real maps, beside a stupid twin: a dict. Also what happens when a map is full, huge or gone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.bpf.layouts import MAPS, CidrKey, pack
from agent.bpf.loader import Datapath
from agent.bpf.programs import map_info
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.domains.tables import open_map
from agent.targets.maps import CHUNK, MapTarget
from clustermesh.address import from_int, masked
from clustermesh.errors import ApplyError, Unavailable

pytestmark = pytest.mark.root

_SMALL = st.integers(0, 20)
_OTHERS = {"lb_clusters", "lb_evicted", "lb_reverse_sk", "ipcache_cidr", "lb_affinity", "lb_source_ranges"}
_OTHERS |= {"ct", "ct_direct", "ct_fragments", "node_config"}
_HASHES = sorted({*MAPS} - _OTHERS - {"lb_maglev"})  # a hash as the others are, with values too large to be drawn


def _cidr(length: int, address: int) -> bytes:
    return pack(CidrKey(length, masked(from_int(address), length)))


def _key(number: int) -> bytes:
    return from_int(number)


def _value(number: int) -> bytes:
    return number.to_bytes(24, "big")


@contextmanager
def _scratch(kind: MapType, size: int) -> Iterator[MapTarget]:
    fd = map_create(kind, 16, 24, size, NO_PREALLOC if kind == MapType.HASH else 0)
    try:
        yield MapTarget("scratch", fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", [*_HASHES, "ipcache_cidr"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_map_behaves_as_a_dict(datapath: Datapath, name: str, data: st.DataObject) -> None:
    target, info = open_map(datapath, name), map_info(datapath.maps[name])
    # Few keys, so that entries are met again.
    key = _SMALL.map(lambda n: n.to_bytes(info.key_size, "big"))
    if name == "ipcache_cidr":
        key = st.builds(_cidr, st.integers(0, 128), st.integers(0, 3).map(lambda n: n << 124 | n))
    value = st.binary(min_size=info.value_size, max_size=info.value_size)

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
    target = open_map(datapath, "lb_services")
    entries = {n.to_bytes(20, "big"): n.to_bytes(20, "big") for n in range(10_000)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete([*list(entries)[::2], bytes([1] * 20)])
        assert await target.dump() == dict(list(entries.items())[1::2])

    asyncio.run(live())


def test_ten_thousand_cidrs_come_out_of_the_trie(datapath: Datapath) -> None:
    target = open_map(datapath, "ipcache_cidr")
    entries = {_cidr(120, n << 8): _value(n) for n in range(9_999)} | {_cidr(0, 0): _value(2)}

    async def live() -> None:
        await target.upsert(entries)
        assert await target.dump() == entries
        await target.delete(entries)
        assert await target.dump() == {}

    asyncio.run(live())


def test_a_bucket_larger_than_a_page_is_read_whole() -> None:
    """A map of 16 entries that is read by pages of one: two keys of one bucket do not fit into the first page."""
    with _scratch(MapType.HASH, 16) as target:
        entries = {_key(n): _value(n) for n in range(16)}
        asyncio.run(target.upsert(entries))
        target.page_size = 1
        assert asyncio.run(target.dump()) == entries


def test_a_full_map_says_which_keys_are_missing_and_keeps_the_rest() -> None:
    with _scratch(MapType.HASH, 4) as target:
        entries = {_key(n): _value(n) for n in range(6)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert raised.value.failed == {
            _key(n): "the map scratch is full: all of its 4 entries are taken" for n in (4, 5)
        }
        # What is there already can still be changed, also behind keys that find no room.
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert({_key(9): _value(9), _key(0): _value(77)}))
        assert list(raised.value.failed) == [_key(9)]
        expected = {_key(n): _value(n) for n in range(1, 4)} | {_key(0): _value(77)}
        assert asyncio.run(target.dump()) == expected


def test_a_thousand_entries_too_many_are_each_named() -> None:
    with _scratch(MapType.HASH, 2 * CHUNK) as target:
        entries = {_key(n): _value(n) for n in range(2 * CHUNK + 1000)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == set(list(entries)[2 * CHUNK :])


def test_of_a_batch_that_two_threads_write_each_entry_is_there_or_named() -> None:
    with _scratch(MapType.HASH, 16) as target:
        target.shared_from = 2
        entries = {_key(n): _value(n) for n in range(40)}
        with pytest.raises(ApplyError) as raised:
            asyncio.run(target.upsert(entries))
        held = asyncio.run(target.dump())
        assert len(held) == 16
        assert held.items() <= entries.items()
        assert raised.value.failed.keys() == entries.keys() - held.keys()


_NO_THREAD = """
import asyncio, threading
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create
from agent.targets.maps import MapTarget

def refuse(thread):
    raise RuntimeError("can't start new thread")

start, threading.Thread.start = threading.Thread.start, refuse
target = MapTarget("scratch", map_create(MapType.HASH, 16, 24, 64, NO_PREALLOC))
target.shared_from = 2
old, new = ({number.to_bytes(16, "big"): bytes([each]) * 24 for number in range(40)} for each in (1, 2))
asyncio.run(target.upsert(old))
threading.Thread.start = start
asyncio.run(target.upsert(new))
assert asyncio.run(target.dump()) == new
"""


def test_where_no_second_thread_can_be_started_one_writes_all_of_it() -> None:
    subprocess.run([sys.executable, "-c", _NO_THREAD], check=True)


def test_an_entry_of_another_size_is_named_and_the_others_are_written() -> None:
    """Side by side, two wrong ones would have the size of two right ones."""
    with _scratch(MapType.HASH, 8) as target:
        entries = {_key(1): _value(1), _key(2): bytes(23), b"": bytes(25), _key(3): _value(3)}
        with pytest.raises(ApplyError, match="not of the size") as raised:
            asyncio.run(target.upsert(entries))
        assert set(raised.value.failed) == {_key(2), b""}
        assert asyncio.run(target.dump()) == {_key(1): _value(1), _key(3): _value(3)}


def test_what_is_no_map_is_unavailable() -> None:
    with _scratch(MapType.HASH, 4) as target, open(os.devnull) as other:
        os.dup2(other.fileno(), target.fd)
        with pytest.raises(Unavailable, match="scratch"):
            asyncio.run(target.dump())
        for attempt in (target.upsert({_key(1): _value(1)}), target.delete([_key(1)])):
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
        await open_map(datapath, "ipcache").upsert({_key(n): _value(n) for n in range(3 * CHUNK)})
        other.cancel()

    asyncio.run(live())
    assert turns >= 2


def test_bpffs_is_where_the_maps_are(datapath: Datapath, bpffs: Path) -> None:
    pinned = {path.name for path in (datapath.pin_dir / "v2").iterdir()}
    internal = {"lb_meant", "metrics", "events", "events_wanted", "ct_scratch", "ct_searched"}
    assert pinned == set(datapath.maps) == {*MAPS, *internal}
