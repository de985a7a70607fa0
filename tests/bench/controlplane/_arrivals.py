"""When what arrives in an etcd: one process for each, which does nothing but take the time when a message is there.

What the messages are is looked at in the end.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
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


@asynccontextmanager
async def listening(url: str, tls: Tls, prefix: bytes) -> AsyncIterator[Listener]:
    """To everything that is written under `prefix` from now on."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_listen, args=(theirs, url, tls, prefix))
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
        threading.Thread(target=_end_on_demand, args=(pipe, call)).start()
        with suppress(grpc.RpcError):
            for message in call:
                messages.append((time.monotonic_ns(), message))
        requests.put(None)
    pipe.send([each for at, message in messages for each in _puts(at, message)])


def _end_on_demand(pipe: Connection, call: grpc.Call) -> None:
    pipe.recv()
    call.cancel()


def _puts(at: int, message: bytes) -> list[tuple[bytes, bytes, int]]:
    events = pb.WatchResponse.FromString(message).events
    return [(event.kv.key, event.kv.value, at) for event in events if event.type == pb.Event.PUT]


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
