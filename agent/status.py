"""Everything the agent can say of itself, as plain data: the socket, metrics, `clustermesh status` all render this."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import Any

from agent import problems
from agent.bpf.layouts import NO_ADDRESS, PROTOCOL_NUMBERS, ServiceKey
from agent.cni.methods import Pods
from agent.domains.domains import Domains
from agent.domains.targets import ThisNode
from agent.options import Options
from agent.reporter import Said
from agent.sink import AgentSink
from agent.wireguard.peer import endpoint_text
from clustermesh import __version__
from clustermesh.address import Prefix, prefix_text, single, text
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.state import MeshState, View
from clustermesh.reconcile import Tracker
from clustermesh.wire.agent_report import AgentReport, SeenCluster

_SHOWN = 20  # refused entries, and problems of one kind, that are named
_PROTOCOL_NAMES = {number: str(name) for name, number in PROTOCOL_NUMBERS.items()}


class Status:
    """Answers the read-only methods of the socket."""

    def __init__(
        self,
        options: Options,
        state: MeshState,
        domains: Domains,
        own: ClusterReader,
        peers: Peers,
        sink: AgentSink,
        pods: Pods,
    ) -> None:
        self._options, self._state, self._domains, self._pods = options, state, domains, pods
        self._own, self._peers, self._sink = own, peers, sink

    def summary(self) -> dict[str, Any]:
        """The whole status but the samples."""
        domains = self._domains
        return {
            "version": __version__,
            "node": self._options.node,
            "cluster": {"name": self._state.own, "id": None if self._own.config is None else self._own.config.id},
            "ready": not self.not_ready(),
            "problems": self.problems(),
            "clusters": [self._cluster(reader) for reader in self._readers()],
            "targets": [_target(tracker) for tracker in domains.trackers],
            "datapath": _datapath(self._domains.node),
            "encryption": self._encryption(_SHOWN),
        }

    def status(self) -> dict[str, Any]:
        """`summary` and the latest propagation delays."""
        return self.summary() | {
            "time": time.time(),
            "counters": {str(reason.name).lower(): n for reason, n in self._domains.node.datapath.counters().items()},
            "propagation_ms": list(self._sink.propagation.recent),
        }

    def not_ready(self) -> str:
        """Why /readyz is refused, "" when the kernel holds the whole state."""
        if self._domains.tunnels.error:
            return self._domains.tunnels.error
        if self._domains.ready_at is not None:
            return ""
        problem = "" if self._peers.synced_once else next(iter(self._peers.problems), "")
        return self._own.session.error or problem or "waiting for the first whole state"

    def readiness(self) -> tuple[bool, str]:
        """What /readyz says."""
        why = self.not_ready()
        return not why, why or "ok"

    def problems(self) -> list[str]:
        """What a person should look at, one sentence each."""
        own = problems.own(self._domains, self._pods, self._sink.unsavable)
        return own + problems.shared(self._domains, self._peers, self._state)

    def said(self) -> tuple[Said, int]:
        """What is put into etcd, and how many nodes the cluster has that do so."""
        own = tuple(problems.own(self._domains, self._pods, self._sink.unsavable))
        shared = tuple(problems.shared(self._domains, self._peers, self._state))
        report = AgentReport(__version__, self.not_ready(), own, tuple(map(self._seen, self._readers())))
        return Said(report, shared), self.nodes()

    def nodes(self) -> int:
        """How many nodes this cluster is known to have."""
        return len(self._state.views.get(self._state.own, View()).nodes)

    def refused(self) -> list[dict[str, str]]:
        """Every entry that is not used, with its reason."""
        return [
            {"cluster": cluster, "entry": name, "reason": str(reason), "why": why}
            for cluster in self._state.views
            for reason, name, why in self._state.refusals(cluster).listed()
        ]

    def services(self) -> list[dict[str, Any]]:
        """Every frontend with its backends, and whose they are."""
        named = {
            frontend: "/".join(name)
            for name, frontends in self._domains.services.planner.frontends.items()
            for frontend in frontends
        }
        clusters = self._cluster_names()
        return [
            {
                "service": named.get(frontend, ""),
                "address": text(frontend.address),
                "port": frontend.port,
                "protocol": str(frontend.protocol),
                "backends": [
                    {
                        "address": text(backend.address),
                        "port": backend.port,
                        "cluster": clusters.get(group.cluster_id, str(group.cluster_id)),
                    }
                    for group in entry.groups
                    for backend in group.backends
                ],
            }
            for frontend, entry in sorted(self._domains.services.planner.programmed.items())
        ]

    def backends(self) -> list[dict[str, Any]]:
        """The backend map as it was last known to be, with how many frontends name each."""
        clusters = self._cluster_names()
        tables = self._domains.services.tables
        uses = Counter(number for value in tables.slots.actual.values() for number in set(value.backend_ids))
        return [
            {
                "id": key.id,
                "address": text(entry.address),
                "port": entry.port,
                "protocol": _PROTOCOL_NAMES.get(entry.protocol, str(entry.protocol)),
                "cluster": clusters.get(entry.cluster_id, str(entry.cluster_id)),
                "frontends": uses[key.id],
            }
            for key, entry in sorted(tables.backends.actual.items())
        ]

    def ipcache(self) -> list[dict[str, Any]]:
        """Who is behind each address or CIDR, with the labels of the identity where they are known."""
        domains = self._domains
        labels = {
            number: [f"{label.source}:{label.key}={label.value}" for label in identity.labels]
            for view in self._state.views.values()
            for number, identity in view.identities.items()
        }
        network = sorted(domains.network.cidrs.actual.items())
        rows = [(single(key.address), value) for key, value in sorted(domains.addresses.ipcache.actual.items())]
        rows += [(Prefix(key.address, key.prefix_length), value) for key, value in network]
        return [
            {
                "prefix": prefix_text(prefix),
                "identity": value.identity,
                "node": "" if value.tunnel_endpoint == NO_ADDRESS else text(value.tunnel_endpoint),
                "encrypted": value.key == 255,
                "labels": labels.get(value.identity, []),
            }
            for prefix, value in rows
        ]

    async def encrypt(self) -> dict[str, Any]:
        """The tunnels: each peer with its node, last handshake and bytes."""
        device = self._domains.node.device
        states = await device.peers() if self._domains.tunnels.underlay.current else {}
        nodes = {node.wireguard_public_key: node for node in self._state.admitted_nodes()}
        peers = []
        for key, state in sorted(states.items()):
            node = nodes.get(key)
            peers.append(
                {
                    "node": f"{node.cluster}/{node.name}" if node else "",
                    "public_key": key,
                    "endpoint": "" if state.endpoint is None else endpoint_text(*state.endpoint),
                    "allowed_ips": list(map(prefix_text, state.allowed_ips)),
                    "last_handshake": state.last_handshake,
                    "received": state.rx,
                    "sent": state.tx,
                }
            )
        return self._encryption(len(self._domains.network.planner.problems)) | {"tunnels": peers}

    async def map_diff(self) -> list[dict[str, Any]]:
        """Desired against kernel, read now: empty when healthy."""
        rows = []
        for tracker in self._domains.trackers:
            actual = await tracker.target.dump()
            rows += _differences(tracker, actual)
        return rows

    def _readers(self) -> list[ClusterReader]:
        return [self._own, *(self._peers.readers[name] for name in sorted(self._peers.readers))]

    def _cluster_names(self) -> dict[int, str]:
        return {reader.config.id: reader.name for reader in self._readers() if reader.config is not None}

    def _cluster(self, reader: ClusterReader) -> dict[str, Any]:
        view, refusals = self._state.views.get(reader.name, View()), self._state.refusals(reader.name)
        session = reader.session
        return {
            "name": reader.name,
            "id": None if reader.config is None else reader.config.id,
            "own": reader.name == self._state.own,
            "state": str(session.state),
            "since": session.since,
            "error": session.error,
            "behind": dict(reader.behind),
            "failures": session.failures,
            "last_failure": session.last_failure,
            "nodes": len(view.nodes),
            "services": len(view.local_services if reader.name == self._state.own else view.services),
            "endpoints": len(view.endpoints),
            "identities": len(view.identities),
            "refused": len(refusals),
            "refused_by_reason": {str(reason): count for reason, count in sorted(refusals.counts.items())},
            "refused_entries": refusals.named(_SHOWN),
        }

    def _seen(self, reader: ClusterReader) -> SeenCluster:
        """`_cluster`, as far as others need it."""
        row = self._cluster(reader)
        waits = "; ".join(f"{what}: {why}" for what, why in row["behind"].items())
        told = {name: row[name] for name in SeenCluster.__struct_fields__}
        return SeenCluster(**told | {"error": row["error"] or waits})

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
    """Which program runs where and how it came there, and what this kernel has only a second way for."""
    hooks = [
        {"name": hook.name, "target": hook.target, "mechanism": str(hook.mechanism), "outcome": str(hook.outcome)}
        for hook in node.datapath.hooks.values()
    ]
    degraded = [f"{each.name}: {each.sentence} ({each.remedy})" for each in node.features if not each.present]
    return {"loader": "libbpf", "pinned": str(node.datapath.pin_dir), "hooks": hooks, "degraded": degraded}


def _target(tracker: Tracker[Any, Any]) -> dict[str, Any]:
    pending = tracker.pending()
    return {
        "name": tracker.name,
        "desired": len(tracker.desired),
        "actual": len(tracker.actual),
        "pending": len(pending.upserts) + len(pending.deletes),
        "failed": len(tracker.failed),
        "drift": tracker.drift,
        "error": tracker.error or "",
    }


def _differences(tracker: Tracker[Any, Any], actual: Any) -> list[dict[str, Any]]:
    rows = []
    for key in [*tracker.desired, *(key for key in actual if key not in tracker.desired)]:
        desired, held = tracker.desired.get(key), actual.get(key)
        if desired != held:
            rows.append({"target": tracker.name, "key": _show(key), "desired": _show(desired), "kernel": _show(held)})
    return rows


def _show(thing: object) -> str:
    if isinstance(thing, ServiceKey):
        return f"{text(thing.address)}:{thing.port}/{_PROTOCOL_NAMES.get(thing.protocol)}"
    return "" if thing is None else str(thing)
