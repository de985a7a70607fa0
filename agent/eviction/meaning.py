"""Connected sockets, by the service and the backend that they mean."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Final, NamedTuple

from agent.bpf.layouts import (
    MEANT_SETS,
    MeantValue,
    Reason,
    ReverseKey,
    ReverseValue,
    meant_sockets,
    pack,
    unpack_each,
)
from agent.bpf.pins import pages, per_cpu_size, shape_of
from agent.bpf.programs import map_info
from agent.bpf.syscalls import map_delete_batch, map_lookup, map_lookup_batch
from clustermesh.address import Address

REMEMBERED: Final = 0
"""The backend's id where only lb_reverse_sk has what a socket means: no backend has it."""

Meant = dict[MeantValue, list[int]]
"""The cookies of the sockets that mean each."""


class Socket(NamedTuple):
    """A socket, found. `inode` is its own, 0 where nobody has it open any more; `device` the index of what it is bound
    to."""

    source: Address
    cookie: int
    inode: int
    device: int
    source_port: int
    family: int


Located = dict[MeantValue, list[Socket]]
"""The sockets of one network namespace that mean each."""


def read_meant(fd: int) -> Meant:
    """All that the map lb_meant has. OSError."""
    found: defaultdict[MeantValue, list[int]] = defaultdict(list)
    size, cursor = map_info(fd).value_size, b""
    while True:
        page = map_lookup_batch(fd, cursor, (4, size), MEANT_SETS)
        for cookie, value in meant_sockets(page.values).items():
            found[value].append(cookie)
        if page.error:
            return dict(found)
        cursor = page.cursor


def meaning_of(fd: int, cookie: int) -> MeantValue | None:
    """What the map lb_meant has of the socket with this cookie."""
    value = map_lookup(fd, (cookie % MEANT_SETS).to_bytes(4, sys.byteorder), map_info(fd).value_size)
    return None if value is None else meant_sockets(value).get(cookie)


class Remembered:
    """Connected sockets for which lb_meant had no room, as the map lb_reverse_sk has them: the last that it was told
    of, also where they are closed. `counters` is the map metrics, which says whether there were any."""

    def __init__(self, reverse: int, counters: int) -> None:
        self._reverse, self._counters = reverse, counters

    def read(self) -> Meant:
        """All there are. OSError."""
        found: defaultdict[MeantValue, list[int]] = defaultdict(list)
        for page in pages(self._reverse, shape_of(self._reverse)) if self.ever() else ():
            keys, values = unpack_each(ReverseKey, page.keys), unpack_each(ReverseValue, page.values)
            for key, value in zip(keys, values, strict=True):
                if value.protocol:
                    ends = (value.address, key.address, value.port, key.port)
                    found[MeantValue(*ends, REMEMBERED, value.protocol)].append(key.cookie)
        return dict(found)

    def forget(self, gone: Meant) -> None:
        """Those of `gone` that are remembered."""
        for value, cookies in gone.items():
            for cookie in cookies if value.backend_id == REMEMBERED else ():
                key = pack(ReverseKey(cookie, value.backend, value.backend_port))
                map_delete_batch(self._reverse, key, 1)

    def ever(self) -> int:
        """How often lb_meant had no room, since the maps were made. OSError."""
        value = map_lookup(self._counters, Reason.MEANT_FULL.to_bytes(4, sys.byteorder), per_cpu_size(8))
        return sum(memoryview(value).cast("Q")) if value else 0
