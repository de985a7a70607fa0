"""Pinned maps: adopted where they fit the programs, carried over entry by entry where their size was changed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf.libbpf import MapShape
from agent.bpf.programs import map_info
from agent.bpf.syscalls import (
    MapType,
    Page,
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

Translation = Callable[[bytes, bytes], tuple[bytes, bytes]]


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
    return PinnedMap(fd, shape_of(fd))


def shape_of(fd: int) -> MapShape:
    info = map_info(fd)
    return MapShape(info.type, info.key_size, info.value_size, info.max_entries, info.flags)


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


def copy_entries(source: PinnedMap, target: int, target_size: int, name: str) -> None:
    """Copy every entry to a map that differs in nothing but its size. Refused where they do not all fit. Of a ring
    buffer nothing: whoever reads it has read it."""
    if source.shape.type == MapType.RINGBUF:
        return
    if source.shape.type == MapType.PERCPU_ARRAY:
        _copy_counters(source, target, target_size)
        return
    for page in pages(source.fd, source.shape):
        _write(target, page.keys, page.values, page.size, name)


def copy_missing(source: PinnedMap, target: int, name: str, translation: Translation | None = None) -> None:
    """Copy the entries whose keys the target does not have: what it has is newer. A `translation` turns a key and a
    value of the source into the target's."""
    shape = shape_of(target)
    known = {key for page in pages(target, shape) for key, _ in page.entries((shape.key_size, shape.value_size))}
    for page in pages(source.fd, source.shape):
        entries = page.entries((source.shape.key_size, source.shape.value_size))
        translated = entries if translation is None else (translation(*entry) for entry in entries)
        missing = [(key, value) for key, value in translated if key not in known]
        keys, values = b"".join(key for key, _ in missing), b"".join(value for _, value in missing)
        _write(target, keys, values, len(missing), name)


def pages(fd: int, shape: MapShape, chunk: int = _CHUNK) -> Iterator[Page]:
    """All of a map, some `chunk` entries at a time. OSError."""
    cursor, chunk = b"", min(chunk, shape.max_entries)
    while True:
        page = map_lookup_batch(fd, cursor, (shape.key_size, shape.value_size), chunk)
        if page.error == errno.ENOSPC:
            chunk *= 2
            continue
        yield page
        if page.error == errno.ENOENT:
            return
        cursor = page.cursor


def _write(target: int, keys: bytes, values: bytes, count: int, name: str) -> None:
    error = map_update_batch(target, keys, values, count).error if count else 0
    if error == errno.E2BIG:
        raise Refused(f"the map {name} holds more entries than its new size: give it a larger one")
    if error:
        raise Unavailable(f"cannot copy the map {name}: {os.strerror(error)}")


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
