"""One API server per cluster: two would take each other's keys for meddling, and write them by turns for ever."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from clustermesh.errors import Refused, Unavailable

FILE: Final = ".apiserver.lock"
PATIENCE: Final = 10.0
"""Seconds that one before us has for ending."""
_LOOK: Final = 0.05


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[None]:
    """Hold the cluster at `folder`; the kernel lets go of it however this process ends.

    Refused where another API server runs there and does not end within 10 s, Unavailable where the folder is not ours.
    """
    path = folder / FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise Unavailable(f"{path}: {e.strerror}") from e
    try:
        await _take(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def _take(descriptor: int, folder: Path) -> None:
    for _ in range(int(PATIENCE / _LOOK)):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_LOOK)
    holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    raise Refused(f"{folder}: another API server (process {holder}) publishes this cluster; end it first")
