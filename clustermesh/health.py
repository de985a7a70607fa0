"""/livez, /readyz and /metrics over HTTP, for kubelets and Prometheus.

The standard library's server answers in threads of its own; what it answers is rendered on the event loop, where the
state lives. Every answer therefore also says that the loop turns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import TimeoutError as LateError
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from clustermesh.errors import Refused
from clustermesh.listen import parse_address

_log = logging.getLogger(__name__)
_PATIENCE = 5.0  # seconds the event loop may take to answer
_SAMPLES = 500  # of a metric that are written in one go, some 3 ms
_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Readiness = Callable[[], tuple[bool, str]]
Answer = tuple[HTTPStatus, str, bytes]


class HealthServer:
    """Answers on `address` (HOST:PORT) while the block lasts. `readiness` is whether /readyz is 200, and its text.

    Raises Invalid for what is no address, Refused where it cannot be listened on. Made and entered on the event loop.
    """

    def __init__(self, address: str, registry: CollectorRegistry, readiness: Readiness) -> None:
        self._address, self.registry, self._readiness = address, registry, readiness

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._server = _Server(parse_address(self._address), _handler(lambda path: _ask(loop, self._render(path))))
        except (OSError, UnicodeError) as e:
            why = (isinstance(e, OSError) and e.strerror) or e
            raise Refused(
                f"cannot listen on {self._address} for metrics and health: {why}; give another address"
            ) from e
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()
        _log.info("metrics and health on http://%s", self._address)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The one listened on, also where the address said 0."""
        return int(self._server.server_address[1])

    async def _render(self, path: str) -> Answer:
        try:
            return await self._page(path)
        except Exception:
            _log.exception("%s cannot be answered", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"a bug: see the log\n"

    async def _page(self, path: str) -> Answer:
        if path == "/livez":
            return HTTPStatus.OK, _TEXT, b"ok\n"
        if path == "/readyz":
            ready, text = self._readiness()
            return (
                (HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE),
                _TEXT,
                f"{text}\n".encode(errors="backslashreplace"),
            )
        if path == "/metrics":
            return HTTPStatus.OK, _PROMETHEUS, await _exposition(self.registry)
        return HTTPStatus.NOT_FOUND, _TEXT, b"/livez, /readyz and /metrics are here\n"


async def _exposition(registry: CollectorRegistry) -> bytes:
    """A part of a metric after the other: those of hundreds of clusters take a tenth of a second together."""
    pages = list[bytes]()
    for metric in registry.collect():
        for page in _pages(metric):
            pages.append(page)
            await asyncio.sleep(0)
    return b"".join(pages)


def _pages(metric: Metric) -> Iterator[bytes]:
    """The text of `metric`, of a gauge some samples at a time; of others some come last, and they are few."""
    if metric.type != "gauge" or len(metric.samples) <= _SAMPLES:
        yield generate_latest(_Alone(metric))
        return
    for first in range(0, len(metric.samples), _SAMPLES):
        part = Metric(metric.name, metric.documentation, metric.type)
        part.samples = metric.samples[first : first + _SAMPLES]
        page = generate_latest(_Alone(part))
        yield page.split(b"\n", 2)[2] if first else page  # what it is was told


class _Alone(Collector):
    """A registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


async def serve_health(address: str, registry: CollectorRegistry, readiness: Readiness) -> None:
    """A HealthServer until cancelled; with the address "" none at all."""
    if address:
        with HealthServer(address, registry, readiness):
            await asyncio.Event().wait()


def _ask(loop: asyncio.AbstractEventLoop, rendering: Coroutine[Any, Any, Answer]) -> Answer:
    try:
        return asyncio.run_coroutine_threadsafe(rendering, loop).result(_PATIENCE)
    except (LateError, RuntimeError):
        text = f"the event loop has not answered for {_PATIENCE:g} s\n"
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, text.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        both = not address[0] and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if both or ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(self.server_address[0]))
        TCPServer.server_bind(self)  # HTTPServer's asks DNS for this machine's name, where there may be none yet

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is nobody's fault."""


def _handler(answer: Callable[[str], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            status, kind, body = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Probes come every few seconds; nobody wants to read of them."""

    return Handler
