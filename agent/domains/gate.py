"""Clusters heard of for the first time: nothing is sent there before their tunnels carry something.

Each node of two clusters that are being connected learns of the other cluster at its own moment, and until both ends
know each other's key a tunnel drops what it is given. So the services of a new cluster wait at this gate.

Rules
- A cluster is let in when WireGuard has shaken hands with each of its nodes that stands and has a key, or `WELCOME`
  seconds after its first node was known: by then waiting helps nobody.
- The kernel tells nobody of a handshake, so the device is asked: once for all who wait, soon after a node came and then
  less and less often, and never for more than `SHARE` of the time, however much an answer costs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, MutableSet
from contextlib import suppress
from typing import Final

from agent.wireguard.device import Device
from clustermesh.errors import ClusterMeshError
from clustermesh.line import Line
from clustermesh.logs import about
from clustermesh.mesh.state import MeshState

WELCOME: Final = 10.0  # seconds: two tries of WireGuard's handshake, 5 s apart
SHARE: Final = 0.05
_FIRST: Final = 0.05  # seconds until the first look ...
_LAST: Final = 1.0  # ... and between two at most
_GROWTH: Final = 1.25
_LIMIT: Final = 1.0  # seconds: who waits too long is let in also while the device does not answer

_log = logging.getLogger(__name__)


class Gate:
    """`hold` what is new before its services are read; `run` lets it in. Nothing here polls while nobody waits."""

    def __init__(self, state: MeshState, device: Device, clock: Callable[[], float] = time.monotonic) -> None:
        self.waiting: dict[str, float | None] = {}  # when each is let in anyway, None before a node of it is known
        self._state, self._device, self._clock = state, device, clock
        self._line = Line(_LIMIT)
        self._period = _FIRST
        self._next_question = 0.0  # one before that would take more than its share
        self._met = asyncio.Event()

    def hold(self, newcomers: MutableSet[str]) -> None:
        """Use no service of these clusters from now on; empties `newcomers`."""
        while newcomers:
            cluster = newcomers.pop()
            self.waiting[cluster] = None
            self._state.withheld.add(cluster)

    def meet(self, cluster: str) -> None:
        """A node of `cluster` was planned."""
        if cluster in self.waiting:
            self.waiting[cluster] = self.waiting[cluster] or self._clock() + WELCOME
            self._period = _FIRST
            self._met.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period if self.waiting else None):
                    await self._met.wait()
                    self._met.clear()
                    await asyncio.sleep(_FIRST)
            await self.look()

    async def look(self) -> None:
        """Let in whoever can be reached, or has been waited for long enough."""
        self._period = min(self._period * _GROWTH, _LAST)
        for cluster in self.waiting.keys() - self._state.withheld:  # disconnected meanwhile
            del self.waiting[cluster]
        keys = {cluster: self._keys(cluster) for cluster in self.waiting}
        shaken = await self._find_shaken() if any(keys.values()) else ()
        for cluster, wanted in keys.items():
            due = self.waiting[cluster]
            if (wanted and wanted.issubset(shaken)) or (due is not None and due <= self._clock()):
                self._let_in(cluster)

    def _keys(self, cluster: str) -> set[str]:
        """The WireGuard keys of the nodes there are tunnels to."""
        view = self._state.views.get(cluster)
        nodes = [self._state.node(cluster, name) for name in (view.nodes if view else ())]
        return {node.wireguard_public_key for node in nodes if node is not None} - {""}

    async def _find_shaken(self) -> Collection[str]:
        if (began := self._clock()) < self._next_question:
            return ()
        try:
            states = await self._line.call(self._device.peers())
        except ClusterMeshError:
            return ()
        finally:
            ended = self._clock()
            self._next_question = ended + (ended - began) * (1 / SHARE - 1)
        return {key for key, state in states.items() if state.last_handshake}

    def _let_in(self, cluster: str) -> None:
        _log.info("cluster %s: its services are used from now on", cluster, extra=about(cluster))
        del self.waiting[cluster]
        self._state.release(cluster)
