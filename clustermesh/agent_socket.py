"""Asks the agent of this node over its unix socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import Refused, Unavailable

DEFAULT_SOCKET: Final = Path("/run/clustermesh/agent.sock")
_TIMEOUT: Final = 10.0  # seconds


def ask(path: Path, method: str, params: dict[str, Any] | None = None) -> Any:
    """The result of `method`. Raises Unavailable when nobody answers, Refused with the agent's sentence on an error."""
    request = json.dumps({"method": method, "params": params or {}}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            connection.sendall(request)
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except PermissionError as e:
        raise Refused(f"{path}: {e.strerror}: run this as root") from e
    except OSError as e:
        raise Unavailable(
            f"no agent answers on {path} ({e.strerror or e}): start `clustermesh-agent`, or give --socket"
        ) from e
    if not line.endswith(b"\n"):
        raise Unavailable(f"the agent on {path} closed the connection without an answer")
    try:
        answer = json.loads(line)
        if error := answer.get("error"):
            raise Refused(f"{error['message']}{' (' + error['hint'] + ')' if error.get('hint') else ''}")
        return answer["result"]
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise Refused(f"what answers on {path} is no agent: give the agent's socket with --socket") from e
