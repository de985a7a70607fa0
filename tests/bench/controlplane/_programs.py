"""What is measured, and what stands around it: a filled Kubernetes API, and the programs in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from apiserver_bed import Bed
from kube_bed import KubeBed

from clustermesh.store.client import EtcdClient, Put
from tests.bench.controlplane._objects import Object, Objects

PATIENCE: Final = 300.0
_STOP: Final = 10.0
_OFTEN: Final = 0.02
_SHARE: Final = 0.01  # of the time that has passed: each answer costs the program that is measured some milliseconds
_QUOTA: Final = "--quota-backend-bytes=8589934592"

Process = asyncio.subprocess.Process


@contextmanager
def folder() -> Iterator[Path]:
    """On tmpfs, and gone afterwards."""
    with TemporaryDirectory(prefix="clustermesh-bench-", dir="/dev/shm") as made:
        yield Path(made)


@asynccontextmanager
async def kubernetes(home: Path, objects: Objects, **environment: str) -> AsyncIterator[KubeBed]:
    """An API that has the objects: they are written where it keeps them, which takes seconds and not minutes.
    `environment` is its programs' besides our own."""
    bed = KubeBed(home / "kube", _QUOTA)
    bed.patience = PATIENCE  # it reads a hundred thousand Pods before it is ready
    try:
        with _surrounded(environment):
            await bed.etcd.start()
            async with EtcdClient(bed.etcd.endpoints) as client:
                await client.transact(registered(key, made) for key, made in objects.all())
            await bed.restart()
        for kind in ("pods", "services"):  # its own cache is filled
            await asyncio.to_thread(bed.ask, "GET", f"/api/v1/{kind}?limit=1&resourceVersion=0")
        yield bed
    finally:
        bed.__exit__()


@contextmanager
def _surrounded(environment: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]


def registered(key: str, made: Object) -> Put:
    """The object where an API server keeps it."""
    return Put(f"/registry/{key}".encode(), json.dumps(made, separators=(",", ":")).encode())


@asynccontextmanager
async def cluster(home: Path, name: str = "alpha", number: int = 1, most: int = 255) -> AsyncIterator[Bed]:
    """Its folder, and its own etcd, empty."""
    async with Bed(home / name, name, number, most) as bed:
        bed.etcd.flags = [_QUOTA]
        await bed.etcd.start()
        yield bed


@asynccontextmanager
async def api_server(bed: Bed, api: KubeBed) -> AsyncIterator[Process]:
    config = api.write_kubeconfig("admin", cert="admin")
    flags = ["--source", "kubernetes", "--kubeconfig", str(config), "--http", bed.http]
    async with _program(bed, "apiserver", *flags) as process:
        yield process


@asynccontextmanager
async def mirror(bed: Bed) -> AsyncIterator[Process]:
    async with _program(bed, "kvstoremesh", "--enable-heartbeat", "--http", bed.http) as process:
        yield process


@asynccontextmanager
async def _program(bed: Bed, name: str, *flags: str) -> AsyncIterator[Process]:
    argv = ("-m", "clustermesh.cli", name, "--context", str(bed.context.path), *flags)
    with _log(bed, name).open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=log, stderr=log)
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    with suppress(TimeoutError, ProcessLookupError):
        async with asyncio.timeout(_STOP):
            process.send_signal(signal.SIGTERM)
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


def _log(bed: Bed, name: str) -> Path:
    return bed.context.path / f"{name}.log"


def check_running(process: Process, bed: Bed) -> None:
    """RuntimeError with its last words where it has ended."""
    if process.returncode is not None:
        words = "".join(path.read_text()[-2000:] for path in bed.context.path.glob("*.log"))
        raise RuntimeError(f"the program ended with {process.returncode}: {words}")


async def until_ready(process: Process, bed: Bed) -> None:
    """Until /readyz says that everything is published."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(_is_ready, bed.http):
            check_running(process, bed)
            await asyncio.sleep(max(_OFTEN, (time.monotonic() - began) * _SHARE))


def _is_ready(at: str) -> bool:
    """A page that says 503 raises an OSError, too."""
    with suppress(OSError), urllib.request.urlopen(f"http://{at}/readyz", timeout=PATIENCE) as answer:
        return bool(answer.status == 200)
    return False


def resident_mb(process: Process) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
