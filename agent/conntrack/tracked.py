"""Connections that are translated packet by packet, by the service and the backend that they mean.

The programs see for themselves that a backend is nowhere any more, and end what was connected to it. What they cannot
see is that it left one of several services that had it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from struct import Struct
from typing import Final, NamedTuple

from agent.bpf.layouts import CtEntry, CtFlag, CtKey, MeantValue, unpack
from agent.bpf.programs import map_info
from agent.bpf.syscalls import map_lookup, map_lookup_batch
from agent.conntrack.collector import take_out
from agent.conntrack.entries import pair_of

_PAGE: Final = 1024
_BREATH: Final = 0.001  # seconds that others have after each page
_KEY: Final = Struct("=16x16s2x2sB3x")  # struct ct_key: the service's address and port, the protocol
_VALUE: Final = Struct("=16x16s2x2s4s4s16xH26x")  # struct ct_entry: the backend's, the service's and its id, the flags
_ENDS: Final = 44  # bytes of a ct_entry that say where packets go
_NONE: Final = bytes(4)


class Connection(NamedTuple):
    """An entry of what goes to the backend, as it was found."""

    key: bytes
    value: bytes


class Tracked:
    """Over the map ct, which stays its owner's. Not for an event loop's thread."""

    def __init__(self, fd: int) -> None:
        info = map_info(fd)
        self._fd, self._sizes = fd, (info.key_size, info.value_size)

    def find(self) -> dict[MeantValue, list[Connection]]:
        """All there are. OSError."""
        found: defaultdict[tuple[object, ...], list[Connection]] = defaultdict(list)
        cursor, (key_size, value_size) = b"", self._sizes
        while True:
            page = map_lookup_batch(self._fd, cursor, self._sizes, _PAGE)
            ends = zip(_KEY.iter_unpack(page.keys), _VALUE.iter_unpack(page.values), strict=True)
            for at, (service, (backend, port, number, of_backend, flags)) in enumerate(ends):
                if number != _NONE and not flags & CtFlag.REPLY:
                    key, value = page.keys[at * key_size :][:key_size], page.values[at * value_size :][:value_size]
                    found[service, backend, port, of_backend].append(Connection(key, value))
            if page.error:
                return {_meant(those[0]): those for those in found.values()}
            cursor = page.cursor
            time.sleep(_BREATH)

    def end(self, gone: dict[MeantValue, list[Connection]]) -> int:
        """Forget these, but for those that were begun anew since: what comes next is answered with a reset (TCP), or
        chosen for anew. How many they were. OSError."""
        count = 0
        for each in (each for those in gone.values() for each in those):
            value = map_lookup(self._fd, each.key, self._sizes[1])
            if value is not None and value[:_ENDS] == each.value[:_ENDS]:
                pair = pair_of(each.key, value)
                count += take_out(self._fd, [each.key]) if pair is None else bool(take_out(self._fd, [each.key, pair]))
        return count


def _meant(those: Connection) -> MeantValue:
    key, entry = unpack(CtKey, those.key), unpack(CtEntry, those.value)
    ends = key.destination, entry.destination, key.destination_port, entry.destination_port
    return MeantValue(*ends, entry.backend_id, key.protocol)
