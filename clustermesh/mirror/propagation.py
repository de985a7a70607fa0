"""How long a change of a service took from its source to its copy in the own etcd, hop by hop.

    observed ─ publish ─> published ─ read ─> heard ─ copy ─> copied
    source                its etcd            this mirror     own etcd

Its API server writes services and their stamps in one transaction, so both carry one revision, and either may be heard
of first. One that writes no stamps (Cilium's) shows the last hop alone. Only what is heard as it happens counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

from msgspec import Struct

from clustermesh.metrics import KVSTOREMESH
from clustermesh.model import Stamp

SECONDS: Final = KVSTOREMESH["clustermesh_kvstoremesh_propagation_seconds"].histogram()
HOP_SECONDS: Final = KVSTOREMESH["clustermesh_kvstoremesh_propagation_hop_seconds"].histogram()
MOST: Final = 4096  # changes that are waited for: copies, or stamps that may never come; some 300 bytes each

T = TypeVar("T")


class _Change(Struct, gc=False):
    """Unix nanoseconds; 0 for what is still to come."""

    cluster: str
    revision: int
    heard: int
    copied: int = 0


class Propagation:
    """Told of keys in the cache; `clock` gives Unix nanoseconds."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._changes: dict[bytes, _Change] = {}
        self._stamps: dict[bytes, tuple[int, Stamp]] = {}

    def heard(self, cluster: str, key: bytes, revision: int) -> None:
        """What is to be at `key` was changed at `revision`."""
        _put_newest(self._changes, key, _Change(cluster, revision, self._clock()))

    def stamped(self, stamps: Mapping[bytes, Stamp], revision: int) -> None:
        """When what was changed at `revision` was observed and published."""
        for key, stamp in stamps.items():
            _put_newest(self._stamps, key, (revision, stamp))
            self._join(key)

    def copied(self, keys: Iterable[bytes]) -> None:
        """What was wanted at `keys` is in the own etcd."""
        now = self._clock()
        for key in keys:
            if (change := self._changes.get(key)) is not None and not change.copied:
                change.copied = now
                _observe(change.cluster, "copy", change.heard, now)
                self._join(key)

    def _join(self, key: bytes) -> None:
        if (change := self._changes.get(key)) is None or not change.copied or key not in self._stamps:
            return
        revision, stamp = self._stamps[key]
        if revision == change.revision:
            SECONDS.labels(change.cluster).observe(_seconds(stamp.observed, change.copied))
            _observe(change.cluster, "publish", stamp.observed, stamp.published)
            _observe(change.cluster, "read", stamp.published, change.heard)
            del self._changes[key], self._stamps[key]


def _observe(cluster: str, hop: str, began: int, ended: int) -> None:
    HOP_SECONDS.labels(cluster, hop).observe(_seconds(began, ended))


def _seconds(began: int, ended: int) -> float:
    """Two clocks may be apart: nothing takes less than no time."""
    return max(ended - began, 0) / 1e9


def _put_newest(waiting: dict[bytes, T], key: bytes, value: T) -> None:
    """Newest last; the oldest goes when there are too many."""
    waiting.pop(key, None)
    waiting[key] = value
    if len(waiting) > MOST:
        del waiting[next(iter(waiting))]
