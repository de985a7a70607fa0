"""Asks the agent of this node over its unix socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import Refused, Unavailable

DEFAULT_SOCKET: Final = Path("/run/clustermesh/agent.sock")
_TIMEOUT: Final = 10.0  # seconds


def ask(path: Path, method: str, params: dict[str, Any] | None = None) -> Any:
    """The result of `method`. Raises Unavailable when nobody answers, Refused with the agent's sentence on an error."""
    with closing(_lines(path, method, params or {})) as lines:
        return _result(path, next(lines))


def listen(path: Path, method: str, params: dict[str, Any]) -> Iterator[Any]:
    """The result of `method`, then whatever it says line by line; its end is Unavailable. Errors as of `ask`."""
    with closing(_lines(path, method, params)) as lines:
        yield _result(path, next(lines))
        for line in lines:
            yield _decoded(path, line)


def _lines(path: Path, method: str, params: dict[str, Any]) -> Generator[bytes, None, None]:
    request = json.dumps({"method": method, "params": params}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(request)
            with connection.makefile("rb") as answers:
                while (line := answers.readline()).endswith(b"\n"):
                    yield line
    except PermissionError as e:
        raise Refused(f"{path}: {e.strerror}: run this as root") from e
    except OSError as e:
        raise Unavailable(
            f"no agent answers on {path} ({e.strerror or e}): start `clustermesh-agent`, or give --socket"
        ) from e
    raise Unavailable(f"the agent on {path} closed the connection without an answer")


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
