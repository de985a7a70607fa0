"""How full the kernel's maps are.

What the agent writes it knows. What programs write by themselves (connections, affinity) is counted now and then, in a
thread, and only the beginning of each map: keys are spread evenly over the buckets, so that the part that was
walked says how much there is in all.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from agent.bpf.loader import Datapath
from agent.bpf.pins import PinnedMap, pages, shape_of
from agent.bpf.syscalls import MapType
from agent.targets.maps import MapTarget
from clustermesh.reconcile import Tracker

_PERIOD: Final = 30.0  # seconds
_WALKED: Final = 4096  # entries, some milliseconds; then what is estimated is 5 % off at most, as good as always
_COUNTED: Final = (MapType.HASH, MapType.LRU_HASH)

_log = logging.getLogger(__name__)


class Fill(NamedTuple):
    """How many entries a map has, and how many it takes."""

    entries: int
    capacity: int


class Pressure:
    """Of all maps of a datapath; `trackers` know what is in some of them."""

    def __init__(self, datapath: Datapath, trackers: Iterable[Tracker[Any, Any]]) -> None:
        self._tracked = {each.target.name: each for each in trackers if isinstance(each.target, MapTarget)}
        shapes = {name: PinnedMap(fd, shape_of(fd)) for name, fd in datapath.maps.items() if name not in self._tracked}
        self._others = {name: each for name, each in shapes.items() if each.shape.type in _COUNTED}
        self._counted: dict[str, Fill] = {}

    def fills(self) -> Mapping[str, Fill]:
        """By the names of the maps; those that were not counted yet are left out."""
        known = {
            name: Fill(len(each.actual), each.target.max_entries)
            for name, each in self._tracked.items()
            if isinstance(each.target, MapTarget)
        }
        return known | self._counted

    async def keep(self) -> None:
        """Count now and then. Never returns."""
        while True:
            try:
                self._counted = await asyncio.to_thread(self._count)
            except OSError as e:
                _log.debug("the maps cannot be counted: %s", e)
            await asyncio.sleep(_PERIOD)

    def _count(self) -> dict[str, Fill]:
        return {name: Fill(count(each), each.shape.max_entries) for name, each in self._others.items()}


def count(held: PinnedMap, most: int = _WALKED) -> int:
    """How many entries a hash map has; beyond `most` of them an estimate. OSError."""
    seen, buckets = 0, 1 << (held.shape.max_entries - 1).bit_length()
    for page in pages(held.fd, held.shape, most):
        seen += page.size
        if seen >= most and not page.error:
            walked = int.from_bytes(page.cursor[:4], sys.byteorder)
            return min(seen * buckets // walked, held.shape.max_entries)
    return seen
