"""Everything of this node's kernel that the mesh needs, as targets in the order in which they refer to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.bpf.layouts import AddressKey, CidrKey, IpcacheValue
from agent.bpf.loader import Datapath
from agent.bpf.probe import Feature
from agent.plan.routes import Route, RouteKey
from agent.plan.services import ServiceTrackers
from agent.targets import maps
from agent.targets.routes import RouteTarget
from agent.targets.wireguard import WireGuardTarget
from agent.wireguard.device import Device
from agent.wireguard.peer import Peer
from clustermesh.reconcile import Reconciler, Tracker


class Kernel:
    """The trackers of one node and their two groups: the network between nodes, and the services that use it."""

    def __init__(self, datapath: Datapath, device: Device, public_key: str, features: Sequence[Feature] = ()) -> None:
        self.datapath, self.device, self.public_key, self.features = datapath, device, public_key, features
        peers = WireGuardTarget(device, public_key)
        self.greet_peers_forever = peers.greet_forever
        self.ipcache = Tracker[AddressKey, IpcacheValue]("ipcache", maps.addresses(datapath))
        self.cidrs = Tracker[CidrKey, IpcacheValue]("ipcache-cidrs", maps.cidrs(datapath))
        self.peers = Tracker[str, Peer]("wireguard-peers", peers)
        self.routes = Tracker[RouteKey, Route]("routes", RouteTarget())
        self.services = ServiceTrackers(
            Tracker("backends", maps.backends(datapath)),
            Tracker("slots", maps.slots(datapath)),
            Tracker("groups", maps.groups(datapath)),
            Tracker("services", maps.services(datapath)),
        )
        # Each for itself: a route that cannot be written must not keep the peer of a removed node.
        self._network = [Reconciler(t) for t in (self.ipcache, self.cidrs, self.peers, self.routes)]
        self._services = Reconciler(*self.services)

    @property
    def trackers(self) -> tuple[Tracker[Any, Any], ...]:
        return tuple(tracker for group in self._groups for tracker in group.trackers)

    @property
    def _groups(self) -> list[Reconciler]:
        return [*self._network, self._services]

    def allow_deletes(self) -> None:
        """The first complete state is in: what it does not name may go."""
        for group in self._groups:
            group.may_delete = True

    async def adopt(self) -> None:
        """Begin with what the kernel holds."""
        for group in self._groups:
            await group.adopt()

    async def audit(self) -> int:
        """Compare everything with the kernel; returns the number of entries found changed by somebody else."""
        return sum([await group.audit() for group in self._groups])

    async def flush(self) -> None:
        """The network before the services that need it, and away after them."""
        for group in self._network:
            await group.upsert()
        await self._services.flush()
        for group in reversed(self._network):
            await group.delete()

    @property
    def failed(self) -> bool:
        return any(tracker.failed for tracker in self.trackers)

    @property
    def settled(self) -> bool:
        return all(group.settled for group in self._groups)
