"""What this API server says of itself over HTTP: /livez, /readyz, /metrics. One `Health` is rendered by all of them.

The HTTP server runs in a thread of its own, so that it answers, and says so, also when the event loop does not.
Metrics that Cilium's clustermesh-apiserver has too have the names and labels they have there.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clustermesh.errors import Invalid, Unavailable

_PATIENCE: Final = 5.0
"""Seconds that the event loop has for showing that it is alive."""


class Scope(Struct, frozen=True, kw_only=True):
    """One resource: keys that etcd holds, keys still to be written or removed, keys found changed by others."""

    keys: int
    pending: int
    drift: int


class Health(Struct, frozen=True, kw_only=True):
    """What there is to say. `waiting` is what readiness waits for, in sentences; `problems` what is not acted on."""

    cluster: str
    waiting: tuple[str, ...]
    problems: tuple[str, ...]
    scopes: Mapping[str, Scope]
    synced: bool
    errors: int
    identities: int
    leases: int


class HealthServer:
    """Serves `health()` on `address` ("127.0.0.1:9880") while the block lasts. Unavailable when it cannot listen.

    `health` is called in the event loop, whose state it reads.
    """

    def __init__(self, address: str, health: Callable[[], Health]) -> None:
        self._host, self._port = parse_address(address)
        self._health = health

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()

        async def look() -> Health:
            return self._health()

        def ask() -> Health:
            return asyncio.run_coroutine_threadsafe(look(), loop).result(_PATIENCE)

        try:
            self._server = _Server((self._host, self._port), _handler(ask))
        except OSError as e:
            raise Unavailable(f"cannot listen on {self._host}:{self._port}: {e.strerror}") from e
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9880" or "[::1]:9880"; Invalid otherwise."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise Invalid("http address", address, "must be HOST:PORT")
    return host.strip("[]"), int(port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is nobody's fault."""


def _handler(health: Callable[[], Health]) -> type[BaseHTTPRequestHandler]:
    """What answers a request, given what asks the event loop and raises TimeoutError where that is stuck."""
    registry = CollectorRegistry()
    registry.register(_Metrics(health))

    def livez() -> tuple[int, str]:
        health()
        return 200, "ok\n"

    def readyz() -> tuple[int, str]:
        now = health()
        lines = [f"waiting: {sentence}" for sentence in now.waiting] + [f"problem: {p}" for p in now.problems]
        return (503 if now.waiting else 200), "".join(f"{line}\n" for line in lines or ["ok"])

    def metrics() -> tuple[int, str]:
        return 200, generate_latest(registry).decode()

    pages = {"/livez": livez, "/readyz": readyz, "/metrics": metrics}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            try:
                status, text = page() if page else (404, "there are /livez, /readyz and /metrics\n")
            except TimeoutError:
                status, text = 503, f"the event loop has not answered for {_PATIENCE:g} s\n"
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Probes come every few seconds; nobody wants to read of them."""

    return Handler


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
        yield GaugeMetricFamily(f"{prefix}_ready", "1 when everything is published", float(not health.waiting))
        yield GaugeMetricFamily(f"{prefix}_identities", "Identities allotted", health.identities)
        yield GaugeMetricFamily(f"{prefix}_leases", "Leases kept alive", health.leases)
