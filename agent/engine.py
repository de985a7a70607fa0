"""The agent's one loop: what changed is planned, what is planned is applied, and now and then all of it is checked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from agent.bpf.layouts import AddressKey
from agent.kernel import Kernel
from agent.newcomers import Newcomers
from agent.options import Options
from agent.plan.nodes import NodePlan, plan_endpoint, plan_nodes
from agent.plan.services import ServicePlanner
from agent.propagation import Propagation
from agent.sink import AgentSink
from agent.underlay import UnderlaySetup
from clustermesh.address import Address
from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.resolve import resolve
from clustermesh.mesh.state import MeshState

_log = logging.getLogger(__name__)

T = TypeVar("T")
_TURN = 512  # plans between two turns of the event loop, some 5 ms
_TICK = 1.0  # seconds between retries of what failed
_AUDIT = 30.0  # seconds between full comparisons with the kernel
SYNC_TIMEOUT = (
    60.0  # seconds a restarted agent waits for peers it has no state of before it prunes (clustermesh-sync-timeout)
)


class Engine:
    """Plans and applies. Everything that touches the trackers happens in `run`, one step after the other."""

    def __init__(
        self,
        options: Options,
        state: MeshState,
        sink: AgentSink,
        propagation: Propagation,
        kernel: Kernel,
        underlay: UnderlaySetup,
    ) -> None:
        self.plan = NodePlan()
        self.kernel, self.underlay = kernel, underlay
        self.services = ServicePlanner(kernel.services)
        self.ready_at: float | None = None  # Unix time of the first whole state in the kernel
        self.underlay_error = ""
        self.prepared = asyncio.Event()  # the node's device and address are there: pods can be attached
        self._options, self._state, self._sink, self._propagation = options, state, sink, propagation
        self._newcomers = Newcomers(state, kernel.device, sink.changed)
        self._started = time.monotonic()
        self._pruning = False

    async def run(self, own: ClusterReader, peers: Peers) -> None:
        """Never returns. Begins with what the kernel holds, so that a restart changes nothing that is still wanted."""
        await self.kernel.adopt()
        self.services.adopt()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_device())
            tasks.create_task(self.kernel.greet_peers_forever())
            tasks.create_task(self._newcomers.run())
            audit_due = time.monotonic() + _AUDIT
            while True:
                await self.step(own, peers)
                if time.monotonic() > audit_due:
                    await self._audit()
                    audit_due = time.monotonic() + _AUDIT
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._sink.changed.wait(), _TICK)

    async def step(self, own: ClusterReader, peers: Peers) -> None:
        """Plan what is dirty and apply what is pending."""
        self._sink.changed.clear()
        self._newcomers.meet(peers.newcomers)
        peers.newcomers.clear()
        changes = self._propagation.take_seen()  # of this moment, as what is dirty
        await self._replan(bool(self._state.take_nodes()), self._state.take_addresses(), self._state.take_services())
        if self.plan.own is None and own.session.complete and not self.underlay_error:
            await self._prepare_underlay()  # to say that this node is unknown, also where no other node is known
        self._consider_pruning(own, peers)
        await self.kernel.flush()
        if not self.kernel.failed:
            self._propagation.applied(changes)
        if self.ready_at is None and self._pruning and self.kernel.settled:
            self.ready_at = time.time()
            _log.info("ready after %.2f s", time.monotonic() - self._started)

    async def _replan(self, nodes: bool, addresses: set[Address], services: set[tuple[str, str]]) -> None:
        if nodes:
            await self._replan_nodes()
        elif self.underlay_error:
            await self._prepare_underlay()
        await _in_turns(self._plan_endpoint, addresses)
        await _in_turns(self._plan_service, services)

    async def _replan_nodes(self) -> None:
        state, options = self._state, self._options
        nodes = state.admitted_nodes()
        plan = plan_nodes(nodes, state.own, options.node, options.device, options.port, state.ground)
        moved = plan.own != self.plan.own
        self.plan = plan
        if moved or plan.own is None:
            await self._prepare_underlay()
        self.kernel.cidrs.replace(plan.cidrs)
        self.kernel.peers.replace(plan.peers)
        self.kernel.routes.replace(plan.routes)

    async def _prepare_underlay(self) -> None:
        """Make device, forwarding and strict mode; a failure is shown in status and tried again."""
        if self.plan.own is None:
            refusal = self._state.refusals(self._state.own).of("nodes").get(self._options.node)
            why = f"is refused: {refusal.why}" if refusal else f"is not in cluster {self._state.own}"
            self.underlay_error = f"Node {self._options.node} {why}"
            return
        try:
            new = await self.underlay.apply(self.plan.own)
        except ClusterMeshError as e:
            if str(e) != self.underlay_error:
                _log.error("node set-up: %s", e)
            self.underlay_error = str(e)
            return
        self.underlay_error = ""
        self.prepared.set()
        if new:
            await self.kernel.peers.adopt()
            await self.kernel.routes.adopt()

    def _plan_endpoint(self, address: Address) -> None:
        key = AddressKey(address)
        endpoint = self._state.endpoint(address)
        if endpoint is None:
            self.kernel.ipcache.remove(key)
        else:
            self.kernel.ipcache.set(key, plan_endpoint(endpoint))

    def _plan_service(self, name: tuple[str, str]) -> None:
        local = self._state.views[self._state.own].local_services.get(name)
        self.services.update(name, [] if local is None else resolve(local, self._state.remote_services(name)))

    def _consider_pruning(self, own: ClusterReader, peers: Peers) -> None:
        """Delete nothing until every cluster's first list is in, or was restored; a silent peer may not hold it up."""
        if self._pruning or not own.session.complete:
            return
        waited = time.monotonic() - self._started > SYNC_TIMEOUT
        if peers.synced_once and (waited or all(reader.session.complete for reader in peers.readers.values())):
            self._pruning = True
            self.kernel.allow_deletes()

    async def _audit(self) -> None:
        drift = await self.kernel.audit()
        if drift:
            _log.warning("%d kernel entries were not as this agent left them; repairing", drift)
        await self._prepare_underlay()

    async def _watch_device(self) -> None:
        """A WireGuard process that ends takes its device with it: make it again at once."""
        device = self.kernel.device
        while True:
            if self.underlay.current is None:
                await asyncio.sleep(_TICK)
                continue
            try:
                await device.died()
            except ClusterMeshError as e:
                _log.warning("cannot tell whether WireGuard device %s is alive: %s", device.name, e)
                await asyncio.sleep(_TICK)
                continue
            _log.error("WireGuard device %s is gone; making it again", device.name)
            self.underlay.current = None
            self.underlay_error = f"WireGuard device {device.name} died"
            self._sink.changed.set()
            await asyncio.sleep(_TICK)


async def _in_turns(plan: Callable[[T], None], names: Collection[T]) -> None:
    """`plan` for each of `names`; with a hundred thousand of them others still get their turn."""
    for number, name in enumerate(names, start=1):
        plan(name)
        if number % _TURN == 0:
            await asyncio.sleep(0)
