"""The tunnels domain: this node's WireGuard device, what it needs before it can have tunnels, and its peers.

The peers are planned by the network domain; a device that does not answer keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from agent.domains.domain import AUDIT, Domain
from agent.domains.tables import Targets
from agent.targets.wireguard import PeerTracker
from agent.underlay import UnderlaySetup
from agent.wireguard.device import Device
from agent.wireguard.peer import Peer, PeerKey
from clustermesh.errors import ClusterMeshError
from clustermesh.line import Line
from clustermesh.model import Node
from clustermesh.reconcile import Reconciler

_BREATH = 1.0  # seconds before the device is looked after again

_log = logging.getLogger(__name__)


class Tunnels(Domain[str]):
    """`prepared` is set when pods can be attached; `error` says why the device is not as it should be, or "".

    `missing` is what to say while this node's own Node is not known, "" while it may still come.
    """

    name = "tunnels"

    def __init__(self, targets: Targets, device: Device, underlay: UnderlaySetup, missing: Callable[[], str]) -> None:
        self.peers = PeerTracker("wireguard-peers", targets.peers)
        super().__init__(Reconciler(self.peers))
        self.device, self.underlay = device, underlay
        self.own: Node | None = None
        self.error = ""
        self.prepared = asyncio.Event()
        self.on_new_device: Callable[[], None] = lambda: None
        self.on_own: Callable[[Node | None], None] = lambda _own: None
        self._greet = targets.peers.greet_forever
        self._missing = missing
        self._line = Line()
        self._set_up_due = 0.0  # 0: at once

    def set(self, key: PeerKey, peer: Peer) -> None:
        """`peer` is wanted."""
        self.peers.set(key, peer)
        self.wake()

    def remove(self, key: PeerKey) -> None:
        """Nobody wants this peer any more."""
        self.peers.remove(key)
        self.wake()

    def take_own(self, own: Node | None) -> None:
        """This node is `own` now."""
        if own != self.own:
            self.own = own
            self.on_own(own)
            self.look_after()

    def look_after(self) -> None:
        """Set the device up again, which repairs what is not as it should be."""
        self._set_up_due = 0.0
        self.wake()

    def take(self) -> Iterable[str]:
        return ()

    @property
    def next_due(self) -> float | None:
        return min(self._set_up_due, super().next_due or self._set_up_due)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().run())
            tasks.create_task(self._watch())
            tasks.create_task(self._greet())

    async def prepare(self) -> None:
        """Make device, forwarding and strict mode; a failure is shown in status and tried again."""
        if self._clock() < self._set_up_due:
            return
        self._set_up_due = self._clock() + _BREATH
        if (own := self.own) is None:
            self.error = self._missing()
            return
        try:
            new = await self._line.call(self.underlay.apply(own))
        except ClusterMeshError as e:
            if str(e) != self.error:
                _log.error("node set-up: %s", e)
            self.error = str(e)
            return
        self._set_up_due = self._clock() + AUDIT if own is self.own else 0.0
        self.error = ""
        self.prepared.set()
        if new:
            await self.peers.adopt()
            self.peers.hurry()
            self.on_new_device()

    async def _watch(self) -> None:
        """A WireGuard process that ends takes its device with it: make it again at once."""
        while True:
            await self.prepared.wait()
            try:
                await self.device.died()
            except ClusterMeshError as e:
                _log.warning("cannot tell whether WireGuard device %s is alive: %s", self.device.name, e)
                await asyncio.sleep(_BREATH)
                continue
            _log.error("WireGuard device %s is gone; making it again", self.device.name)
            self.underlay.current = None
            self.error = f"WireGuard device {self.device.name} died"
            self.look_after()
            await asyncio.sleep(_BREATH)
