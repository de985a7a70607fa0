"""Pinned maps: adopted where they fit the programs, carried over entry by entry where their size was changed."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf.libbpf import MapShape
from agent.bpf.programs import map_info
from agent.bpf.syscalls import (
    ANY,
    MapType,
    map_lookup,
    map_lookup_batch,
    map_update,
    map_update_batch,
    object_get,
    object_pin,
)
from clustermesh.errors import Refused, Unavailable

_CHUNK: Final = 4096
_BYTE_ORDER: Final = sys.byteorder


class PinnedMap(NamedTuple):
    """A map found pinned; `fd` belongs to whoever asked."""

    fd: int
    shape: MapShape


def pinned_map(path: Path) -> PinnedMap | None:
    """The map pinned at `path`, None where nothing is."""
    try:
        fd = object_get(path)
    except FileNotFoundError:
        return None
    info = map_info(fd)
    return PinnedMap(fd, MapShape(info.type, info.key_size, info.value_size, info.max_entries, info.flags))


def check_fits(path: Path, found: MapShape, wanted: MapShape) -> None:
    """Refused unless the two differ in nothing but their size."""
    if found._replace(max_entries=wanted.max_entries) != wanted:
        raise Refused(
            f"the map pinned at {path} has another layout ({found}) than the programs ({wanted}): another version left "
            f"it. Remove {path.parent} and start again: connections stay, services are back when the maps are filled"
        )


def pin_in_place(fd: int, path: Path) -> None:
    """Pin at `path`, in one step where something else is pinned there."""
    fresh = path.with_name(path.name + "_new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    object_pin(fd, fresh)
    fresh.rename(path)


def copy_entries(source: PinnedMap, target: int, target_size: int, name: str, flags: int = ANY) -> None:
    """Copy every entry to a map that differs in nothing but its size. Refused where they do not all fit."""
    if source.shape.type == MapType.PERCPU_ARRAY:
        _copy_counters(source, target, target_size)
        return
    sizes = (source.shape.key_size, source.shape.value_size)
    cursor, chunk = b"", min(_CHUNK, source.shape.max_entries)
    while True:
        page = map_lookup_batch(source.fd, cursor, sizes, chunk)
        if page.error == errno.ENOSPC:
            chunk *= 2
            continue
        _copy_page(target, page.keys, page.values, (page.size, sizes, flags), name)
        if page.error == errno.ENOENT:
            return
        cursor = page.cursor


def _copy_page(target: int, keys: bytes, values: bytes, how: tuple[int, tuple[int, int], int], name: str) -> None:
    count, (key_size, value_size), flags = how
    done = 0
    while done < count:
        batch = map_update_batch(target, keys[done * key_size :], values[done * value_size :], count - done, flags)
        done += batch.done
        if batch.error == errno.E2BIG:
            raise Refused(f"the map {name} holds more entries than its new size: give it a larger one")
        if batch.error not in (0, errno.EEXIST):
            raise Unavailable(f"cannot copy the map {name}: {os.strerror(batch.error)}")
        done += 1 if batch.error else 0


def _copy_counters(source: PinnedMap, target: int, target_size: int) -> None:
    size = per_cpu_size(source.shape.value_size)
    for index in range(min(source.shape.max_entries, target_size)):
        key = index.to_bytes(4, _BYTE_ORDER)
        value = map_lookup(source.fd, key, size)
        if value is not None:
            map_update(target, key, value)


def per_cpu_size(value_size: int) -> int:
    """How many bytes a system call on a per-CPU map moves: the value, padded to 8, once per CPU there could be."""
    return -(-value_size // 8) * 8 * possible_cpus()


def possible_cpus() -> int:
    """As the kernel counts them for per-CPU maps: also those that are not plugged in."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1
