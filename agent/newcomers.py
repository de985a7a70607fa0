"""Clusters heard of for the first time: nothing is sent there before their tunnels carry something.

Each node of two clusters that are being connected learns of the other cluster at its own moment, and until both ends
know each other's key a tunnel drops what it is given. So the services of a new cluster are held back until WireGuard
has shaken hands with its nodes, or for so long that waiting helps nobody.
"""

from __future__ import annotations

import asyncio
import time

from agent.wireguard.device import Device
from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.state import MeshState

WELCOME_SECONDS = 10.0  # from the first of its nodes on: two tries of WireGuard's handshake, 5 s apart
_POLL = 0.05


class Newcomers:
    """`meet` holds clusters back, `run` lets them in one by one and sets `changed`."""

    def __init__(self, state: MeshState, device: Device, changed: asyncio.Event) -> None:
        self._state, self._device, self._changed = state, device, changed
        self._due: dict[str, float | None] = {}  # when to wait no longer; None before its nodes are known
        self._met = asyncio.Event()

    def meet(self, clusters: set[str]) -> None:
        """Hold the services of `clusters` back from now on."""
        for name in clusters:
            self._due[name] = None
            self._state.withheld.add(name)
            self._met.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._met.wait()
            await self.look()
            if not self._due:
                self._met.clear()
            await asyncio.sleep(_POLL)

    async def look(self) -> None:
        """Let in whoever can be reached, or has been waited for long enough."""
        for name in list(self._due):
            view = self._state.views.get(name)
            if name not in self._state.withheld:  # disconnected meanwhile
                del self._due[name]
            elif view is not None and view.nodes and (await self._is_reachable(name) or self._is_overdue(name)):
                del self._due[name]
                self._state.release(name)
                self._changed.set()

    def _is_overdue(self, name: str) -> bool:
        now = time.monotonic()
        due = self._due[name] or now + WELCOME_SECONDS
        self._due[name] = due
        return now >= due

    async def _is_reachable(self, name: str) -> bool:
        keys = {node.wireguard_public_key for node in self._state.admitted_nodes() if node.cluster == name} - {""}
        try:
            states = await self._device.peers()
        except ClusterMeshError:
            return False
        return bool(keys) and all(key in states and states[key].last_handshake for key in keys)
