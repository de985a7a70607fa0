"""Everything the agent can say of itself, as plain data: the socket, metrics, `clustermesh status` all render this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from agent import problems
from agent.api import Method
from agent.bpf.layouts import (
    MAPS,
    ServiceKey,
    unpack_each,
)
from agent.cni.methods import Pods
from agent.domains.domains import Domains
from agent.domains.tables import ThisNode, open_map
from agent.lb_listing import LbListing
from agent.listing import PROTOCOL_NAMES, Listing
from agent.options import Options
from agent.pressure import Fill
from agent.state import AgentState
from agent.why import Looker
from agent.wireguard.peer import endpoint_text
from clustermesh import __version__
from clustermesh.address import Address, prefix_text, text
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.view import View
from clustermesh.reconcile import Tracker
from clustermesh.why.facts import Facts
from clustermesh.why.subject import parse_subject
from clustermesh.wire.agent_report import AgentReport, SeenCluster

if TYPE_CHECKING:
    from agent.bpf.features import Support
    from agent.monitor import Monitor

_SHOWN = 20  # refused entries, and problems of one kind, that are named
_FIRST_STATE = "waiting for the first whole state"
_MAP_OF = {  # by tracker; all others are lb_...
    "ipcache": "ipcache",
    "ipcache-cidrs": "ipcache_cidr",
    "node-config": "node_config",
    "pod-sources": "pod_sources",
    "pod-devices": "pod_devices",
}


class Status:
    """Everything read-only. What is read anew at every question is told in plain dicts, for JSON."""

    def __init__(
        self,
        options: Options,
        state: AgentState,
        domains: Domains,
        own: ClusterReader,
        peers: Peers,
        pods: Pods,
    ) -> None:
        self._options, self._state, self._domains, self._pods = options, state, domains, pods
        self._own, self._peers = own, peers
        self.conntrack = domains.conntrack
        self.rival: Callable[[], str] = lambda: ""  # who else claims to be this node
        self.fills: Callable[[], Mapping[str, Fill]] = dict  # how full the maps are
        self.listing = Listing(state, domains, self._cluster_name)
        self.lb_listing = LbListing(
            domains.services, lambda: open_map(domains.node.datapath, "lb_affinity"), self._cluster_name
        )
        self._supports: list[Support] | None = None
        self._monitored: Monitor | None = None
        self._looker = Looker(options.node, state, domains, state.propagation)

    def methods(self) -> dict[str, Method]:
        """What the socket answers, those of the CNI plugin included."""
        tables = self.listing.backends, self.listing.ipcache, self.listing.refused
        lb = self.lb_listing.services, self.lb_listing.bpf_lb, self.lb_listing.bpf_affinity
        reads = *tables, *lb, self.limits, self.status, self.encrypt, self.map_diff
        pods = self._pods
        return {read.__name__: lambda _params, read=read: read() for read in reads} | {
            "why": lambda params: self.why(str(params.get("subject", ""))),
            "conntrack": lambda _params: self.conntrack.rows(),
            "monitor": self._monitor,
            "cni_add": pods.add,
            "cni_del": pods.delete,
            "cni_check": pods.check,
            "cni_status": pods.status,
            "cni_gc": pods.collect_garbage,
        }

    def summary(self) -> dict[str, Any]:
        """The whole status but the samples."""
        return {
            "version": __version__,
            "node": self._options.node,
            "context": str(self._options.context.absolute()) if self._options.cluster_name is None else None,
            "kvstore_opt": list(self._options.kvstore_opt),
            "clustermesh_config": self._options.clustermesh_config and str(self._options.clustermesh_config.absolute()),
            "cluster": {"name": self._state.own, "id": None if self._own.config is None else self._own.config.id},
            "ready": not self.not_ready(),
            "problems": list(map(str, self.problems())),
            "clusters": self.clusters(),
            "targets": self.targets(),
            "maps": self.maps(),
            "datapath": _datapath(self._domains.node),
            "encryption": self._encryption(_SHOWN),
        }

    def clusters(self) -> list[dict[str, Any]]:
        """What is known of each cluster, the own one first."""
        return [self._cluster(reader) for reader in self._readers()]

    def targets(self) -> list[dict[str, Any]]:
        """What is wanted in each of the kernel's tables, and how far it is there."""
        return [_target(tracker) for tracker in self._domains.trackers]

    def maps(self) -> list[dict[str, Any]]:
        """How full each of the kernel's maps is."""
        fills = sorted(self.fills().items())
        return [{"name": name, "entries": fill.entries, "capacity": fill.capacity} for name, fill in fills]

    def counters(self) -> dict[str, int]:
        """What the programs have counted, by reason."""
        return {reason.name.lower(): n for reason, n in self._domains.node.datapath.counters().items()}

    def evicted(self) -> dict[tuple[str, str], int]:
        """Sockets whose backend went, by what went and what became of them."""
        return dict(self._domains.eviction.counts)

    async def features(self) -> list[dict[str, Any]]:
        """What this kernel has, native, degraded (to what) or off; tried when first asked for."""
        if self._supports is None:
            from agent.bpf.features import supports

            self._supports = await asyncio.to_thread(supports, self._domains.node.features)
        return [each._asdict() for each in (*self._supports, await asyncio.to_thread(self._acceleration))]

    def _acceleration(self) -> Support:
        from agent.bpf.features import acceleration

        hooks = self._domains.node.datapath.frames.hooks.values()
        problems = {device: each.sentence for device, each in self._domains.devices.frames.problems.items()}
        return acceleration(self._options.bpf_lb_acceleration, [*hooks], problems)

    async def status(self) -> dict[str, Any]:
        """`summary`, what this kernel has, and the latest propagation delays."""
        features = await self.features()
        return self.summary() | {
            "features": features,
            "time": time.time(),
            "counters": self.counters(),
            "propagation_ms": list(self._state.propagation.recent),
        }

    def not_ready(self) -> str:
        """Why /readyz is refused, "" when the kernel holds the whole state."""
        if self._domains.tunnels.error:
            return self._domains.tunnels.error
        if self._domains.ready_at is not None:
            return ""
        problem = "" if self._peers.synced_once else next(iter(self._peers.problems), "")
        return self._own.session.error or problem or _FIRST_STATE

    def waiting(self) -> list[str]:
        """All that readiness waits for, one sentence each."""
        if not (why := self.not_ready()) or self._domains.tunnels.error:
            return [why] if why else []
        missing = [reader for reader in self._readers() if not reader.session.complete]
        clusters = [
            f"cluster {each.name} is {each.session.state}{f': {each.session.error}' if each.session.error else ''}"
            for each in missing[:_SHOWN]
        ]
        more = [f"{len(missing) - _SHOWN} more clusters"] if len(missing) > _SHOWN else []
        busy = [f"{each.name} are not all in the kernel" for each in self._domains.all if not each.settled]
        first = "the first whole state" if why == _FIRST_STATE else why
        return list(dict.fromkeys([first, *clusters, *more, *busy]))

    def readiness(self) -> tuple[bool, str]:
        """What /readyz says."""
        waiting, found = self.waiting(), self.problems()[:_SHOWN]
        lines = [f"waiting: {each}" for each in waiting] + [f"problem: {each}" for each in found]
        return not waiting, "\n".join(lines or ["ok"])

    def problems(self) -> list[problems.Problem]:
        """What a person should look at."""
        unsavable, rival = self._state.unsavable, self.rival()
        return list(problems.find(self._domains, self._pods, unsavable, self._peers, self._state, rival))

    def report(self) -> tuple[AgentReport, int]:
        """What is put into etcd, and how many nodes the cluster has that do so."""
        found = self.problems()
        own, shared = (tuple(str(each) for each in found if each.shared is which) for which in (False, True))
        seen = tuple(map(self._seen, self._readers()))
        return AgentReport(__version__, self.not_ready(), own, seen, shared), self.nodes()

    def nodes(self) -> int:
        """How many nodes this cluster is known to have."""
        return len(self._state.views.get(self._state.own, View()).nodes)

    def global_services(self) -> int:
        """How many services other clusters share, by different names."""
        shared = (view.services for cluster, view in self._state.views.items() if cluster != self._state.own)
        return len(set[tuple[str, str]]().union(*shared))

    def limits(self) -> list[dict[str, Any]]:
        """How much each peer, and all of them together, may make this node remember, and how much of it they do."""
        limits = {reader.name: self._state.limits_used(reader.name) for reader in self._readers()[1:]}
        return [
            {"cluster": name, "limit": limit, "used": used, "most": most}
            for name, each in (limits | {"(all)": self._state.limits_used_together()}).items()
            for limit, (used, most) in each.items()
        ]

    async def encrypt(self) -> dict[str, Any]:
        """The tunnels: each peer with its node, last handshake and bytes."""
        states = await self._domains.node.device.peers() if self._domains.tunnels.underlay.current else {}
        nodes = {node.wireguard_public_key: f"{node.cluster}/{node.name}" for node in self._state.admitted_nodes()}
        tunnels = [
            {
                "node": nodes.get(key, ""),
                "public_key": key,
                "endpoint": "" if state.endpoint is None else endpoint_text(*state.endpoint),
                "allowed_ips": list(map(prefix_text, state.allowed_ips)),
                "last_handshake": state.last_handshake,
                "received": state.rx,
                "sent": state.tx,
            }
            for key, state in sorted(states.items())
        ]
        return self._encryption(len(self._domains.network.planner.problems)) | {"tunnels": tunnels}

    async def map_diff(self) -> list[dict[str, Any]]:
        """Desired against kernel, read now: empty when healthy."""
        return [row for tracker in self._domains.trackers for row in _differences(tracker, await tracker.target.dump())]

    async def why(self, subject: str) -> Facts:
        """All that is known of a service, an address or an identity. Raises Invalid for what is none."""
        return await self._looker.look(parse_subject(subject), self._readers(), self.not_ready())

    def _monitor(self, params: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """What the programs tell, for one who listens. All who do share one reader; seldom does anybody."""
        if self._monitored is None:
            from agent.monitor import Monitor

            self._monitored = Monitor(self._domains.node.datapath)
        return self._monitored.listen(params)

    def _readers(self) -> list[ClusterReader]:
        return [self._own, *(self._peers.readers[name] for name in sorted(self._peers.readers))]

    def _cluster_name(self) -> Callable[[int], str]:
        """The name by the id, the id itself where that is not known."""
        names = {reader.config.id: reader.name for reader in self._readers() if reader.config is not None}
        return lambda number: names.get(number, str(number))

    def _seen(self, reader: ClusterReader) -> SeenCluster:
        """A cluster, as far as others need it. Its error is what it waits for where it has none."""
        view, session = self._state.views.get(reader.name, View()), reader.session
        return SeenCluster(
            reader.name,
            str(session.state),
            None if reader.config is None else reader.config.id,
            session.since,
            session.error or "; ".join(f"{what}: {why}" for what, why in reader.brain.behind.items()),
            len(view.nodes),
            len(view.own_names() if reader.name == self._state.own else view.services),
            len(view.endpoints),
            len(view.identities),
            len(self._state.refusals(reader.name)),
            self._state.propagation.latest.get(reader.name, 0),
        )

    def _cluster(self, reader: ClusterReader) -> dict[str, Any]:
        refusals = self._state.refusals(reader.name)
        return asdict(self._seen(reader)) | {
            "own": reader.name == self._state.own,
            "behind": dict(reader.brain.behind),
            "failures": reader.session.failures,
            "last_failure": reader.session.last_failure,
            "audited": reader.brain.audited,
            "drift": dict(reader.brain.drift),
            "withdrawn": reader.brain.withdrawn,
            "withdrawals": reader.brain.withdrawals,
            "waited": reader.waited,
            "limits": {} if reader.name == self._state.own else self._state.limits_used(reader.name),
            "refused_by_reason": {str(reason): count for reason, count in sorted(refusals.counts.items())},
            "refused_entries": refusals.named(_SHOWN),
        }

    def _encryption(self, shown: int) -> dict[str, Any]:
        without = self._domains.network.planner.problems
        device, underlay = self._domains.node.device, self._domains.tunnels.underlay.current
        return {
            "device": device.name,
            "provider": device.kind,
            "why": device.why,
            "public_key": self._domains.node.public_key,
            "interface": "" if underlay is None else underlay.interface,
            "mtu": 0 if underlay is None else underlay.mtu,
            "strict": "" if underlay is None else underlay.strict,
            "peers": len(self._domains.tunnels.peers.actual),
            "without_tunnel": dict(islice(without.items(), shown)),
            "nodes_without_tunnel": len(without),
        }


def _datapath(node: ThisNode) -> dict[str, Any]:
    """Which program runs where and how it came there."""
    hooks = [
        {"name": hook.name, "target": hook.target, "mechanism": str(hook.mechanism), "outcome": str(hook.outcome)}
        for hooks in (node.datapath.hooks, node.datapath.devices.hooks, node.datapath.frames.hooks)
        for hook in hooks.values()
    ]
    return {"loader": node.datapath.loader, "pinned": str(node.datapath.pin_dir), "hooks": hooks}


def _target(tracker: Tracker[Any, Any]) -> dict[str, Any]:
    return {
        "name": tracker.name,
        "desired": len(tracker.desired),
        "actual": len(tracker.actual),
        "pending": tracker.pending_size,
        "failed": len(tracker.problems),
        "drift": tracker.drift,
        "error": tracker.error or "",
        "capacity": getattr(tracker.target, "max_entries", 0),
    }


def _differences(tracker: Tracker[Any, Any], actual: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    key_kind, value_kind = MAPS.get(_MAP_OF.get(tracker.name, f"lb_{tracker.name}"), (None, None))
    for key in {**tracker.desired, **actual}:
        desired, held = tracker.desired.get(key), actual.get(key)
        if desired != held:
            values = {"desired": _show(desired, value_kind), "kernel": _show(held, value_kind)}
            yield {"target": tracker.name, "key": _show(key, key_kind)} | values


def _show(thing: object, kind: type[Any] | None) -> str:
    if kind is not None and isinstance(thing, bytes):
        return ", ".join(map(_show_entry, unpack_each(kind, thing)))
    return "" if thing is None else str(thing)


def _show_entry(entry: Any) -> str:
    if isinstance(entry, ServiceKey):
        return f"{text(entry.address)}:{entry.port}/{PROTOCOL_NAMES.get(entry.protocol)}"
    fields = {
        name: text(Address(value)) if isinstance(value, bytes) else value for name, value in entry._asdict().items()
    }
    return " ".join(f"{name} {value}" for name, value in fields.items())
