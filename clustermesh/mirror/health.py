"""What a mirror says of itself: one `MirrorHealth`, rendered by /readyz and /metrics, under Cilium's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clustermesh.health import HealthServer


class CopyHealth(Struct, frozen=True, kw_only=True):
    """Of one cluster: whether all of it was copied and is followed, what of it is held by kind, and what is refused."""

    ready: bool
    failures: int
    last_failure: float
    entries: Mapping[str, int]
    refused: Mapping[str, int]


class MirrorHealth(Struct, frozen=True, kw_only=True):
    """`waiting` is what readiness waits for, in sentences; `problems` what is not copied, and why.

    One that does not lead stands by: it is ready, and copies nothing.
    """

    cluster: str
    leading: bool
    waiting: tuple[str, ...]
    problems: tuple[str, ...]
    clusters: Mapping[str, CopyHealth]
    pending: Mapping[str, int]
    drift: Mapping[str, int]
    errors: int
    leases: int


def health_server(address: str, health: Callable[[], MirrorHealth]) -> HealthServer:
    """Serves `health()`, which is called on the event loop whose state it reads."""
    registry = CollectorRegistry()
    registry.register(_Metrics(health))

    def readiness() -> tuple[bool, str]:
        now = health()
        lines = [f"waiting: {sentence}" for sentence in now.waiting] + [f"problem: {p}" for p in now.problems]
        return not now.waiting, "\n".join(lines or ["ok" if now.leading else "ok, standing by"])

    return HealthServer(address, registry, readiness)


class _Metrics(Collector):
    def __init__(self, health: Callable[[], MirrorHealth]) -> None:
        self._health = health

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        health, prefix = self._health(), "cilium_kvstoremesh"
        yield GaugeMetricFamily(f"{prefix}_remote_clusters", "Connected clusters", len(health.clusters))
        yield GaugeMetricFamily(f"{prefix}_leader_election_master_status", "1 for who copies", float(health.leading))
        yield from self._of_clusters(prefix, health)
        queue = GaugeMetricFamily(
            f"{prefix}_kvstore_sync_queue_size", "Keys to be written or removed", labels=["scope", "source_cluster"]
        )
        drift = CounterMetricFamily(f"{prefix}_drift", "Keys found changed by others", labels=["scope"])
        for scope, number in health.pending.items():
            queue.add_metric([scope, health.cluster], number)
            drift.add_metric([scope], health.drift[scope])
        yield from (queue, drift)
        yield CounterMetricFamily(f"{prefix}_kvstore_sync_errors", "Writes that failed", health.errors)
        yield GaugeMetricFamily(f"{prefix}_leases", "Leases kept alive", health.leases)

    def _of_clusters(self, prefix: str, health: MirrorHealth) -> Iterator[Metric]:
        labels = ["target_cluster"]
        ready = GaugeMetricFamily(f"{prefix}_remote_cluster_readiness_status", "1 when all is copied", labels=labels)
        failures = GaugeMetricFamily(f"{prefix}_remote_cluster_failures", "How often it was lost", labels=labels)
        last = GaugeMetricFamily(f"{prefix}_remote_cluster_last_failure_ts", "When, in Unix seconds", labels=labels)
        held = GaugeMetricFamily(f"{prefix}_remote_cluster_entries", "What it has", labels=[*labels, "kind"])
        refused = GaugeMetricFamily(
            f"{prefix}_remote_cluster_refused", "What is not copied", labels=[*labels, "reason"]
        )
        for name, cluster in health.clusters.items():
            ready.add_metric([name], float(cluster.ready))
            failures.add_metric([name], cluster.failures)
            last.add_metric([name], cluster.last_failure)
            for kind, number in cluster.entries.items():
                held.add_metric([name, kind], number)
            for reason, number in cluster.refused.items():
                refused.add_metric([name, reason], number)
        yield from (ready, failures, last, held, refused)
