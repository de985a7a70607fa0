"""Asks the agent of this node over its unix socket."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import Refused, Unavailable

DEFAULT_SOCKET: Final = Path("/run/clustermesh/agent.sock")
_TIMEOUT: Final = 10.0  # seconds
_SILENCE: Final = 3.0  # seconds that one who says something each second says nothing
_LOCK: Final = "agent.lock"  # beside the socket; its agent holds it before it listens, and while it hangs


def ask(path: Path, method: str, params: dict[str, Any] | None = None) -> Any:
    """The result of `method`. Raises Unavailable when nobody answers, Refused with the agent's sentence on an error."""
    with closing(_lines(path, method, params or {}, None)) as lines:
        return _result(path, next(lines))


def listen(path: Path, method: str, params: dict[str, Any], on_silence: Callable[[str], None]) -> Iterator[Any]:
    """The result of `method`, then whatever it says line by line; its end is Unavailable. Errors as of `ask`. Each time
    it falls silent after that `on_silence` is told, and what comes later is heard."""
    with closing(_lines(path, method, params, on_silence)) as lines:
        yield _result(path, next(lines))
        for line in lines:
            yield _decoded(path, line)


def _lines(
    path: Path, method: str, params: dict[str, Any], on_silence: Callable[[str], None] | None
) -> Generator[bytes, None, None]:
    request = json.dumps({"method": method, "params": params}).encode() + b"\n"
    pid: int | None = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            connection.sendall(request)
            has_answered = is_silent = False
            for line in _heard(connection):
                if line is not None:
                    yield line
                    has_answered, is_silent = True, False
                    if on_silence is not None:
                        connection.settimeout(_SILENCE)
                elif on_silence is None or not has_answered:
                    raise TimeoutError("timed out")
                elif not is_silent:
                    on_silence(_silent(path, pid, f"nothing for {_SILENCE:g} s"))
                    is_silent = True
    except PermissionError as e:
        raise Refused(f"{path}: {e.strerror}: run this as root") from e
    except OSError as e:
        why, hangs = e.strerror or str(e), isinstance(e, TimeoutError | BlockingIOError)  # or too many wait already
        if pid is not None and not hangs:
            raise Unavailable(f"the agent on {path} closed the connection ({why})") from e
        if not pid and (pid := _find_holder(path.parent / _LOCK)) is None and not hangs:
            raise Unavailable(f"no agent answers on {path} ({why}): start `clustermesh-agent`, or give --socket") from e
        raise Unavailable(_silent(path, pid, why)) from e
    raise Unavailable(f"the agent on {path} closed the connection without an answer")


def _heard(connection: socket.socket) -> Iterator[bytes | None]:
    """Lines, None where nothing came in time."""
    begun = bytearray()
    while True:
        try:
            part = connection.recv(1 << 16)
        except TimeoutError:
            yield None
            continue
        if not part:
            return
        begun += part
        if b"\n" in part:
            *lines, begun = begun.split(b"\n")
            yield from map(bytes, lines)


def _silent(path: Path, pid: int | None, why: str) -> str:
    who = f"the agent (pid {pid})" if pid else "the agent"  # 0: of another pid namespace
    return f"{who} runs but does not answer on {path} ({why}): look at its log, or restart it"


def _find_holder(lock: Path) -> int | None:
    """The process that has locked a file by flock(2), None where there is none; see proc_locks(5)."""
    try:
        found = lock.stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return None
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    held = (line.split() for line in locks.splitlines())  # in the place of FLOCK a waiting one has an arrow
    return next((int(each[4]) for each in held if each[1] == "FLOCK" and each[5] == file), None)


def _result(path: Path, line: bytes) -> Any:
    answer = _decoded(path, line)
    try:
        if error := answer.get("error"):
            raise Refused(f"{error['message']}{' (' + error['hint'] + ')' if error.get('hint') else ''}")
        return answer["result"]
    except (TypeError, AttributeError, KeyError) as e:
        raise _no_agent(path) from e


def _decoded(path: Path, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as e:
        raise _no_agent(path) from e


def _no_agent(path: Path) -> Refused:
    return Refused(f"what answers on {path} is no agent: give the agent's socket with --socket")
