"""How long a change took from its source (a line of YAML in one cluster) to this node's kernel maps.

An API server writes services and their stamps in one transaction, so all carry one etcd revision: that joins what was
observed there with what was applied here. Only changes seen live count; a full list says nothing about delay. The
clocks of two machines are compared, so between machines the figure is as good as their time synchronisation.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, TypeVar

from prometheus_client import Histogram

from clustermesh.model import Stamp

SECONDS = Histogram(
    "clustermesh_propagation_seconds",
    "From a change in its source to the write of this node's maps",
    ["source_cluster"],
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10),
)
_KEEP = 1000
_MOST_WAITING = 20_000  # changes whose stamp, or whose application, is still to come; many have none (a real Cilium's)

T = TypeVar("T")
_Change = tuple[str, Any]  # (cluster, (namespace, name))


class Propagation:
    """Joins stamps with applied changes. `recent` holds the last thousand delays in milliseconds, oldest first."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_KEEP)
        self._stamps: dict[_Change, tuple[int, Stamp]] = {}
        self._seen: dict[_Change, int] = {}
        self._applied: dict[_Change, tuple[int, int]] = {}

    def stamped(self, change: _Change, revision: int, stamp: Stamp) -> None:
        _put_newest(self._stamps, change, (revision, stamp))
        self._join(change)

    def seen(self, change: _Change, revision: int) -> None:
        """The change came in at `revision` and is not applied yet."""
        self._seen[change] = revision

    def take_seen(self) -> dict[_Change, int]:
        """The changes that the flush about to begin will apply."""
        seen, self._seen = self._seen, {}
        return seen

    def applied(self, changes: dict[_Change, int]) -> None:
        """`changes`, as taken before the flush, are in the maps now."""
        now = time.time_ns()
        for change, revision in changes.items():
            _put_newest(self._applied, change, (revision, now))
            self._join(change)

    def forget(self, cluster: str) -> None:
        """The cluster is gone, and its revisions mean nothing any more."""
        for waiting in (self._stamps, self._seen, self._applied):
            for change in [change for change in waiting if change[0] == cluster]:
                del waiting[change]

    def _join(self, change: _Change) -> None:
        """Count the delay where stamp and application are of one revision; the older of the two has no partner left."""
        if change not in self._stamps or change not in self._applied:
            return
        (stamped, stamp), (revision, now) = self._stamps[change], self._applied[change]
        if stamped <= revision:
            del self._stamps[change]
        if revision <= stamped:
            del self._applied[change]
        if stamped == revision:
            delay = max(now - stamp.observed, 0) / 1e9
            self.recent.append(round(delay * 1000, 3))
            SECONDS.labels(change[0]).observe(delay)


def _put_newest(waiting: dict[_Change, T], change: _Change, value: T) -> None:
    """Newest last; the oldest go when there are too many."""
    waiting.pop(change, None)
    waiting[change] = value
    while len(waiting) > _MOST_WAITING:
        del waiting[next(iter(waiting))]
