"""A socket that answers as an agent's does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def agent(path: Path, results: Mapping[str, Any]) -> Iterator[Path]:
    """Answers each method at `path` with what `results` has for it, until the block is left."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, connection.makefile("rwb") as stream:
                    method = json.loads(stream.readline())["method"]
                    stream.write(json.dumps({"result": results[method]}).encode() + b"\n")

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield path
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()
