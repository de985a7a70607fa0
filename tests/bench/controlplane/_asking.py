"""Who asks for changes: in a process of its own, everything made ready before the first, over one kept connection.

The time of a change is taken right before its first byte is given to the connection: CLOCK_MONOTONIC, in nanoseconds,
which is one for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final, TypeVar

import grpc

from clustermesh.store import methods
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


def write(target: str, transactions: Sequence[bytes], every: float) -> list[int]:
    """Transactions of an etcd, encoded, one `every` so many seconds whatever becomes of those before. RuntimeError
    where they were not asked for as often."""
    times, under_way = [], []
    with grpc.insecure_channel(target) as channel:
        transact = channel.unary_unary(methods.TXN.path)
        grpc.channel_ready_future(channel).result()
        began = time.monotonic()
        for number, request in enumerate(transactions):
            time.sleep(max(0.0, began + number * every - time.monotonic()))
            times.append(time.monotonic_ns())
            under_way.append(transact.future(request))
        for each in under_way:
            each.result()
    given, taken = len(transactions) * every, (times[-1] - times[0]) / 1e9
    if taken > given * (1 + _LATE):
        raise RuntimeError(f"what was to be asked for in {given:g} s took {taken:g} s")
    return times


async def elsewhere(work: Callable[..., R], *args: object) -> R:
    """What `work` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return await asyncio.get_running_loop().run_in_executor(process, work, *args)
