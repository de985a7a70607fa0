"""What a mirror says of itself: one `MirrorHealth`, rendered by /readyz and /metrics (clustermesh/metrics.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from clustermesh.health import HealthServer
from clustermesh.metrics import KVSTOREMESH, make_registry, scope_of
from clustermesh.mirror.propagation import HOP_SECONDS, SECONDS

_OURS: Final = "clustermesh_kvstoremesh"


class CopyHealth(Struct, frozen=True, kw_only=True):
    """Of one cluster: whether all of it was copied and is followed, which kinds are copied, how often it was lost and
    its services withdrawn, what of it is held by kind, how many bytes that is of those it may be, what is refused."""

    ready: bool
    copied: Mapping[str, bool]
    failures: int
    last_failure: float
    withdrawals: int
    entries: Mapping[str, int]
    bytes: int
    most_bytes: int
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
    errors: Mapping[str, int]
    leases: int


def health_server(address: str, health: Callable[[], MirrorHealth]) -> HealthServer:
    """Serves `health()`, which is called on the event loop whose state it reads."""
    registry = make_registry(_Metrics(health), SECONDS, HOP_SECONDS)

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
        health = self._health()
        for name, values in {**_of_clusters(health), **_of_itself(health)}.items():
            yield KVSTOREMESH[name].family(values)


def _of_clusters(health: MirrorHealth) -> Mapping[str, Mapping[Any, float]]:
    clusters = health.clusters.items()
    remote = "cilium_kvstoremesh_remote_cluster"
    return {
        f"{remote}s": {(): len(clusters)},
        f"{remote}_readiness_status": {(name,): cluster.ready for name, cluster in clusters},
        f"{remote}_failures": {(name,): cluster.failures for name, cluster in clusters},
        f"{remote}_last_failure_ts": {(name,): cluster.last_failure for name, cluster in clusters},
        f"{remote}_cache_revocations": {(name,): cluster.withdrawals for name, cluster in clusters},
        "cilium_kvstoremesh_kvstore_initial_sync_completed": {
            (scope_of(kind), name, "write"): done for name, cluster in clusters for kind, done in cluster.copied.items()
        },
        f"{_OURS}_entries": {(name, kind): n for name, cluster in clusters for kind, n in cluster.entries.items()},
        f"{_OURS}_limit": {(name, "copied_bytes"): cluster.most_bytes for name, cluster in clusters},
        f"{_OURS}_limit_used": {(name, "copied_bytes"): cluster.bytes for name, cluster in clusters},
        f"{_OURS}_refused_entries": {
            (name, why): n for name, cluster in clusters for why, n in (cluster.refused or {"": 0}).items()
        },
    }


def _of_itself(health: MirrorHealth) -> Mapping[str, Mapping[Any, float]]:
    ciliums = "cilium_kvstoremesh"
    scopes = {(scope_of(kind), health.cluster): kind for kind in health.pending}
    return {
        f"{ciliums}_leader_election_master_status": {("kvstoremesh",): health.leading},
        f"{ciliums}_kvstore_sync_queue_size": {name: health.pending[kind] for name, kind in scopes.items()},
        f"{ciliums}_kvstore_sync_errors_total": {name: health.errors[kind] for name, kind in scopes.items()},
        f"{_OURS}_ready": {(): not health.waiting},
        f"{_OURS}_problems": {(): len(health.problems)},
        f"{_OURS}_drift_total": {(kind,): number for kind, number in health.drift.items()},
        f"{_OURS}_leases": {(): health.leases},
    }
