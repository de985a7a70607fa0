"""The services domain: the services of all clusters, merged, as entries of the load-balancing maps.

What the kernel holds of a cluster when the agent begins stays behind the services until that cluster is known: with the
own backends as they are by now, so that these wait for nobody. Where a cluster is known only as it was kept on disk,
and the kernel has something else behind a service, the kernel is believed until the cluster is heard of: it was told
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import partial
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from agent.bpf.layouts import BackendValue, Number, pack, pack_evicted, pack_factors, unpack
from agent.domains.domain import Domain
from agent.domains.tables import Targets, most_of
from agent.plan.leaving import Leavers
from agent.plan.services import ServicePlanner, ServiceTrackers
from agent.plan.unheard import as_found, details_found, doubtful, has_any, services_found
from agent.state import AgentState
from clustermesh.address import Address, is_ipv4, text
from clustermesh.mesh.answering import Here, here_of
from clustermesh.mesh.resolve import LOOPBACK, Kind, ServiceEntry, asks_more, resolve
from clustermesh.model import LocalService, Protocol, Service
from clustermesh.reconcile import Reconciler, Tracker

_LEAVERS: Final = 16  # the part of lb_backends that is for those that left their services and rest
_COURTESY: Final = 0.02  # seconds: the way to a new backend is made first, unless that takes longer


class HealthCheck(NamedTuple):
    """Load balancers ask each node at `port`; `ready` is how many backends of the service are on this one."""

    port: int
    ready: int


class Services(Domain[tuple[str, str]]):
    """`before` are the domains that make the way to backends: what they are busy with is waited for, for a moment.

    `node` is this one's name. `reserved` is what of this agent is called at a port of nodes, in words.

    `known` says which clusters' services are known and used, by id, or None where no other is waited for; `unheard`
    which are known only as they were kept.
    """

    name = "services"

    def __init__(
        self,
        state: AgentState,
        targets: Targets,
        before: Collection[Domain[Any]],
        node: str,
        reserved: Mapping[tuple[Protocol, int], str],
    ) -> None:
        self.tables = ServiceTrackers[Tracker[bytes, bytes]](
            *(Tracker(name, getattr(targets, name)) for name in ServiceTrackers._fields)
        )
        self.factors, self._evictions = Tracker("clusters", targets.clusters), Tracker("evicted", targets.evicted)
        super().__init__(
            Reconciler(*self.tables, grants=[self.tables.source_ranges]), Reconciler(self.factors, self._evictions)
        )
        self.planner = ServicePlanner(self.tables, [most_of(table.target) for table in self.tables])
        self._leavers = Leavers(state.pod, state.watched, most_of(targets.backends) // _LEAVERS)
        # In the kernel and in no service, by the namespace of their pods: for one step, once all clusters are known.
        self._strays: dict[str, list[BackendValue]] | None = None
        self._state, self._propagation, self._before = state, state.propagation, before
        self.known: Callable[[], Set[int] | None] = lambda: None
        self.unheard: Callable[[], Set[int]] = frozenset
        self._known: tuple[Set[int] | None, Set[int]] = (None, frozenset())  # both as of the last step
        # In the kernel, of clusters that are not known yet, or otherwise than it is.
        self._found: dict[tuple[str, str], dict[int, Service]] = {}
        self.evicted: Set[int] = frozenset()  # the ids of clusters whose established connections are ended, too
        self.on_applied: Callable[[], None] = lambda: None  # called when the kernel was written to
        self.departures = 0  # the planner's, once the kernel has what it planned
        self._changes: dict[Any, int] = {}
        self._in_vain: dict[str, int] = {}
        self.set_factors({})
        self.left_out: dict[tuple[str, str], str] = {}  # services at addresses this node lives by, and why
        self.here = Here(node)
        self._reserved, self._ground = reserved, state.holdings.ground
        self.health_checks: dict[tuple[str, str], HealthCheck] = {}
        self.unanswered: dict[tuple[str, str], str] = {}  # those of them that cannot be, and why
        self.on_health_check: Callable[[], None] = lambda: None  # called when one of them has changed
        self._asking: set[tuple[str, str]] = set()  # for which it matters what this node is and stands on

    def set_factors(self, factors: Mapping[int, float], evicted: Set[int] = frozenset()) -> None:
        """Give each cluster, by its id, this part (0 to 1) of its share in every service; those not named have all of
        it. One write: a cluster at 0 is out with it. What is established goes on, but for those clusters of them that
        are `evicted`: a second write, after the first, so that nobody who is sent away comes back."""
        self.evicted = evicted & {each for each, factor in factors.items() if not factor}
        self.factors.set(pack(Number(0)), pack_factors(factors))
        self._evictions.set(pack(Number(0)), pack_evicted(self.evicted))
        self.wake()

    async def adopt(self) -> None:
        await super().adopt()
        self.planner.adopt()

    def take(self) -> Collection[tuple[str, str]]:
        self._changes |= self._propagation.take_seen()  # of this moment, as what is dirty
        before, self._known = self._known, (self.known(), self.unheard())
        taken = self._state.take_services() | (self._found.keys() if self._known != before else set())
        taken |= self.planner.services_in(self._strays.keys()) if self._strays else set()
        return taken | (self._asking if self._has_moved() else set())

    def _has_moved(self) -> bool:
        """Whether this node is another than it was, or stands on other ground."""
        before = self.here, self._ground
        self._ground = self._state.holdings.ground
        own = self._state.views.get(self._state.own)
        if own is not None and (node := own.nodes.get(self.here.name)) is not None:  # else this machine is what it was
            self.here = here_of(self.here.name, node)
        return (self.here, self._ground) != before

    def plan(self, item: tuple[str, str]) -> None:
        self._state.rule(item)
        self._asking.discard(item)
        local = self._state.own_service(item)
        self._check_health(item, local)
        entries = [] if local is None else self._resolve(item, local)
        taken = {each.frontend: why for each in entries if (why := self._taken(each))}
        self.left_out.pop(item, None)
        if taken:
            said = dict.fromkeys(f"{text(at.address)} is {why}" for at, why in taken.items())
            self.left_out[item] = ", ".join(said)
        entries = [each for each in entries if each.frontend not in taken] if taken else entries
        if self.planner.plans(item):
            own_id = 0 if local is None else local.service.cluster_id
            strays = (self._strays or {}).get(item[0], ()) if local is not None and local.is_global else ()
            entries = self._leavers.keep(item, own_id, entries, partial(self.planner.claim, item), strays)
        self.planner.update(item, entries)

    def is_pod(self, address: Address) -> bool:
        """Whether a pod of any cluster is there, as far as is known."""
        return self._state.endpoint(address) is not None

    def _check_health(self, item: tuple[str, str], local: LocalService | None) -> None:
        before, after = self.health_checks.pop(item, None), None
        if local is not None and local.outside.local_only and local.outside.health_check_port:
            ready = [at for at, each in local.details.items() if each.node == self.here.name and not each.state]
            ipv4 = sum(map(is_ipv4, ready))
            pods = max(ipv4, len(ready) - ipv4)  # of two families each has an address of either
            after = self.health_checks[item] = HealthCheck(local.outside.health_check_port, pods)
        if before != after:
            self.on_health_check()

    def _taken(self, entry: ServiceEntry) -> str:
        """What stands where the service is called, and has to be reached there itself, with what to do; or ""."""
        at = entry.frontend
        if entry.kind is Kind.HOST_PORT and at.address not in (*self.here.addresses, *LOOPBACK):
            return f"no address of this Node, which `hostIP` must be ({', '.join(map(text, self.here.addresses))})"
        why = self._stands_at(entry)
        return why and f"{why}, and has to be reached itself: give the service another address"

    def _stands_at(self, entry: ServiceEntry) -> str:
        at, holdings = entry.frontend, self._state.holdings
        if entry.kind is Kind.CLUSTER_IP:
            return holdings.lives_at(at.address)
        ours = self._reserved.get((at.protocol, at.port), "")
        is_here = at.address in self.here.addresses or at.address in LOOPBACK
        if ours and (is_here or holdings.lives_at(at.address)):
            return f"{ours} at port {at.port}"
        return "" if at.address in LOOPBACK else holdings.lives_at_port(at.address, at.protocol, at.port)

    def _resolve(self, item: tuple[str, str], local: LocalService) -> list[ServiceEntry]:
        """As the clusters say it, or, of one that is not known or was not heard of yet, as the kernel has it."""
        said = self._state.remote_services(item)
        if asks_more(local, said):
            self._asking.add(item)
        entries = resolve(local, said, self.here)
        found = self._still_found(item, local, entries)
        if not found:
            return entries
        others = [service for service in said if service.cluster_id not in found]
        own = found.pop(local.service.cluster_id, None)
        if own is not None:
            details = dict(local.details) | details_found(self.tables, local, self.here)
            local = replace(local, service=replace(local.service, backends=own.backends), details=details)
        return resolve(local, [*others, *found.values()], self.here)

    def _still_found(
        self, item: tuple[str, str], local: LocalService, said: Sequence[ServiceEntry]
    ) -> dict[int, Service]:
        """By the ids of their clusters. What is known once is never looked for in the kernel again."""
        (known, unheard), own = self._known, local.service.cluster_id
        found = self._found.pop(item, None)
        if (known is None and not unheard) or (found is None and self.planner.plans(item)):
            return {}
        unknown = set[int]() if known is None else unheard - known - {own}
        doubted = doubtful(self.tables, said, unheard - unknown)
        if found is None:
            if (known is None and not doubted) or not has_any(self.tables, local):
                return {}
            found = services_found(self.tables, local, self.here)
        found = {each: found[each] for each in found if each in doubted or not (known is None or each in {*known, own})}
        found |= {each: as_found(local.service, each, {}) for each in doubted - found.keys()}
        if found or (unknown and local.is_global):
            self._found[item] = found
        return dict(found)

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

    def _look_for_strays(self) -> None:
        """Whoever is planned by now is known to be of a service."""
        if self._strays is None and self.reconcilers[0].may_delete:
            table = self.tables.backends
            unclaimed = table.actual.keys() - table.desired.keys()
            self._strays = self._leavers.by_namespace(unpack(BackendValue, table.actual[key]) for key in unclaimed)
            if self._strays:
                self.wake()
        elif self._strays:
            self._strays = {}

    def applied(self) -> None:
        self._look_for_strays()
        if not any(tracker.problems for tracker in self.trackers):
            self.departures = self.planner.departures
            failed = {each: revision for each, revision in self._changes.items() if each[1] in self.problems}
            changes, self._changes = self._changes, failed
            self._propagation.applied({each: changes[each] for each in changes.keys() - failed.keys()})
        self.on_applied()
