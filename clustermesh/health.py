"""/livez, /readyz and /metrics over HTTP, for kubelets and Prometheus.

The standard library's server answers in threads of its own; what it answers is rendered on the event loop, where the
state lives. /livez therefore also says that the loop turns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as LateError
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from clustermesh.errors import Invalid, Refused

_log = logging.getLogger(__name__)
_PATIENCE = 5.0  # seconds the event loop may take to answer
_TEXT = "text/plain; charset=utf-8"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[HTTPStatus, str, bytes]


async def serve_health(address: str, registry: CollectorRegistry, not_ready: Callable[[], str]) -> None:
    """Answer on `address` (HOST:PORT, "" for not at all) until cancelled.

    `not_ready` says why /readyz is refused, "" where all is well. Raises Invalid for a bad address, Refused for a taken
    one.
    """
    if not address:
        return
    host, port = parse_address(address)
    loop = asyncio.get_running_loop()

    async def render(path: str) -> Answer:
        try:
            return _render(path, registry, not_ready)
        except Exception:
            _log.exception("%s cannot be answered", path)
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"a bug: see the log\n"

    server_class = _ServerV6 if ":" in host else ThreadingHTTPServer
    try:
        server = server_class((host, port), _handler(lambda path: _ask(loop, render(path))))
    except OSError as e:
        raise Refused(f"cannot listen on {address} for metrics and health: {e.strerror}") from e
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    _log.info("metrics and health on http://%s", address)
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


class _ServerV6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def parse_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 9962) from "127.0.0.1:9962"; IPv6 in brackets. Raises Invalid."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Invalid("address", address, "must be HOST:PORT, as 127.0.0.1:9962")
    return host.strip("[]"), int(port)


def _render(path: str, registry: CollectorRegistry, not_ready: Callable[[], str]) -> Answer:
    if path == "/livez":
        return HTTPStatus.OK, _TEXT, b"ok\n"
    if path == "/readyz":
        why = not_ready()
        return (HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK), _TEXT, f"{why or 'ok'}\n".encode()
    if path == "/metrics":
        return HTTPStatus.OK, _PROMETHEUS, generate_latest(registry)
    return HTTPStatus.NOT_FOUND, _TEXT, b"/livez, /readyz and /metrics are here\n"


def _ask(loop: asyncio.AbstractEventLoop, rendering: Coroutine[Any, Any, Answer]) -> Answer:
    try:
        return asyncio.run_coroutine_threadsafe(rendering, loop).result(_PATIENCE)
    except (LateError, RuntimeError):
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"the event loop did not answer within {_PATIENCE:g} s\n".encode()


def _handler(answer: Callable[[str], Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:  # the standard library's name
            status, kind, body = answer(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            _log.debug(format, *args)

    return Handler
