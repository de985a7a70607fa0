"""Prometheus metrics of the agent, rendered from the same status as everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric

from agent.status import Status
from clustermesh.mesh.session import State

_CLUSTER: Final = "cilium_clustermesh_remote_cluster_"
_OF_CLUSTERS: Final = {
    "failures": ("failures", "Times the cluster was lost"),
    "last_failure_ts": ("last_failure", "Unix time of the last failure"),
    "nodes": ("nodes", "Nodes known"),
    "services": ("services", "Global services known"),
    "endpoints": ("endpoints", "Endpoints known"),
}
_OF_TARGETS: Final = {
    "desired": "Entries wanted",
    "pending": "Entries not applied yet",
    "failed": "Entries that could not be applied",
    "drift": "Entries found changed by somebody else",
}


class StatusCollector:
    """Turns the status into metrics when it is scraped. Names are Cilium's where Cilium has the metric."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        told, found = self._status.summary(), Counter((each.domain,) for each in self._status.problems())
        yield _gauge("clustermesh_agent_ready", "1 when the kernel holds the whole state", {(): told["ready"]})
        yield _gauge("clustermesh_agent_problems", "Sentences in the status", found or {("",): 0}, "domain")
        # of every cluster, the own one too; 0 under no reason where nothing is
        refused = {
            (c["name"], why): n for c in told["clusters"] for why, n in (c["refused_by_reason"] or {"": 0}).items()
        }
        text = "Entries that are not used, by the reason"
        yield _gauge("clustermesh_refused_entries", text, refused, "target_cluster", "reason")
        remotes = {(cluster["name"],): cluster for cluster in told["clusters"] if not cluster["own"]}
        yield _gauge("cilium_clustermesh_remote_clusters", "Clusters connected", {(): len(remotes)})
        for metric, (key, text) in _OF_CLUSTERS.items():
            yield _gauge(_CLUSTER + metric, text, {name: c[key] for name, c in remotes.items()}, "target_cluster")
        ready, text = {name: c["state"] == State.FRESH for name, c in remotes.items()}, "1 when all of it is followed"
        yield _gauge(f"{_CLUSTER}readiness_status", text, ready, "target_cluster")
        for key, text in _OF_TARGETS.items():
            yield _gauge(f"clustermesh_target_{key}", text, {(t["name"],): t[key] for t in told["targets"]}, "target")


def _gauge(name: str, text: str, values: Mapping[Any, Any], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric([str(label) for label in label_values], float(value))
    return family
