"""The agent's unix socket: one JSON object per line each way, for `clustermesh node ...` and the CNI plugin.

{"method": "status", "params": {}}  ->  {"result": ...}  or  {"error": {"message": "...", "hint": "..."}}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import inspect
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from clustermesh.errors import ClusterMeshError, Refused, Unavailable

_log = logging.getLogger(__name__)
_LIMIT = 1 << 20  # bytes of one request
_IDLE = 30.0  # seconds a client may keep quiet, or read nothing
PAGE = 1024  # rows that are made between two turns of the event loop, ...
_TURN = 0.004  # ... or fewer, if they take this many seconds

_NAME = "\0clustermesh-agent"
_SHOWN = "@clustermesh-agent"  # as ss(8) and netstat(8) have it
_PATIENCE = 1  # seconds for whoever holds it

Method = Callable[[dict[str, Any]], Any]
"""The result, or something to await for it; of a large list an iterator of its rows, see `agent.listing`; of what
has no end an async generator of whole lines, of which the first is the reply."""


class Request(Struct, frozen=True):
    method: str
    params: dict[str, Any] = {}


_decoder = msgspec.json.Decoder(Request)


@contextlib.contextmanager
def alone(run_dir: Path, state_dir: Path) -> Iterator[None]:
    """Be the one agent of these folders, before anything is touched that another one works with. Refused.

    Of `state_dir` the folder itself is locked: its disk may have become read-only.
    """
    with _locked(run_dir, run_dir / "agent.lock", "--run-dir"), _locked(state_dir, state_dir, "--state-dir"):
        yield


@contextlib.contextmanager
def alone_over(pins: Path) -> Iterator[None]:
    """Be the one agent of the maps that are pinned in `pins`, whatever other folders another one has. Refused."""
    with _locked(pins, pins, "--bpffs"):
        yield


@contextlib.contextmanager
def alone_in_network() -> Iterator[None]:
    """Be the one agent of this network namespace, whatever folders and devices another one has: each would give the
    node's routes and its tunnels' key to itself. Refused.

    By a name that belongs to the namespace, and goes with the process. Anybody may take that name, so it says nothing
    where it is not held by who could run an agent.
    """
    with contextlib.ExitStack() as closing:
        held = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            held.bind(_NAME)
            held.listen()
        except OSError as e:
            if (holder := _holder()) is not None:
                where = f"another agent (pid {holder}) runs in this network namespace"
                raise Refused(f"{where}: stop it first, or give this one a node of its own") from e
            _log.warning(
                "somebody without an agent's rights holds the socket %s: nobody notices a second agent", _SHOWN
            )
        else:
            closing.enter_context(_taking_calls(held))
        yield


@contextlib.contextmanager
def _taking_calls(held: socket.socket) -> Iterator[None]:
    """Whoever calls knows by that who we are. Nobody is left waiting, or those after them could not call."""
    ended = threading.Event()

    def take() -> None:
        while not ended.is_set():
            try:
                held.accept()[0].close()
            except OSError:  # the block is left, or there are too many open files
                ended.wait(_PATIENCE)

    taking = threading.Thread(target=take, name="alone", daemon=True)
    taking.start()
    try:
        yield
    finally:
        ended.set()
        held.shutdown(socket.SHUT_RDWR)
        taking.join()


def _holder() -> int | None:
    """The process that holds the name, 0 for one that is not seen from here; None where it is not this user's."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            # Of a socket that does not block, a queue that is full for a moment were an error at once.
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _PATIENCE, 0))
            asking.connect(_NAME)
            pid, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except OSError:
        return None
    return int(pid) if user == os.geteuid() else None


@contextlib.contextmanager
def _locked(folder: Path, lock: Path, option: str) -> Iterator[None]:
    with contextlib.ExitStack() as closing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDONLY | (os.O_CREAT if lock != folder else 0), 0o600)
            closing.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise Refused(f"another agent holds {lock}: stop it first") from e
        except OSError as e:
            raise Refused(f"{lock}: {e.strerror or e}; give another folder with {option}") from e
        yield


async def serve(path: Path, methods: Mapping[str, Method]) -> None:
    """Answer requests on the socket at `path` until cancelled. Raises Refused where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        await _take_over(path)
        listening = _bind(path)
        server = await asyncio.start_unix_server(lambda r, w: _client(r, w, methods), sock=listening, limit=_LIMIT)
    except OSError as e:
        raise Refused(f"cannot listen on {path}: {e.strerror or e}") from e
    async with server:
        await server.serve_forever()


def _bind(path: Path) -> socket.socket:
    """A socket that from its first moment is this user's only."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


async def _take_over(path: Path) -> None:
    """Remove the socket of an agent that is gone; one that answers keeps it."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    writer.close()
    raise Refused(f"another agent answers on {path}: stop it first")


async def _client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, methods: Mapping[str, Method]) -> None:
    with contextlib.suppress(OSError, TimeoutError, ValueError):  # the client left, kept quiet or sent too long a line
        while line := await asyncio.wait_for(reader.readline(), _IDLE):
            await _send(writer, await answer(line, methods))
    writer.close()


async def _send(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    rows = reply.get("result")
    if isinstance(rows, Iterator):
        async for part in _told(rows):
            writer.write(part)
            await asyncio.wait_for(writer.drain(), _IDLE)
    elif isinstance(rows, AsyncGenerator):
        async with contextlib.aclosing(rows):
            async for line in rows:
                writer.write(line)
                await asyncio.wait_for(writer.drain(), _IDLE)
    else:
        writer.write(msgspec.json.encode(reply) + b"\n")
        await writer.drain()


async def _told(rows: Iterator[Any]) -> AsyncIterator[bytes]:
    """The reply whose result is the list of these rows, in parts. What breaks off has no end, which says so."""
    yield b'{"result":['
    between = b""
    try:
        for page in _pages(rows):
            if page:
                yield between + msgspec.json.encode(page)[1:-1]
                between = b","
            await asyncio.sleep(0)
    except Exception as e:
        _log.exception("a table cannot be told to its end")
        raise ConnectionAbortedError from e
    yield b"]}\n"


def _pages(rows: Iterator[Any], clock: Callable[[], float] = time.monotonic) -> Iterator[list[Any]]:
    """Each as long as the event loop may be held for; a None among `rows` is a step that made no row."""
    page, until = [], clock() + _TURN
    for row in rows:
        if row is not None:
            page.append(row)
        if len(page) == PAGE or clock() > until:
            yield page
            page, until = [], clock() + _TURN
    yield page


async def answer(line: bytes, methods: Mapping[str, Method]) -> dict[str, Any]:
    """The reply to one request line; never raises but for cancellation."""
    try:
        request = _decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        return _error(f"not a request: {e}", 'send {"method": "status", "params": {}}')
    method = methods.get(request.method)
    if method is None:
        return _error(f"no method {request.method!r}", f"methods: {', '.join(sorted(methods))}")
    try:
        result = method(request.params)
        return {"result": await result if inspect.isawaitable(result) else result}
    except Unavailable as e:
        return _error(str(e), "try again in a moment")
    except ClusterMeshError as e:
        return _error(str(e), "")
    except Exception:
        _log.exception("request %s failed", request.method)
        return _error(f"{request.method} failed inside the agent", "see the agent's log")


def _error(message: str, hint: str) -> dict[str, Any]:
    return {"error": {"message": message, "hint": hint}}
