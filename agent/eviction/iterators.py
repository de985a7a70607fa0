"""Sockets ended by programs that go over those of a network namespace (bpf/evict.bpf.c): their cookies are put into a
map before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

from agent.bpf.layouts import MeantValue, Number, pack
from agent.bpf.libbpf import Object
from agent.bpf.syscalls import iterator_open, map_delete_batch, map_update_batch
from agent.eviction.meaning import Located, Socket

_READ: Final = 1 << 18
_MOST: Final = 65536  # entries of the map `evicted`
_TCP, _UDP = 6, 17
_ENDERS: Final = {_TCP: "evict_tcp", _UDP: "evict_udp"}


class Iterators:
    """The programs of one object, loaded over `maps`. Refused where this kernel does not take them."""

    def __init__(self, path: Path, maps: Mapping[str, int], names: Iterable[str]) -> None:
        with Object(path) as elf:
            for name in elf.maps & maps.keys():
                elf.reuse(name, maps[name])
            elf.load()
            self.programs = {name: os.dup(elf.program_fd(name)) for name in names}
            self.maps = {name: os.dup(elf.map_fd(name)) for name in elf.maps - maps.keys()}

    def close(self) -> None:
        for descriptor in (*self.programs.values(), *self.maps.values()):
            os.close(descriptor)
        self.programs, self.maps = {}, {}


class Ender:
    """Ends sockets of the namespace it is asked in, of the protocols that programs can go over."""

    def __init__(self, folder: Path, maps: Mapping[str, int]) -> None:
        self._iterators = Iterators(folder / "evict.bpf.o", maps, _ENDERS.values())
        self._evicted = self._iterators.maps["evicted"]
        self.close = self._iterators.close

    def end(self, gone: Located) -> set[int]:
        """End these sockets; the cookies of those that were. OSError."""
        entries = [(each, value) for value, sockets in gone.items() for each in sockets if value.protocol in _ENDERS]
        ended: set[int] = set()
        for at in range(0, len(entries), _MOST):
            ended |= self._end_some(entries[at : at + _MOST])
        return ended

    def _end_some(self, entries: Sequence[tuple[Socket, MeantValue]]) -> set[int]:
        keys = b"".join(each.cookie.to_bytes(8, sys.byteorder) for each, _ in entries)
        values = b"".join(pack(Number(value.backend_id)) for _, value in entries)
        done = map_update_batch(self._evicted, keys, values, len(entries))
        if done.error:
            raise OSError(done.error, os.strerror(done.error))
        try:
            return self._go_over({value.protocol for _, value in entries})
        finally:
            map_delete_batch(self._evicted, keys, len(entries))

    def _go_over(self, protocols: Iterable[int]) -> set[int]:
        told = b"".join(_read(self._iterators.programs[_ENDERS[protocol]]) for protocol in protocols)
        return {cookie for (cookie,) in Struct("=Q").iter_unpack(told)}


def _read(program: int) -> bytes:
    descriptor = iterator_open(program)
    try:
        parts = [b"-"]
        while parts[-1]:
            with suppress(BlockingIOError):  # it has gone over a million of which it told nothing
                parts.append(os.read(descriptor, _READ))
        return b"".join(parts[1:])
    finally:
        os.close(descriptor)
