"""What this API server says of itself: one `Health`, rendered by /readyz and /metrics.

The names of metrics are in clustermesh/metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from clustermesh.apiserver.stamps import SECONDS
from clustermesh.health import HealthServer
from clustermesh.metrics import API_SERVER, make_registry, scope_of

_CILIUMS: Final = "cilium_clustermesh_apiserver"
_OURS: Final = "clustermesh_apiserver"


class Scope(Struct, frozen=True, kw_only=True):
    """One resource: keys that etcd holds, keys still to be written or removed, keys found changed by others, and writes
    that failed."""

    keys: int
    pending: int
    drift: int
    errors: int = 0


class Health(Struct, frozen=True, kw_only=True):
    """What there is to say. `waiting` is what readiness waits for, in sentences; `problems` what is not acted on.

    One that does not lead stands by, and is ready once it could take over. `objects` counts what the source has, by
    kind, which a look at all services takes: /readyz is asked every few seconds, and does without. `drift` are those
    that it had not told of as they are.
    """

    cluster: str
    leading: bool
    waiting: tuple[str, ...]
    problems: tuple[str, ...]
    scopes: Mapping[str, Scope]
    synced: bool
    objects: Callable[[], Mapping[str, int]]
    drift: Mapping[str, int]
    identities: int
    leases: int
    source: str


def health_server(address: str, health: Callable[[], Health]) -> HealthServer:
    """Serves `health()`, which is called on the event loop whose state it reads."""
    registry = make_registry(_Metrics(health), SECONDS)

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
        for name, values in {**_of_scopes(health), **_of_itself(health)}.items():
            yield API_SERVER[name].family(values)


def _of_scopes(health: Health) -> Mapping[str, Mapping[Any, float]]:
    ciliums, own = (
        {(named(kind), health.cluster): scope for kind, scope in health.scopes.items()} for named in (scope_of, str)
    )
    return {
        f"{_CILIUMS}_kvstore_sync_queue_size": {name: scope.pending for name, scope in ciliums.items()},
        f"{_CILIUMS}_kvstore_sync_errors_total": {name: scope.errors for name, scope in ciliums.items()},
        f"{_CILIUMS}_kvstore_initial_sync_completed": {(*name, "write"): health.synced for name in ciliums},
        f"{_OURS}_keys": {name: scope.keys for name, scope in own.items()},
        f"{_OURS}_drift_total": {name: scope.drift for name, scope in own.items()},
    }


def _of_itself(health: Health) -> Mapping[str, Mapping[Any, float]]:
    return {
        f"{_OURS}_ready": {(): not health.waiting},
        f"{_OURS}_leader_election_master_status": {(): health.leading},
        f"{_OURS}_source": {(health.source,): 1},
        f"{_OURS}_source_objects": {(kind,): number for kind, number in health.objects().items()},
        f"{_OURS}_source_drift_total": {(kind,): number for kind, number in health.drift.items()},
        f"{_OURS}_problems": {(): len(health.problems)},
        f"{_OURS}_identities": {(): health.identities},
        f"{_OURS}_leases": {(): health.leases},
    }
