"""When what arrives in an etcd, or at a watcher of the Kubernetes API: one process for each, which does nothing but
take the time when a message is there.

What the messages are is looked at in the end.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import multiprocessing
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.endpoint import parse
from clustermesh.store.exchange import Message
from clustermesh.store.frames import request_headers
from clustermesh.store.http2 import Http2
from clustermesh.store.operations import prefix_end
from clustermesh.store.tls import Tls, context


class Expected(NamedTuple):
    """That `key` has a value with `text` in it; since `asked`, in nanoseconds."""

    key: bytes
    text: bytes
    asked: int


class Heard(NamedTuple):
    """That `key` has `value`; `at`, in nanoseconds."""

    key: bytes
    value: bytes
    at: int


class Listener:
    """The other end of a process that listens."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def end(self) -> list[Heard]:
        """All that was heard, in order."""
        self._pipe.send(None)
        return [Heard(*each) for each in await asyncio.to_thread(self._pipe.recv)]


def listening(url: str, tls: Tls, prefix: bytes) -> AbstractAsyncContextManager[Listener]:
    """To everything that is written under `prefix` of an etcd from now on."""
    return _elsewhere(_listen, url, tls, prefix)


def watching(port: int, tls: Tls, path: str) -> AbstractAsyncContextManager[Listener]:
    """What the Kubernetes API at `port` tells of the EndpointSlices at `path`, by the names of their Services: for
    whoever does nothing with it."""
    return _elsewhere(_watch, port, tls, path)


@asynccontextmanager
async def _elsewhere(listen: Callable[..., None], *args: object) -> AsyncIterator[Listener]:
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=listen, args=(theirs, *args))
    process.start()
    theirs.close()  # where that process ends, so does the waiting for it
    try:
        await asyncio.to_thread(ours.recv)  # it listens
        yield Listener(ours)
    finally:
        process.kill()
        process.join()


def _listen(pipe: Connection, url: str, tls: Tls, prefix: bytes) -> None:
    gc.disable()
    messages = list[tuple[int, bytes]]()
    where, http2 = parse(url), Http2()
    watch = http2.open(request_headers(True, where.target, methods.WATCH.path, (), None))
    create = pb.WatchCreateRequest(key=prefix, range_end=prefix_end(prefix))
    http2.send(watch, pb.WatchRequest(create_request=create).SerializeToString())
    with socket.create_connection((where.host, where.port)) as plain, _wrapped(plain, where.host, tls) as secure:
        secure.sendall(http2.take())
        with suppress(OSError):
            while heard := secure.recv(1 << 18):
                at, first = time.monotonic_ns(), not messages
                told = [each.data for each in http2.receive(heard) if isinstance(each, Message)]
                messages += [(at, message) for message in told]
                for message in told:
                    http2.taken(watch, message)
                secure.sendall(http2.take())
                if first and told:  # the watch is created
                    pipe.send(None)
                    threading.Thread(
                        target=_end_on_demand, args=(pipe, partial(secure.shutdown, socket.SHUT_RDWR))
                    ).start()
    pipe.send([each for at, message in messages for each in _puts(at, message)])


def _wrapped(plain: socket.socket, host: str, tls: Tls) -> ssl.SSLSocket:
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context(tls).wrap_socket(plain, server_hostname=host)


def _end_on_demand(pipe: Connection, end: Callable[[], object]) -> None:
    pipe.recv()
    end()


def _puts(at: int, message: bytes) -> list[tuple[bytes, bytes, int]]:
    events = pb.WatchResponse.FromString(message).events
    return [(event.kv.key, event.kv.value, at) for event in events if event.type == pb.Event.PUT]


def _watch(pipe: Connection, port: int, tls: Tls, path: str) -> None:
    gc.disable()
    pieces = list[tuple[int, bytes]]()
    trusting = ssl.create_default_context(cafile=tls.ca)
    trusting.load_cert_chain(str(tls.cert), str(tls.key))
    asking = http.client.HTTPSConnection("127.0.0.1", port, context=trusting)
    asking.request("GET", f"{path}?limit=1")
    version = json.loads(asking.getresponse().read())["metadata"]["resourceVersion"]
    asking.request("GET", f"{path}?watch=1&resourceVersion={version}")
    plain, answer = asking.sock, asking.getresponse()
    pipe.send(None)
    threading.Thread(target=_end_on_demand, args=(pipe, partial(plain.shutdown, socket.SHUT_RDWR))).start()
    with suppress(OSError, http.client.HTTPException):
        while piece := answer.read1(1 << 18):
            pieces.append((time.monotonic_ns(), piece))
    pipe.send([(_service_of(line), line, at) for at, line in _lines(pieces)])


def _lines(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Each is there when its end is."""
    rest = b""
    for at, piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from ((at, line) for line in whole)


def _service_of(line: bytes) -> bytes:
    metadata = json.loads(line)["object"]["metadata"]
    return f"{metadata['namespace']}/{metadata['labels']['kubernetes.io/service-name']}".encode()


def milliseconds(expected: Iterable[Expected], heard: Sequence[Heard]) -> list[float]:
    """How long each took. One that a later one of the same key has overtaken has arrived with it. RuntimeError where
    one never did."""
    waiting = dict[bytes, list[Expected]]()
    for each in expected:
        waiting.setdefault(each.key, []).append(each)
    found = list[float]()
    for key, value, at in heard:
        mine = waiting.get(key, [])
        last = next((number for number in reversed(range(len(mine))) if mine[number].text in value), -1)
        found += [(at - each.asked) / 1e6 for each in mine[: last + 1]]
        del mine[: last + 1]
    if lost := sum(map(len, waiting.values())):
        raise RuntimeError(f"{lost} changes never arrived")
    return found
