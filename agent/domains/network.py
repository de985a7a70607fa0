"""The network domain: the mesh's nodes as routes and CIDRs of the ipcache here, and as peers of the tunnels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.domains.tunnels import Tunnels
from agent.plan.nodes import Name, NodePlanner, ThisEnd
from agent.plan.routes import Route, RouteKey
from clustermesh.mesh.state import MeshState
from clustermesh.reconcile import Reconciler, Tracker


class Network(Domain[Name]):
    """`on_node` is told the cluster of each node that was planned.

    `here` is set once the own Node has turned out to be this machine: with another's name, what leads to that one's
    pods from here would be wanted nowhere. Until then no other node is planned, and what is in the kernel stays.
    """

    name = "network"

    def __init__(
        self,
        end: ThisEnd,
        state: MeshState,
        targets: Targets,
        tunnels: Tunnels,
        on_node: Callable[[str], None],
    ) -> None:
        self.cidrs = Tracker[bytes, bytes]("ipcache-cidrs", targets.cidrs)
        self.routes = Tracker[RouteKey, Route]("routes", targets.routes)
        # Each for itself: a route that cannot be written must not keep an entry of a removed node.
        super().__init__(Reconciler(self.cidrs), Reconciler(self.routes))
        self.planner = NodePlanner(
            end,
            peers=tunnels,
            routes=self.routes,
            cidrs=self.cidrs,
            split=lambda cidrs: state.holdings.ground.split(cidrs, state.own),
        )
        self._own_name = end.name
        self._state, self._tunnels, self._on_node = state, tunnels, on_node
        self._again: set[Name] = set()
        self._routes_lost = False
        self.here = asyncio.Event()
        tunnels.underlay.on_found = self.take_part
        tunnels.on_new_device = self.lose_routes

    def take(self) -> Collection[Name]:
        """This node first: what the others' plans take from it is there before any is applied."""
        self._again |= self._state.take_nodes()
        taken = self._again if self.here.is_set() else self._again & {self._own_name}
        self._again = self._again - taken
        return sorted(taken, key=lambda name: name != self._own_name)

    def plan(self, item: Name) -> None:
        node = self._state.node(*item)
        everyone = self.planner.update(item, node)
        if item == self._own_name:
            self._tunnels.take_own(node)
        if everyone:
            self._again.update(self.planner.names)
            self.wake()
        self._on_node(item[0])

    async def prepare(self) -> None:
        """Routes go with their device without a word."""
        if self._routes_lost:
            self._routes_lost = False
            await self.routes.adopt()

    @property
    def settled(self) -> bool:
        return self.here.is_set() and super().settled

    def take_part(self) -> None:
        """This machine is the own Node."""
        if not self.here.is_set():
            self.here.set()
            self.wake()

    def lose_routes(self) -> None:
        """The device is new: look what is left of the routes through it."""
        self._routes_lost = True
        self.routes.hurry()
        self.wake()
