"""Prometheus metrics of the agent, rendered from the same status as everything else (names: clustermesh/metrics.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from agent import histograms  # noqa: F401  # which are in the registry, too
from agent.status import Status
from clustermesh.health import serve_health
from clustermesh.mesh.session import State
from clustermesh.metrics import AGENT

_DROP: Final = "drop_"
_OF_CLUSTERS: Final = {
    "failures": "failures",
    "last_failure_ts": "last_failure",
    "cache_revocations": "withdrawals",
    "nodes": "nodes",
    "services": "services",
    "endpoints": "endpoints",
}
_OF_TARGETS: Final = {
    "desired": "desired",
    "pending": "pending",
    "failed": "failed",
    "drift_total": "drift",
}


async def serve(address: str, status: Status) -> None:
    """Metrics, readiness and liveness over HTTP at `address`, HOST:PORT or "" for none. Never returns."""
    REGISTRY.register(StatusCollector(status))
    await serve_health(address, REGISTRY, status.readiness)


class StatusCollector:
    """Turns the status into metrics when it is scraped."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Those that are no histograms. Others have their turn after each: what is asked for is told at once."""
        yield _made("clustermesh_agent_ready", {(): not self._status.not_ready()})
        found = Counter((each.domain,) for each in self._status.problems())
        yield _made("clustermesh_agent_problems", found or {("",): 0})
        yield _made("cilium_clustermesh_global_services", {(): self._status.global_services()})
        yield from _of_clusters(self._status.clusters())
        yield from _of_the_kernel(self._status)
        targets = self._status.targets()
        for metric, key in _OF_TARGETS.items():
            yield _made(f"clustermesh_target_{metric}", {(t["name"],): t[key] for t in targets})
        room = {(t["name"],): t["capacity"] for t in targets if t["capacity"]}
        yield _made("clustermesh_target_capacity", room)


def _of_the_kernel(status: Status) -> Iterator[Metric]:
    counters = status.counters()
    yield _made("clustermesh_datapath_total", {(reason,): n for reason, n in counters.items()})
    drops = {each.removeprefix(_DROP): n for each, n in counters.items() if each.startswith(_DROP)}
    yield _made("cilium_drop_count_total", {(each, _direction(each)): n for each, n in drops.items()})
    yield _made("clustermesh_sockets_evicted_total", status.evicted() or {("", ""): 0})
    conntrack = status.conntrack
    yield _made("cilium_datapath_conntrack_gc_entries", conntrack.met or {("", "", ""): 0})
    yield _made("cilium_datapath_conntrack_gc_runs_total", {(): conntrack.passes})
    yield _made("clustermesh_conntrack_collected_total", {(): conntrack.collected})
    maps = {(each["name"],): each for each in status.maps()}
    yield _made("cilium_bpf_map_pressure", {name: each["entries"] / each["capacity"] for name, each in maps.items()})
    yield _made("clustermesh_bpf_map_entries", {name: each["entries"] for name, each in maps.items()})
    yield _made("clustermesh_bpf_map_capacity", {name: each["capacity"] for name, each in maps.items()})


def _direction(reason: str) -> str:
    """In Cilium's words: of what is dropped on its way in or out, or at a service."""
    last = reason.rpartition("_")[2]
    return last.upper() if last in ("ingress", "egress") else "UNKNOWN"


def _of_clusters(clusters: list[dict[str, Any]]) -> Iterator[Metric]:
    remotes = {(cluster["name"],): cluster for cluster in clusters if not cluster["own"]}
    yield _made("cilium_clustermesh_remote_clusters", {(): len(remotes)})
    for metric, key in _OF_CLUSTERS.items():
        yield _made(f"cilium_clustermesh_remote_cluster_{metric}", {name: c[key] for name, c in remotes.items()})
    ready = {name: c["state"] == State.FRESH for name, c in remotes.items()}
    yield _made("cilium_clustermesh_remote_cluster_readiness_status", ready)
    yield _made("clustermesh_identities", {name: c["identities"] for name, c in remotes.items()})
    # of every cluster, the own one too; 0 under no reason where nothing is
    refused = {(c["name"], why): n for c in clusters for why, n in (c["refused_by_reason"] or {"": 0}).items()}
    yield _made("clustermesh_refused_entries", refused)
    drift = {(c["name"], kind): n for c in clusters for kind, n in (c["drift"] or {"": 0}).items()}
    yield _made("clustermesh_reader_drift_total", drift)
    yield _made("clustermesh_reader_waited_seconds_total", {name: c["waited"] for name, c in remotes.items()})
    limits = {(c["name"], name): each for c in remotes.values() for name, each in c["limits"].items()}
    yield _made("clustermesh_limit", {name: limit for name, (_, limit) in limits.items()})
    yield _made("clustermesh_limit_used", {name: used for name, (used, _) in limits.items()})


def _made(name: str, values: Mapping[Any, Any]) -> Metric:
    return AGENT[name].family(values)
