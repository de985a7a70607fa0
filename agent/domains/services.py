"""The services domain: the services of all clusters, merged, as entries of the load-balancing maps.

What the kernel holds of a cluster when the agent begins stays behind the services until that cluster is known: with the
own backends as they are by now, so that these wait for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Set
from typing import Any, Final

from agent.bpf.layouts import Number, pack, pack_factors
from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.plan.services import ServicePlanner, ServiceTrackers
from agent.plan.unheard import services_found
from agent.state import AgentState
from clustermesh.address import text
from clustermesh.mesh.resolve import resolve
from clustermesh.model import LocalService, Service
from clustermesh.reconcile import Reconciler, Tracker

_COURTESY: Final = 0.02  # seconds: the way to a new backend is made first, unless that takes longer


class Services(Domain[tuple[str, str]]):
    """`before` are the domains that make the way to backends: what they are busy with is waited for, for a moment.

    `known` says which clusters' services are known and used, by id, or None where no other is waited for.
    """

    name = "services"

    def __init__(self, state: AgentState, targets: Targets, before: Collection[Domain[Any]]) -> None:
        self.tables = ServiceTrackers(
            Tracker("backends", targets.backends),
            Tracker("slots", targets.slots),
            Tracker("groups", targets.groups),
            Tracker("services", targets.services),
        )
        self.factors = Tracker("clusters", targets.clusters)
        super().__init__(Reconciler(*self.tables), Reconciler(self.factors))
        self.planner = ServicePlanner(self.tables)
        self._state, self._propagation, self._before = state, state.propagation, before
        self.known: Callable[[], Set[int] | None] = lambda: None
        self._known: Set[int] | None = None  # as of the last step
        self._found: dict[tuple[str, str], list[Service]] = {}  # in the kernel, of clusters that are not known yet
        self._changes: dict[Any, int] = {}
        self._in_vain: dict[str, int] = {}
        self.set_factors({})
        self.left_out: dict[tuple[str, str], str] = {}  # services at addresses this node lives by, and why

    def set_factors(self, factors: Mapping[int, float]) -> None:
        """Give each cluster, by its id, this part (0 to 1) of its share in every service; those not named have all of
        it. One write: a cluster at 0 is out with it."""
        self.factors.set(pack(Number(0)), pack_factors(factors))
        self.wake()

    async def adopt(self) -> None:
        await super().adopt()
        self.planner.adopt()

    def take(self) -> Collection[tuple[str, str]]:
        self._changes |= self._propagation.take_seen()  # of this moment, as what is dirty
        before, self._known = self._known, self.known()
        return self._state.take_services() | (self._found.keys() if self._known != before else set())

    def plan(self, item: tuple[str, str]) -> None:
        self._state.rule(item)
        local = self._state.own_service(item)
        entries = [] if local is None else resolve(local, self._remotes(item, local))
        taken = {e.frontend.address: why for e in entries if (why := self._state.holdings.lives_at(e.frontend.address))}
        self.planner.update(item, [each for each in entries if each.frontend.address not in taken])
        self.left_out.pop(item, None)
        if taken:
            said = ", ".join(f"{text(address)} is {why}" for address, why in taken.items())
            self.left_out[item] = f"{said}, and has to be reached itself: give the service another address"

    def _remotes(self, item: tuple[str, str], local: LocalService) -> list[Service]:
        """As the clusters say it, or, of one that is not known yet, as the kernel has it."""
        found = {service.cluster_id: service for service in self._still_found(item, local)}
        said = [service for service in self._state.remote_services(item) if service.cluster_id not in found]
        return [*said, *found.values()]

    def _still_found(self, item: tuple[str, str], local: LocalService) -> list[Service]:
        """What is known once is never looked for in the kernel again."""
        known, found = self._known, self._found.pop(item, [])
        if known is None:
            return []
        if not self.planner.plans(item):
            found = services_found(self.tables, local)
        if found := [service for service in found if service.cluster_id not in known]:
            self._found[item] = found
        return found

    def is_to_wait_for(self) -> list[Domain[Any]]:
        """Whoever was waited for in vain is not waited for again before it has begun something else."""
        return [each for each in self._before if not each.idle.is_set() and self._in_vain.get(each.name) != each.begun]

    async def prepare(self) -> None:
        busy = self.is_to_wait_for()
        if not busy or all(reconciler.settled for reconciler in self.reconcilers):
            return
        try:
            async with asyncio.timeout(_COURTESY):
                for domain in busy:
                    await domain.idle.wait()
        except TimeoutError:
            self._in_vain |= {domain.name: domain.begun for domain in busy}

    def applied(self) -> None:
        if not any(tracker.problems for tracker in self.trackers):
            changes, self._changes = self._changes, {}
            self._propagation.applied(changes)
