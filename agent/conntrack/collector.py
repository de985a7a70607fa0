"""What is over in conntrack is taken out: the kernel would only do so for want of room, and then not by age.

A connection goes when both of its directions have expired, so that none is left with half of it; an entry alone, when
it has. Connections whose backend went are the programs' own: the next packet is answered with a reset, or chosen for
anew.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agent.bpf.pins import pages, shape_of
from agent.bpf.programs import map_info
from agent.bpf.syscalls import map_delete_batch, map_lookup
from agent.conntrack.entries import DIRECT, KEY, VALUE, Phase, family_of, pair_of, phase_of, protocol_name, ticks

PAGE: Final = 1024
FIRST: Final = 30.0  # seconds until it is first gone over
_LEAST: Final = 10.0  # seconds between two passes
_MOST: Final = 600.0
_MUCH: Final = 0.1  # of the room, that was taken out
_LITTLE: Final = 0.02
BREATH: Final = 0.001  # seconds that others have after each page
_WAITING: Final = 65536  # that wait for their pair to be met


class Pass(NamedTuple):
    """What was met, by family, protocol and status, and how many entries of that were taken out."""

    met: Counter[tuple[str, str, str]]
    collected: int = 0


def next_interval(before: float, taken: float) -> float:
    """Seconds until the next pass, by the part of all room that the last one took out: sooner where that was much, as
    Cilium's agent does."""
    if taken > _MUCH:
        return max(before * (1 - min(taken, 0.9)), _LEAST)
    return min(before * 1.5, _MOST) if taken < _LITTLE else before


class Collector:
    """Over the map ct or ct_direct, which stays its owner's. Not for an event loop's thread."""

    def __init__(self, fd: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        info = map_info(fd)
        self._fd, self.room = fd, info.max_entries
        self._sizes = info.key_size, info.value_size
        self._value = DIRECT if info.value_size == DIRECT.size else VALUE
        self._clock = clock_ns

    def collect(self) -> Pass:
        """Go over all of it once. OSError."""
        met: Counter[tuple[str, str, str]] = Counter()
        waiting: dict[bytes, bytes] = {}  # expired ones whose pair was not met yet, by their keys, and their pairs
        collected = 0
        for page in pages(self._fd, shape_of(self._fd), PAGE):
            keys, values = page.keys, page.values
            now = ticks(self._clock())
            gone = []
            for at, ((prefix, protocol), (expires, flags)) in enumerate(
                zip(KEY.iter_unpack(keys), self._value.iter_unpack(values), strict=True)
            ):
                status = phase_of(expires, flags, now)
                met[family_of(prefix), protocol_name(protocol), status] += 1
                if status is Phase.EXPIRED:
                    gone.append(at)
            collected += take_out(self._fd, self._over(gone, keys, values, waiting))
            if len(waiting) > _WAITING:
                collected += take_out(self._fd, self._alone(waiting))
                waiting = {}
            time.sleep(BREATH)
        return Pass(met, collected + take_out(self._fd, self._alone(waiting)))

    def _over(self, gone: list[int], keys: bytes, values: bytes, waiting: dict[bytes, bytes]) -> list[bytes]:
        """Which of the expired entries of a page may go, with their pairs."""
        found = []
        for at in gone:
            key, value = self._entry(at, keys, values)
            pair = pair_of(key, value)
            if pair is None:
                found.append(key)
            elif waiting.pop(pair, None) is None:
                waiting[key] = pair
            elif self._has_expired(pair):  # it was met a while ago
                found += [key, pair]
        return found

    def _entry(self, at: int, keys: bytes, values: bytes) -> tuple[bytes, bytes]:
        key_size, value_size = self._sizes
        return keys[at * key_size :][:key_size], values[at * value_size :][:value_size]

    def _alone(self, waiting: dict[bytes, bytes]) -> list[bytes]:
        """Of those whose pair was not met: where it is gone, or has expired since."""
        found = []
        for key, pair in waiting.items():
            if self._has_expired(pair) and self._has_expired(key):
                found += [key, pair]
        return found

    def _has_expired(self, key: bytes) -> bool:
        """Or is gone."""
        value = map_lookup(self._fd, key, self._sizes[1])
        return value is None or self._value.unpack(value)[0] < ticks(self._clock())


def take_out(fd: int, keys: Sequence[bytes]) -> int:
    """Delete these entries of ct or ct_direct; how many of them there were. OSError."""
    packed, at, count = b"".join(keys), 0, 0
    while at < len(keys):
        batch = map_delete_batch(fd, packed[at * KEY.size :], len(keys) - at)
        count += batch.done
        at += batch.done + bool(batch.error)  # one that is absent ends a batch
    return count
