"""The shell of the gate: who is new, when the device is looked at for it, and whose services are used from when on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, MutableSet
from contextlib import suppress
from typing import Final

from agent.domains.gate import Gate
from agent.plan.nodes import Name
from agent.wireguard.device import Device
from clustermesh.errors import ClusterMeshError
from clustermesh.line import Line
from clustermesh.mesh.state import MeshState

_LOOK_LIMIT: Final = 1.0  # seconds: who waits too long is let in also while the device does not answer

_log = logging.getLogger(__name__)


class Welcome:
    """`hold` what is new before its services are read; `run` lets it in. Nothing here polls while nobody waits."""

    def __init__(self, state: MeshState, device: Device, clock: Callable[[], float] = time.monotonic) -> None:
        self.gate = Gate()
        self._state, self._device, self._clock = state, device, clock
        self._line = Line(_LOOK_LIMIT)
        self._changed = asyncio.Event()

    def hold(self, newcomers: MutableSet[str]) -> None:
        """Use no service of these clusters from now on; empties `newcomers`."""
        while newcomers:
            cluster = newcomers.pop()
            self.gate.hold(cluster)
            self._state.withheld.add(cluster)

    def meet(self, node: Name, key: str | None) -> None:
        """A node was planned: its WireGuard key, "" for none, None where it is gone."""
        if node[0] in self.gate.waiting:
            self.gate.meet(*node, key, self._clock())
            self._changed.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._wait()
            await self.look()

    async def _wait(self) -> None:
        due = [due for due in (self.gate.next_look, self.gate.next_overdue) if due is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout(max(min(due) - self._clock(), 0.0) if due else None):
                await self._changed.wait()
        self._changed.clear()

    async def look(self) -> None:
        """Let in whoever can be reached, or has been waited for long enough."""
        for cluster in self.gate.waiting - self._state.withheld:  # disconnected meanwhile
            self.gate.leave(cluster)
        self._let_in(self.gate.open_overdue(self._clock()))
        due = self.gate.next_look
        if due is not None and due <= self._clock():
            began = self._clock()
            shaken = await self._find_shaken()
            self._let_in(self.gate.looked(shaken, self._clock(), self._clock() - began))

    async def _find_shaken(self) -> Collection[str]:
        try:
            states = await self._line.call(self._device.peers())
        except ClusterMeshError:
            return ()
        return {key for key, state in states.items() if state.last_handshake}

    def _let_in(self, clusters: Collection[str]) -> None:
        for cluster in clusters:
            _log.info("cluster %s: its services are used from now on", cluster)
            self._state.release(cluster)
