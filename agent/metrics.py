"""Prometheus metrics of the agent, rendered from the same status as everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from agent.status import Status
from clustermesh.mesh.session import State


class StatusCollector:
    """Turns the status into metrics when it is scraped. Names are Cilium's where Cilium has the metric."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        summary = self._status.summary()
        yield _gauge("clustermesh_agent_ready", "1 when the kernel holds the whole state", {(): summary["ready"]})
        yield _gauge("clustermesh_agent_problems", "Sentences in the status", {(): len(summary["problems"])})
        yield from _refused(summary["clusters"])
        remotes = [cluster for cluster in summary["clusters"] if not cluster["own"]]
        yield _gauge("cilium_clustermesh_remote_clusters", "Clusters connected", {(): len(remotes)})
        yield from _of_clusters(remotes)
        yield from _of_targets(summary["targets"])


def _of_clusters(remotes: list[dict[str, object]]) -> Iterator[Metric]:
    name = "cilium_clustermesh_remote_cluster_"
    for metric, key, text in (
        ("failures", "failures", "Times the cluster was lost"),
        ("last_failure_ts", "last_failure", "Unix time of the last failure"),
        ("nodes", "nodes", "Nodes known"),
        ("services", "services", "Global services known"),
        ("endpoints", "endpoints", "Endpoints known"),
    ):
        yield _gauge(name + metric, text, {(c["name"],): c[key] for c in remotes}, "target_cluster")
    ready = {(c["name"],): c["state"] == State.FRESH for c in remotes}
    yield _gauge(name + "readiness_status", "1 when everything of it is listed and followed", ready, "target_cluster")


def _refused(clusters: list[dict[str, Any]]) -> Iterator[Metric]:
    """Of every cluster, the own one too; 0 under no reason where nothing is."""
    refused: dict[tuple[str, str], int] = {}
    for cluster in clusters:
        by_reason = cluster["refused_by_reason"] or {"": 0}
        refused |= {(cluster["name"], reason): count for reason, count in by_reason.items()}
    text = "Entries that are not used, by the reason"
    yield _gauge("clustermesh_refused_entries", text, refused, "target_cluster", "reason")


def _of_targets(targets: list[dict[str, object]]) -> Iterator[Metric]:
    for key, text in (
        ("desired", "Entries wanted"),
        ("pending", "Entries not applied yet"),
        ("failed", "Entries that could not be applied"),
        ("drift", "Entries found changed by somebody else"),
    ):
        yield _gauge(f"clustermesh_target_{key}", text, {(t["name"],): t[key] for t in targets}, "target")


def _gauge(name: str, text: str, values: Mapping[Any, Any], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric([str(label) for label in label_values], float(value))
    return family
