"""How long a change took from its source (a line of YAML in one cluster) to this node's kernel maps, hop by hop.

    observed ─ publish ─> published ─ read ─> heard ─ apply ─> applied
    source                own etcd            this agent       the maps

An API server writes services and their stamps in one transaction, so all carry one etcd revision: that joins what was
observed there with what was applied here. Only changes seen live count; a full list says nothing about delay. The
clocks of two machines are compared, so between machines the figure is as good as their time synchronisation.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from typing import Any, TypeVar

from msgspec import Struct

from clustermesh.model import Stamp
from clustermesh.wire.kinds import LOCAL_SERVICES, SERVICES

_KEEP = 1000
_STEPS = tuple(times * 10**power for power in range(8) for times in (1, 2, 5))
_MOST_TIMED = 4096  # changes whose times are kept to be asked for, some 300 bytes each
_MOST_WAITING = 20_000  # changes whose stamp, or whose application, is still to come; many have none (a real Cilium's)

K = TypeVar("K")
T = TypeVar("T")
_Change = tuple[str, Any]  # (cluster, (namespace, name))


class Times(Struct, gc=False):
    """When each hop saw a change, Unix nanoseconds; 0 where that is not known, or is still to come."""

    revision: int
    heard: int
    applied: int = 0
    observed: int = 0
    published: int = 0
    stamped: bool = True


class Propagation:
    """Joins stamps with applied changes. `recent` holds the last thousand delays in milliseconds, oldest first.

    `latest` is each cluster's last one, rounded up to 1, 2 or 5 times a power of ten: a little more or less is no news
    to others. `times` has the last changes of any kind, as far as they were heard as they happened.
    """

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=_KEEP)
        self.latest: dict[str, int] = {}
        self._stamps: dict[_Change, tuple[int, Stamp]] = {}
        self._seen: dict[_Change, int] = {}
        self._applied: dict[_Change, tuple[int, int]] = {}
        self._times: dict[tuple[str, str, Any], Times] = {}  # by cluster, kind and name

    def heard(self, cluster: str, kind: str, name: Any, revision: int, *, stamped: bool = True) -> None:
        """A change came in at `revision` and is not applied yet; whether its stamp is to be expected."""
        times = Times(revision, time.time_ns(), stamped=stamped)
        _put_newest(self._times, (cluster, kind, name), times, _MOST_TIMED)
        if kind in (SERVICES, LOCAL_SERVICES):
            self.seen((cluster, name), revision)

    def times(self, cluster: str, kind: str, name: Any) -> Times | None:
        """Of the last change, None where it came with a list, or long ago."""
        return self._times.get((cluster, kind, name))

    def gone(self, cluster: str, kind: str, name: Any) -> None:
        """There is nothing any more whose times could be asked for."""
        self._times.pop((cluster, kind, name), None)

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
            if (times := self._of(change, revision)) is not None:
                times.applied = now
            if times is None or times.stamped:
                _put_newest(self._applied, change, (revision, now))
                self._join(change)

    def forget(self, cluster: str) -> None:
        """The cluster is gone, and its revisions mean nothing any more."""
        for waiting in (self._stamps, self._seen, self._applied):
            for change in [change for change in waiting if change[0] == cluster]:
                del waiting[change]
        for timed in [timed for timed in self._times if timed[0] == cluster]:
            del self._times[timed]
        self.latest.pop(cluster, None)

    def _of(self, change: _Change, revision: int) -> Times | None:
        cluster, name = change
        found = self._times.get((cluster, SERVICES, name)) or self._times.get((cluster, LOCAL_SERVICES, name))
        return found if found is not None and found.revision == revision else None

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
            self.latest[change[0]] = _STEPS[min(bisect_left(_STEPS, delay * 1000), len(_STEPS) - 1)]
            _observe(change[0], delay)
            if (times := self._of(change, revision)) is not None:
                times.observed, times.published, times.applied = stamp.observed, stamp.published, now
                _observe_hops(change[0], times)


def _observe(cluster: str, delay: float) -> None:
    from agent.histograms import SECONDS

    SECONDS.labels(cluster).observe(delay)


def _observe_hops(cluster: str, times: Times) -> None:
    """Two clocks may be apart: no hop takes less than no time."""
    from agent.histograms import HOP_SECONDS

    moments = {"publish": times.observed, "read": times.published, "apply": times.heard, "": times.applied}
    for (hop, began), ended in zip(moments.items(), [*moments.values()][1:], strict=False):
        HOP_SECONDS.labels(cluster, hop).observe(max(ended - began, 0) / 1e9)


def _put_newest(waiting: dict[K, T], change: K, value: T, most: int | None = None) -> None:
    """Newest last; the oldest go when there are too many."""
    waiting.pop(change, None)
    waiting[change] = value
    while len(waiting) > (most or _MOST_WAITING):
        del waiting[next(iter(waiting))]
