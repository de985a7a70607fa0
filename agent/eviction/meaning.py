"""Connected sockets, by the service and the backend that they mean."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import NamedTuple

from agent.bpf.layouts import MEANT_SETS, MeantValue, meant_sockets
from agent.bpf.programs import map_info
from agent.bpf.syscalls import map_lookup, map_lookup_batch
from clustermesh.address import Address

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
