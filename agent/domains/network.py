"""The network domain: the mesh's nodes as routes and CIDRs of the ipcache here, and as peers of the tunnels."""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.domains.tunnels import Tunnels
from agent.plan.nodes import Name, NodePlanner, ThisEnd
from agent.plan.routes import Route, RouteKey
from clustermesh.mesh.state import MeshState
from clustermesh.reconcile import Reconciler, Tracker


class Network(Domain[Name]):
    """`on_node` is told the cluster of each node that was planned."""

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
        tunnels.on_new_device = self.lose_routes

    def take(self) -> Collection[Name]:
        """This node first: what the others' plans take from it is there before any is applied."""
        again, self._again = self._again, set()
        return sorted(again | self._state.take_nodes(), key=lambda name: name != self._own_name)

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

    def lose_routes(self) -> None:
        """The device is new: look what is left of the routes through it."""
        self._routes_lost = True
        self.routes.hurry()
        self.wake()
