"""Sockets that mean services, found and ended by programs that go over them (bpf/meant.bpf.c and evict.bpf.c).

One pass over lb_meant finds all, in every network namespace. To end some, their cookies are put into a map, and a
program goes over the sockets of each namespace that has any of them.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

from agent.bpf.layouts import MeantSocket, MeantValue, Number, pack, unpack, unpack_each
from agent.bpf.libbpf import Object
from agent.bpf.syscalls import iterator_open, map_delete_batch, map_update_batch
from agent.eviction.meaning import Meaning, Meant
from agent.eviction.networks import inside

_READ: Final = 1 << 18
_RECORD: Final = Struct("40s48s")  # struct lb_meant, struct meant_socket
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


class Finder:
    """Finds the sockets that mean something."""

    def __init__(self, folder: Path, maps: Mapping[str, int]) -> None:
        self._meant = maps["lb_meant"]
        self._iterators = Iterators(folder / "meant.bpf.o", maps, ["meant_sockets"])
        self.close = self._iterators.close

    def find(self) -> Meant:
        """OSError."""
        told = _read(self._iterators.programs["meant_sockets"], self._meant)
        by_bytes: defaultdict[tuple[bytes, int], list[MeantSocket]] = defaultdict(list)
        values = (value for value, _ in _RECORD.iter_unpack(told))
        sockets = unpack_each(MeantSocket, b"".join(socket for _, socket in _RECORD.iter_unpack(told)))
        for value, socket in zip(values, sockets, strict=True):
            by_bytes[value, socket.protocol].append(socket)
        return {Meaning(unpack(MeantValue, value), protocol): each for (value, protocol), each in by_bytes.items()}


class Ender:
    """Ends sockets of the protocols that programs can go over."""

    def __init__(self, folder: Path, maps: Mapping[str, int]) -> None:
        self._iterators = Iterators(folder / "evict.bpf.o", maps, _ENDERS.values())
        self._evicted = self._iterators.maps["evicted"]
        self.close = self._iterators.close

    def end(self, path: str, gone: Meant) -> set[int]:
        """End these sockets, all of the namespace at `path`; the cookies of those that were. OSError."""
        entries = [
            (socket, meaning) for meaning, sockets in gone.items() for socket in sockets if meaning.protocol in _ENDERS
        ]
        ended: set[int] = set()
        for at in range(0, len(entries), _MOST):
            ended |= self._end_some(path, entries[at : at + _MOST])
        return ended

    def _end_some(self, path: str, entries: Sequence[tuple[MeantSocket, Meaning]]) -> set[int]:
        keys = b"".join(socket.cookie.to_bytes(8, sys.byteorder) for socket, _ in entries)
        values = b"".join(pack(Number(meaning.value.backend_id)) for _, meaning in entries)
        protocols = {meaning.protocol for _, meaning in entries}
        done = map_update_batch(self._evicted, keys, values, len(entries))
        if done.error:
            raise OSError(done.error, os.strerror(done.error))
        try:
            return inside(path, lambda: self._go_over(protocols))
        finally:
            map_delete_batch(self._evicted, keys, len(entries))

    def _go_over(self, protocols: Iterable[int]) -> set[int]:
        told = b"".join(_read(self._iterators.programs[_ENDERS[protocol]]) for protocol in protocols)
        return {cookie for (cookie,) in Struct("=Q").iter_unpack(told)}


def _read(program: int, over: int | None = None) -> bytes:
    descriptor = iterator_open(program, over)
    try:
        parts = [b"-"]
        while parts[-1]:
            with suppress(BlockingIOError):  # it has gone over a million of which it told nothing
                parts.append(os.read(descriptor, _READ))
        return b"".join(parts[1:])
    finally:
        os.close(descriptor)
