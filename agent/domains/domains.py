"""All domains of this node, and the three things that concern all of them: when to wake, to delete and to attach.

    MeshState.on_dirty -> wake -> network ─> tunnels        (each a task of its own: see domain.py)
                               -> addresses <- CNI ─> devices <- the kernel's own events
                               -> services

Rules
- Nothing is deleted until every cluster's first list is in, or was restored; a silent peer may hold that up for
  `SYNC_TIMEOUT`, the own cluster for ever. Then all is known, and the agent is ready once the kernel holds it.
- What was restored may be older than the kernel. So what the kernel held before and nobody has wanted since is deleted
  later: once every cluster was heard of by this agent, for which a silent peer and the own cluster are waited for as
  above. Readiness and sockets do not wait for that.
- Programs of devices are no business of clusters: what is wanted there goes when it is no more. What was there before
  this agent stays until the pods of before are known. They are loaded once sockets have theirs, which is as much work
  as all before, and readiness does not wait for them.
- What the kernel holds of a peer that is not known yet, or waits at the gate, stays behind the services as long; what
  it holds of any cluster that was restored and is in doubt with it stays until that cluster was heard of.
- New programs are attached to sockets when the maps hold all that is known of the own cluster's services; until then
  those of the agent before go on. Where these have maps of another layout, all clusters must be known first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from agent.bpf.bpffs import cgroup2_root
from agent.conntrack.keeping import Conntrack
from agent.domains.addresses import Addresses
from agent.domains.devices import Devices, LentPorts
from agent.domains.domain import Domain, in_turns
from agent.domains.eviction import Eviction
from agent.domains.gate import Gate
from agent.domains.network import Network
from agent.domains.pinned import Pinned
from agent.domains.services import Services
from agent.domains.tables import Targets, ThisNode
from agent.domains.tunnels import Tunnels
from agent.options import Options
from agent.plan.attached import AttachedPods
from agent.plan.nodes import ThisEnd
from agent.reserved_ports import ReservedPorts
from agent.state import AgentState
from clustermesh.address import Address, text
from clustermesh.errors import Refused
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import Session, State
from clustermesh.reconcile import Tracker

if TYPE_CHECKING:
    from agent.eviction.evictor import Evictor

SYNC_TIMEOUT: Final = 60.0  # seconds (clustermesh-sync-timeout)
_LOOK: Final = 1.0  # seconds between looks at how long a silent peer has held things up
_JUDGING: Final = 10.0  # seconds that nodes which wait to be decided on are waited for

_log = logging.getLogger(__name__)


class Domains:
    """The domains by name, and what is wrong with them. `ready_at` is Unix time of the first whole state."""

    def __init__(
        self,
        options: Options,
        state: AgentState,
        node: ThisNode,
        targets: Targets,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.node = node
        self.ready_at: float | None = None
        self.attached = asyncio.Event()  # to the sockets, over what was known of the own cluster by then
        self.attached_pods = AttachedPods()
        self.gate = Gate(state, node.device, clock)
        self.tunnels = Tunnels(targets, node.device, node.underlay, self._missing)
        end = ThisEnd((state.own, options.node), node.public_key, options.device, options.port)
        self.network = Network(end, state, targets, self.tunnels, self.gate.meet)
        self.addresses = Addresses(state, targets, self.attached_pods)
        self.devices = Devices(
            targets,
            self.attached_pods,
            LentPorts(options.bpf_lb_snat_ports, ReservedPorts(options.run_dir)),
            options.device,
            options.devices,
            options.packets,
            accelerates=bool(options.xdp_modes),
        )
        self.tunnels.on_own = self.devices.take_own
        self.devices.on_outside = self.tunnels.look_after  # one that was made anew has lost strict mode
        before = (self.network, self.tunnels)
        self.services = Services(state, targets, before, options.node, options.reserved)
        self.services.known, self.services.unheard = self._known_clusters, self._unheard_clusters
        self.conntrack = Conntrack(node.datapath.maps["ct"], node.datapath.maps["ct_direct"])
        self.eviction = Eviction(self.services, self._open_evictor)
        self.pinned = Pinned(node.datapath, options.bpffs, self._attach_sockets)
        self._name, self._state = options.node, state
        self._own: ClusterReader | None = None
        self._peers: Peers | None = None
        self._clock, self._started = clock, clock()
        self._complete = False  # every first list is in
        self._admitting = False  # whether the peers' nodes are being let in
        self._progress = asyncio.Event()  # a step has ended, or a cluster's first list
        self._unjudged = asyncio.Event()
        state.on_dirty.append(self.wake)
        for domain in self.all:
            domain.on_step = self._progress.set

    @property
    def all(self) -> tuple[Domain[Any], ...]:
        return (self.network, self.tunnels, self.addresses, self.devices, self.services)

    @property
    def _waited_for(self) -> tuple[Domain[Any], ...]:
        """By readiness."""
        return tuple(domain for domain in self.all if domain is not self.devices)

    @property
    def trackers(self) -> tuple[Tracker[Any, Any], ...]:
        network = (self.addresses.ipcache, self.network.cidrs, self.tunnels.peers, self.network.routes)
        return (*network, *self.devices.trackers, *self.services.trackers)

    def problems(self) -> Iterator[tuple[str, bool]]:
        """What could not be planned, one sentence each, and whether that is a bug."""
        for domain in self.all:
            if domain.fault:
                yield f"{domain.name}: {domain.fault}", True
            for item, problem in domain.problems.items():
                yield f"{domain.name}: {_shown(item)}: {problem.sentence}", domain.is_bug(item)
        for error in filter(None, (self.eviction.error, self.conntrack.error)):
            yield error, False

    def _open_evictor(self) -> Evictor:
        from agent.eviction.evictor import open_evictor  # a thread of its own has the time for it
        from agent.eviction.sweeper import Sweeper

        datapath = self.node.datapath
        return open_evictor(datapath.maps, Sweeper(lambda: datapath.program_fd("sweep_meant")))

    def wake(self) -> None:
        """Something in the mesh state is to be planned. Services rest on all of it."""
        if self._peers is not None and self._peers.newcomers:
            self.gate.hold(self._peers.newcomers)
        if self._state.is_behind:
            self._unjudged.set()
        if self._state.has_nodes:
            self.network.wake()
        if self._state.has_addresses:
            self.addresses.wake()
        self.services.wake()

    def greet(self, own: ClusterReader, peers: Peers) -> None:
        """These are the readers of all clusters."""
        self._own, self._peers = own, peers
        own.on_complete = peers.on_complete = self._note_complete

    def _note_complete(self) -> None:
        self._progress.set()
        self.services.wake()

    async def run(self, own: ClusterReader, peers: Peers) -> None:
        """Never returns."""
        self.greet(own, peers)
        async with asyncio.TaskGroup() as tasks:
            for domain in (self.network, self.tunnels, self.addresses):
                tasks.create_task(domain.run(), name=domain.name)
            tasks.create_task(self._run_services(peers), name=self.services.name)
            tasks.create_task(self._run_devices(), name=self.devices.name)
            tasks.create_task(self._keep_pinned())
            tasks.create_task(self.gate.run())
            tasks.create_task(self._judge())
            tasks.create_task(self.conntrack.run())
            tasks.create_task(self._begin(own))

    async def _run_services(self, peers: Peers) -> None:
        """Once all that was kept of the peers is restored: until then a service would lose its backends there."""
        await peers.looked.wait()
        await self.services.run()

    async def _run_devices(self) -> None:
        await self.attached.wait()
        await self.devices.run()

    async def _keep_pinned(self) -> None:
        await self.attached.wait()
        await self.pinned.run()

    async def _judge(self) -> None:
        """Nodes that wait to be decided on, in a task of its own: each is what it was until then, and a peer that moves
        what thousands of its Nodes wait for keeps nothing else from being planned."""
        while True:
            await self._unjudged.wait()
            self._unjudged.clear()
            await in_turns(self._state.judge)

    async def _judge_some(self) -> None:
        """All of them, if that comes to an end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_JUDGING):
                await in_turns(self._state.judge)

    async def _begin(self, own: ClusterReader) -> None:
        await self._until(lambda: own.session.complete)
        self._admitting = True
        self._state.admit_peers()
        await self._judge_some()
        self._admitting = False
        self.services.wake()
        self.tunnels.look_after()  # to say that this node is unknown, also where there is nothing to do
        if self.node.datapath.has_predecessor:
            await self._until(self.knows_all)
        await self.services.whole_step()
        self._attach_sockets()
        self.attached.set()
        await self._until(self.knows_all)
        self.allow_deletes()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._become_ready())
            tasks.create_task(self._evict())
            for domain in self.all:
                tasks.create_task(self._prune(domain))

    def _attach_sockets(self) -> None:
        if (cgroup := cgroup2_root()) is None:
            raise Refused("no cgroup2 is mounted, where services are translated: mount -t cgroup2 none /sys/fs/cgroup")
        self.node.datapath.attach_sockets(cgroup)

    async def _evict(self) -> None:
        await self._until(lambda: self.ready_at is not None)
        await self.eviction.run()

    async def _become_ready(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for domain in self._waited_for:
                tasks.create_task(domain.whole_step())
        await self._until(self.note_ready)

    async def _prune(self, domain: Domain[Any]) -> None:
        """What was heard last is to be planned before anything goes for not being wanted."""
        await self._until(self.may_prune)
        if domain is self.devices:
            await self._until(lambda: self.attached_pods.complete)
        if domain in (self.network, self.tunnels):
            await self.network.here.wait()
        await self._judge_some()
        if domain is self.tunnels:  # whose peers the network plans
            await self.network.whole_step()
        await domain.whole_step()
        domain.allow_pruning()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._progress.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._progress.wait()

    def knows_all(self) -> bool:
        """Whether every cluster's state is known, if perhaps an old one, or was waited for long enough."""
        return self._each_peer(lambda session: session.complete)

    def may_prune(self) -> bool:
        """Whether what the kernel held before this agent, and nobody has wanted since, may go."""
        if self._own is None or self._peers is None or not self._own.session.heard:
            return False
        lost = [reader for name, reader in self._peers.readers.items() if name in self._peers.lost]
        return all(reader.session.heard for reader in lost) and self._each_peer(lambda session: session.heard)

    def _known_clusters(self) -> Set[int] | None:
        """The ids of those whose services are known and used, None where no other cluster is waited for."""
        if self._own is None or self._peers is None or self._admitting or not self._state.holdings.own_is_known:
            return frozenset()
        peers, readers = self._peers, self._peers.readers
        waited_for = {name for name, reader in readers.items() if self._is_waited_for(name, peers, reader.session)}
        if not waited_for and peers.synced_once and self._own.session.complete:
            return None
        return {reader.config.id for name, reader in readers.items() if name not in waited_for and reader.config}

    def _unheard_clusters(self) -> Set[int]:
        """The ids of those that are known only as they were kept."""
        readers = [] if self._own is None or self._peers is None else [self._own, *self._peers.readers.values()]
        kept = (each for each in readers if each.session.complete and not each.session.heard)
        return {reader.config.id for reader in kept if reader.config}

    def _is_waited_for(self, name: str, peers: Peers, session: Session) -> bool:
        """Until its services are known and used. One without nodes has nothing that the gate could let in."""
        if session.complete:
            view = self._state.views.get(name)
            return session.state is not State.REMOVED and name in self._state.withheld and bool(view and view.nodes)
        return name in peers.lost or not self._has_waited()

    def _has_waited(self) -> bool:
        return self._clock() - self._started > SYNC_TIMEOUT

    def _each_peer(self, fulfils: Callable[[Session], bool]) -> bool:
        if self._peers is None or not self._peers.synced_once:
            return False
        return self._has_waited() or all(fulfils(reader.session) for reader in self._peers.readers.values())

    def allow_deletes(self) -> None:
        self._complete = True
        for domain in self.all:
            domain.allow_deletes()

    def note_ready(self) -> bool:
        """Whether the kernel has held a whole state once."""
        if self.ready_at is None and self._complete and all(domain.settled for domain in self._waited_for):
            self.ready_at = time.time()
            self.on_ready()
            _log.info("ready after %.2f s", self._clock() - self._started)
        return self.ready_at is not None

    def _missing(self) -> str:
        if self._own is None or not self._own.session.complete:
            return ""
        refusal = self._state.refusals(self._state.own).of("nodes").get(self._name)
        why = (
            f"is refused: {refusal.why}"
            if refusal
            else f"is not in cluster {self._state.own}: make it one, or name another with --node"
        )
        return f"Node {self._name} {why}"


def _shown(item: object) -> str:
    """A node's or service's name, or an address."""
    if isinstance(item, bytes):
        return text(Address(item))
    return "/".join(item) if isinstance(item, tuple) and all(isinstance(part, str) for part in item) else str(item)
