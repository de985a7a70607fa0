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
import queue
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import grpc

from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.endpoint import parse
from clustermesh.store.operations import prefix_end
from clustermesh.store.tls import Tls, credentials


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
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=listen, args=(theirs, *args))
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
    requests = queue.SimpleQueue[bytes | None]()
    create = pb.WatchCreateRequest(key=prefix, range_end=prefix_end(prefix))
    requests.put(pb.WatchRequest(create_request=create).SerializeToString())
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(parse(url).target, credentials(tls), options) as channel:
        call = channel.stream_stream(methods.WATCH.path)(iter(requests.get, None))
        next(call)  # the watch is created
        pipe.send(None)
        threading.Thread(target=_end_on_demand, args=(pipe, call.cancel)).start()
        with suppress(grpc.RpcError):
            for message in call:
                messages.append((time.monotonic_ns(), message))
        requests.put(None)
    pipe.send([each for at, message in messages for each in _puts(at, message)])


def _end_on_demand(pipe: Connection, end: Callable[[], object]) -> None:
    pipe.recv()
    end()


def _puts(at: int, message: bytes) -> list[tuple[bytes, bytes, int]]:
    events = pb.WatchResponse.FromString(message).events
    return [(event.kv.key, event.kv.value, at) for event in events if event.type == pb.Event.PUT]


def _watch(pipe: Connection, port: int, tls: Tls, path: str) -> None:
    gc.disable()
    pieces = list[tuple[int, bytes]]()
    context = ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(str(tls.cert), str(tls.key))
    asking = http.client.HTTPSConnection("127.0.0.1", port, context=context)
    asking.request("GET", f"{path}?limit=1")
    version = json.loads(asking.getresponse().read())["metadata"]["resourceVersion"]
    asking.request("GET", f"{path}?watch=1&resourceVersion={version}")
    plain, answer = asking.sock, asking.getresponse()
    pipe.send(None)
    threading.Thread(target=_end_on_demand, args=(pipe, lambda: plain.shutdown(socket.SHUT_RDWR))).start()
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
