"""What closed sockets mean, taken out of lb_meant.

The kernel asks no program when a socket is closed that it has made itself: each connection of Multipath TCP is one, and
so are those of NFS and other clients in the kernel. They are looked for where there is need: at first, when the places
that are taken have become many more, when there was no room, and when sockets that lost their backend were found
nowhere. Who is in no network namespace at two looks, and was not connected in between, is closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Set
from struct import Struct
from typing import Final

from agent.bpf.layouts import MEANT_SETS, MEANT_WAYS, SWEEP_HEAD, SWEEP_MOST
from agent.bpf.programs import program_run
from agent.eviction.diag import connected
from agent.eviction.meaning import Meant
from agent.eviction.networks import in_each

_APART: Final = 30.0  # seconds between two looks, ...
_IDLE: Final = 49  # ... or times as long as the last one took
_GROWN: Final = MEANT_SETS * MEANT_WAYS // 8


class Sweeper:
    """`open_program` loads sweep_meant."""

    def __init__(self, open_program: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._open, self._clock = open_program, clock
        self._is_wanted, self._missing = True, set[int]()
        self._next, self._least, self._full = 0.0, 0, 0

    def want(self) -> None:
        """Of sockets that mean something some were found nowhere."""
        self._is_wanted = True

    def sweep(self, known: Meant, full: int) -> int:
        """Look, if it is time and there is need; how many places are free now. `known` is what lb_meant had before, and
        `full` how often it has had no room. OSError, ClusterMeshError."""
        taken = sum(map(len, known.values()))
        self._least = min(self._least, taken)
        self._is_wanted |= full != self._full or taken - self._least >= _GROWN
        self._full = full
        began = self._clock()
        if began < self._next or not (self._is_wanted or self._missing):
            return 0
        try:
            return self._look(known, taken)
        finally:
            self._next = self._clock() + max(_APART, (self._clock() - began) * _IDLE)

    def _look(self, known: Meant, taken: int) -> int:
        missing = set(_missing(known))
        freed = self._run(True, closed := missing & self._missing)
        self._missing = missing - closed if self._is_wanted else set()
        self._run(False, self._missing)
        self._is_wanted, self._least = False, taken - freed
        return freed

    def _run(self, is_end: bool, cookies: Iterable[int]) -> int:
        return sum(program_run(self._open(), frame) for frame in frames(is_end, cookies))


def _missing(known: Meant) -> Iterator[int]:
    """The sockets among these that are nowhere; none of a protocol that the kernel does not tell of."""
    living = _living() if known else {}
    for value, cookies in known.items():
        if (there := living.get(value.protocol)) is not None:
            yield from (cookie for cookie in cookies if cookie not in there)


def _living() -> dict[int, Set[int]]:
    """The cookies of all connected sockets of this node, by protocol."""
    parts = []
    for path, part in in_each(connected):
        if isinstance(part, OSError):
            raise OSError(part.errno, f"network namespace {path}: {part.strerror}") from part
        parts.append(part)
    told = set.intersection(*(set(part) for part in parts))
    return {protocol: set[int]().union(*(part[protocol] for part in parts)) for protocol in told}


def frames(is_end: bool, cookies: Iterable[int]) -> Iterator[bytes]:
    """What sweep_meant is run over."""
    left, head = list(cookies), bytes([is_end]).ljust(SWEEP_HEAD, b"\0")
    for at in range(0, len(left), SWEEP_MOST):
        some = left[at : at + SWEEP_MOST]
        yield head + Struct(f"={len(some)}Q").pack(*some)
