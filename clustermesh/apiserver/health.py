"""What this API server says of itself: one `Health`, rendered by /readyz and /metrics.

Metrics that Cilium's clustermesh-apiserver has too have the names and labels they have there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clustermesh.health import HealthServer


class Scope(Struct, frozen=True, kw_only=True):
    """One resource: keys that etcd holds, keys still to be written or removed, keys found changed by others."""

    keys: int
    pending: int
    drift: int


class Health(Struct, frozen=True, kw_only=True):
    """What there is to say. `waiting` is what readiness waits for, in sentences; `problems` what is not acted on.

    One that does not lead stands by, and is ready once it could take over.
    """

    cluster: str
    leading: bool
    waiting: tuple[str, ...]
    problems: tuple[str, ...]
    scopes: Mapping[str, Scope]
    synced: bool
    errors: int
    identities: int
    leases: int
    source: str


def health_server(address: str, health: Callable[[], Health]) -> HealthServer:
    """Serves `health()`, which is called on the event loop whose state it reads."""
    registry = CollectorRegistry()
    registry.register(_Metrics(health))

    def readiness() -> tuple[bool, str]:
        now = health()
        lines = [f"waiting: {sentence}" for sentence in now.waiting] + [f"problem: {p}" for p in now.problems]
        lines = lines or ["ok" if now.leading else "ok, standing by"]
        return not now.waiting, "\n".join([*lines, f"source: {now.source}"])

    return HealthServer(address, registry, readiness)


class _Metrics(Collector):
    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        health = self._health()
        prefix = "clustermesh_apiserver"
        labels = ["scope", "source_cluster"]
        queue = GaugeMetricFamily(f"{prefix}_kvstore_sync_queue_size", "Keys to be written or removed", labels=labels)
        keys = GaugeMetricFamily(f"{prefix}_keys", "Keys that etcd holds", labels=labels)
        drift = CounterMetricFamily(f"{prefix}_drift", "Keys found changed by others", labels=labels)
        synced = GaugeMetricFamily(
            f"{prefix}_kvstore_initial_sync_completed",
            "1 when everything there was at the start is in etcd",
            labels=[*labels, "action"],
        )
        for name, scope in health.scopes.items():
            queue.add_metric([name, health.cluster], scope.pending)
            keys.add_metric([name, health.cluster], scope.keys)
            drift.add_metric([name, health.cluster], scope.drift)
            synced.add_metric([name, health.cluster, "write"], float(health.synced))
        yield from (queue, keys, drift, synced)
        yield CounterMetricFamily(f"{prefix}_kvstore_sync_errors", "Writes that failed", health.errors)
        yield GaugeMetricFamily(f"{prefix}_problems", "Parts of the source that are not acted on", len(health.problems))
        source = GaugeMetricFamily(f"{prefix}_source", "Where the objects come from", labels=["source"])
        source.add_metric([health.source], 1.0)
        yield source
        yield GaugeMetricFamily(f"{prefix}_ready", "1 when everything is published", float(not health.waiting))
        yield GaugeMetricFamily(f"{prefix}_leader_election_master_status", "1 for who writes", float(health.leading))
        yield GaugeMetricFamily(f"{prefix}_identities", "Identities allotted", health.identities)
        yield GaugeMetricFamily(f"{prefix}_leases", "Leases kept alive", health.leases)
