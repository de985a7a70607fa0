"""Sockets and connections whose backend went are ended, or moved: looked for after each change of the services, and
sockets now and then.

What sockets mean is read from the kernel and compared with what is wanted, so that nothing is missed: neither what
went while no agent ran, nor a socket that was just connecting. It has a task and threads of its own, and while services
change all the time it takes a fiftieth of one CPU, unless there is much to end; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from agent.domains.services import Services
from clustermesh.errors import ClusterMeshError

if TYPE_CHECKING:  # imported when there is time for it
    from agent.bpf.layouts import MeantValue
    from agent.conntrack.tracked import Tracked
    from agent.eviction.evictor import Evictor

_PERIOD: Final = 30.0  # seconds between two looks when nothing changes
_IDLE: Final = 49  # times as long as a look took until the next, ...
_MOST: Final = 1.0  # ... but not longer than this, in seconds
_SERVICE, _CLUSTER = "service", "cluster"  # verdict.Reason's
_FORGOTTEN: Final = "forgotten"
_REMEMBERED: Final = 0  # meaning.REMEMBERED
_TURN: Final = 0.004  # seconds of judging between two turns of the event loop

_Those = TypeVar("_Those")

_log = logging.getLogger(__name__)


class Eviction:
    """`open_evictor` is called in a thread. `counts` are sockets, and connections that are translated packet by packet,
    by what went and what became of them; `error` is what kept the last look from its end."""

    def __init__(
        self,
        services: Services,
        open_evictor: Callable[[], Evictor],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.error = ""
        self._services, self._open, self._clock = services, open_evictor, clock
        self._departures, self._tracked_from = -1, 0.0  # as of the last look at connections; when the next may be
        self._woken = asyncio.Event()
        services.on_applied = self._woken.set

    async def run(self) -> None:
        """Never returns. What is deleted from the maps must be known to be gone by now."""
        evictor: Evictor | None = None
        try:
            while True:
                self._woken.clear()
                began, again = self._clock(), False
                try:
                    if evictor is None:
                        evictor = await asyncio.to_thread(self._open)
                    again = await self._look(evictor)
                    again |= await self._look_at_tracked(evictor.tracked)
                except (ClusterMeshError, OSError) as e:
                    self._fail(f"sockets whose backend went are not looked for: {e}")
                except Exception as e:
                    _log.exception("a look for sockets whose backend went failed")
                    self._fail(f"internal error, see the log: {e!r}")
                await asyncio.sleep(min((self._clock() - began) * _IDLE, _MOST))
                if not again:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_PERIOD):
                            await self._woken.wait()
        finally:
            if evictor is not None:
                evictor.close()

    def _fail(self, error: str) -> None:
        if error and error != self.error:
            _log.warning("%s", error)
        self.error = error

    async def _look(self, evictor: Evictor) -> bool:
        """Whether there may be more: sockets that came or went meanwhile may have hidden one."""
        found = await asyncio.to_thread(evictor.find)
        error, again = "", False
        for why, gone in (await self._judge(found)).items():
            evicted = await asyncio.to_thread(evictor.evict, gone, why != _SERVICE)
            for outcome, count in evicted.outcomes.items():
                self.counts[why, outcome] += count
                again |= outcome != "failed"
            error = evicted.error or error
            if said := ", ".join(f"{count} {outcome}" for outcome, count in evicted.outcomes.items()):
                _log.info("sockets of a %s that went: %s", why, said)
        self._fail(error or await asyncio.to_thread(evictor.sweep, found))
        return again

    async def _look_at_tracked(self, tracked: Tracked) -> bool:
        """Whether it is to be done later: there may be very many, and only what left one of several services that had
        it is not found by the programs."""
        departures, began = self._services.departures, self._clock()
        if departures == self._departures or began < self._tracked_from:
            return departures != self._departures
        for why, gone in (await self._judge(await asyncio.to_thread(tracked.find))).items():
            if count := await asyncio.to_thread(tracked.end, gone):
                self.counts[why, _FORGOTTEN] += count
                _log.info("connections of a %s that went: %d %s", why, count, _FORGOTTEN)
        self._departures, self._tracked_from = departures, self._clock() + (self._clock() - began) * _IDLE
        return False

    def _is_doubtful(self, meaning: MeantValue, why: str) -> bool:
        """Whether the socket may have been connected anew, to the backend itself, as only lb_meant would know: while
        there is a pod it speaks with it."""
        return meaning.backend_id == _REMEMBERED and why != _CLUSTER and self._services.is_pod(meaning.backend)

    async def _judge(self, found: Mapping[MeantValue, _Those]) -> dict[str, dict[MeantValue, _Those]]:
        """Those whose backend is gone, by what went."""
        from agent.eviction import verdict

        tables, planner = self._services.tables, self._services.planner
        result: dict[str, dict[MeantValue, _Those]] = {}
        began = self._clock()
        evicted: Set[int] = self._services.evicted
        for meaning, why in verdict.gone(found, planner.wanted, tables.services.actual, evicted):
            if why is not None and not self._is_doubtful(meaning, why):
                result.setdefault(why, {})[meaning] = found[meaning]
            if self._clock() - began > _TURN:
                await asyncio.sleep(0)
                began = self._clock()
        return result
