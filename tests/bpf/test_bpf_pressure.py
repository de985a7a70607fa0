"""How full a map is, from a part of it: never far from what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agent.bpf.pins import PinnedMap, shape_of
from agent.bpf.syscalls import NO_PREALLOC, MapType, map_create, map_update_batch
from agent.pressure import count

pytestmark = pytest.mark.root


@contextmanager
def a_map(kind: MapType, size: int, entries: int) -> Iterator[PinnedMap]:
    fd = map_create(kind, 8, 4, size, NO_PREALLOC if kind == MapType.HASH else 0)
    try:
        keys = b"".join(number.to_bytes(8, "little") for number in range(entries))
        if entries:
            assert map_update_batch(fd, keys, bytes(4 * entries), entries).error == 0
        yield PinnedMap(fd, shape_of(fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
@pytest.mark.parametrize("size", [1, 1000, 65536, 100_000])
@pytest.mark.parametrize("part", [0, 0.001, 0.4, 0.8])
def test_what_is_counted_is_what_is_there(kind: MapType, size: int, part: float) -> None:
    entries = int(size * part)
    with a_map(kind, size, entries) as held:
        exact = count(held, 1 << 20)
        assert exact == entries
        assert abs(count(held) - exact) <= exact * 0.15  # ten times what chance makes of 4,096
