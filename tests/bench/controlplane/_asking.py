"""Who asks for changes: in a process of its own, everything made ready before the first, over one kept connection.

The time of a change is taken right before its first byte is given to the connection: CLOCK_MONOTONIC, in nanoseconds,
which is one for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final, TypeVar

from clustermesh.store import methods
from clustermesh.store.endpoint import Endpoint
from clustermesh.store.exchange import Ended
from clustermesh.store.frames import request_headers
from clustermesh.store.http2 import Http2
from clustermesh.store.status import Code
from clustermesh.store.tls import Tls

_OK: Final = 200
_LATE: Final = 0.02  # of the time that was given
R = TypeVar("R")


def patch(port: int, admin: Tls, changes: Sequence[tuple[str, object]], pause: float) -> list[int]:
    """JSON merge patches by path, of the API at `port`, one after the other; `pause` seconds after each answer."""
    requests = [_spelled(path, json.dumps(change, separators=(",", ":")).encode()) for path, change in changes]
    context, times = ssl.create_default_context(cafile=admin.ca), []
    context.load_cert_chain(str(admin.cert), str(admin.key))
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            for request in requests:
                times.append(time.monotonic_ns())
                connection.sendall(request)
                _read_answer(connection)
                time.sleep(pause)
    return times


def _spelled(path: str, body: bytes) -> bytes:
    about = f"Content-Type: application/merge-patch+json\r\nContent-Length: {len(body)}"
    return f"PATCH {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{about}\r\n\r\n".encode() + body


def _read_answer(connection: ssl.SSLSocket) -> None:
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        text = answer.read()
    if answer.status != _OK:
        raise RuntimeError(f"PATCH: {answer.status} {text[:500]!r}")


def write(endpoint: Endpoint, turns: Sequence[Sequence[bytes]], every: float) -> list[int]:
    """Puts of an etcd, encoded: those of a turn at once, a turn `every` so many seconds whatever becomes of those
    before. When each turn was; RuntimeError where they were not asked for as often, or one was not taken."""
    times, http2 = list[int](), Http2()
    headers = request_headers(endpoint.secure, endpoint.target, methods.PUT.path, (), None)
    with socket.create_connection((endpoint.host, endpoint.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for number, puts in enumerate(turns):
            _hear_answers(connection, http2, began + number * every)
            times.append(time.monotonic_ns())
            for put in puts:
                http2.send(http2.open(headers), put, last=True)
            connection.sendall(http2.take())
        while http2.busy:
            _hear_answers(connection, http2, time.monotonic() + every)
    given, taken = len(turns) * every, (times[-1] - times[0]) / 1e9
    if taken > given * (1 + _LATE):
        raise RuntimeError(f"what was to be asked for in {given:g} s took {taken:g} s")
    return times


def _hear_answers(connection: socket.socket, http2: Http2, until: float) -> None:
    while (left := until - time.monotonic()) > 0 and select.select([connection], [], [], left)[0]:
        for event in http2.receive(connection.recv(1 << 18)):
            if isinstance(event, Ended) and event.code is not Code.OK:
                raise RuntimeError(f"etcd: {event.details}")
        connection.sendall(http2.take())


async def elsewhere(work: Callable[..., R], *args: object) -> R:
    """What `work` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return await asyncio.get_running_loop().run_in_executor(process, work, *args)
