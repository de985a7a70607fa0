"""Connections that are translated packet by packet, by the service and the backend that they mean.

The programs see for themselves that a backend is nowhere any more, and end what was connected to it. What they cannot
see is that it left one of several services that had it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from struct import Struct
from typing import Final

from agent.bpf.layouts import CtFlag, MeantValue
from agent.bpf.pins import pages, shape_of
from agent.bpf.programs import map_info
from agent.bpf.syscalls import Page, map_lookup
from agent.conntrack.collector import BREATH, PAGE, take_out
from agent.conntrack.entries import pair_of
from clustermesh.address import Address

_KEY: Final = Struct("=16x16s2x2sB3x")  # struct ct_key: the service's address and port, the protocol
_VALUE: Final = Struct("=16x16s2x2sII16xH26x")  # struct ct_entry: the backend's, the service's id, its id, the flags

_Meant = tuple[bytes, bytes, int, bytes, bytes, int]
"""Of a MeantValue all but what it is in: service, its port, protocol, backend, its port and id."""


class Tracked:
    """Over the map ct, which stays its owner's. Not for an event loop's thread: it is gone over for each question, and
    none of it is kept."""

    def __init__(self, fd: int) -> None:
        info = map_info(fd)
        self._fd, self._sizes = fd, (info.key_size, info.value_size)

    def find(self) -> dict[MeantValue, int]:
        """How many mean each. OSError."""
        found = Counter[_Meant]()
        for page in self._pages():
            found.update(meant for _, meant in _forward(page))
        return {_value(meant): count for meant, count in found.items()}

    def end(self, gone: Collection[MeantValue]) -> int:
        """Forget those that mean one of these: what comes next is answered with a reset (TCP), or chosen for anew. How
        many they were. OSError."""
        wanted, count = {*map(_meant, gone)}, 0
        for page in self._pages():
            if places := [at for at, meant in _forward(page) if meant in wanted]:
                entries = [*page.entries(self._sizes)]
                keys = [entries[at][0] for at in places]
                count += take_out(self._fd, keys)
                pairs = [
                    (pair, key) for key, value in map(entries.__getitem__, places) if (pair := pair_of(key, value))
                ]
                take_out(self._fd, [pair for pair, key in pairs if self._is_of(pair, key)])
        return count

    def _is_of(self, pair: bytes, key: bytes) -> bool:
        """Whether `pair`'s pair is `key`: where it was pushed out, its ends may be somebody else's by now."""
        value = map_lookup(self._fd, pair, self._sizes[1])
        return value is not None and pair_of(pair, value) == key

    def _pages(self) -> Iterator[Page]:
        for page in pages(self._fd, shape_of(self._fd), PAGE):
            yield page
            time.sleep(BREATH)


def _forward(page: Page) -> Iterator[tuple[int, _Meant]]:
    """The entries of what goes to backends of services, by their places in the page."""
    ends = zip(_KEY.iter_unpack(page.keys), _VALUE.iter_unpack(page.values), strict=True)
    for at, (to, (backend, port, service_id, backend_id, flags)) in enumerate(ends):
        if service_id and not flags & CtFlag.REPLY:
            yield at, (*to, backend, port, backend_id)


def _value(meant: _Meant) -> MeantValue:
    service, port, protocol, backend, backend_port, backend_id = meant
    numbers = int.from_bytes(port, "big"), int.from_bytes(backend_port, "big")
    return MeantValue(Address(service), Address(backend), *numbers, backend_id, protocol)


def _meant(value: MeantValue) -> _Meant:
    ports = value.port.to_bytes(2, "big"), value.backend_port.to_bytes(2, "big")
    return value.address, ports[0], value.protocol, value.backend, ports[1], value.backend_id
