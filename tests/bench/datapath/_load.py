"""The programs of load.c: a server and a client as processes, each bound to a CPU, and what they cost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, Self

from tests.bench.datapath._network import Pods

_SOURCE: Final = Path(__file__).with_name("load.c")
_CPUS: Final = sorted(os.sched_getaffinity(0))
_SERVERS, _OTHER = _CPUS[-1], _CPUS[0]
FIRST_PORT: Final = 8000

Target = tuple[str, int]


class Mode(NamedTuple):
    """What a client does: "new" connections or "keep" them, so many at once, on a CPU of its own or on the server's.

    One request at a time is answered on one CPU: on two, most of its time would be that of waking the other one.
    """

    name: str
    at_once: int
    apart: bool


class Cell(NamedTuple):
    """What a client did. `cpu_us` is that of both ends and of the kernel beside them, for each request."""

    rate: float
    p99_us: float
    cpu_us: float


@contextmanager
def compiled() -> Iterator[Path]:
    """The program of load.c."""
    with TemporaryDirectory(prefix="clustermesh-bench-") as folder:
        program = Path(folder) / "load"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(program), str(_SOURCE)], check=True)
        yield program


class Load:
    """A client that asks `targets`, in the client pod, and a server in the backend pods."""

    def __init__(self, program: Path, pods: Pods, targets: Iterable[Target], ports: int) -> None:
        listed = program.with_name(f"{id(self)}.targets")
        listed.write_text("".join(f"{address} {port}\n" for address, port in targets))
        words = [str(program), "serve", str(_SERVERS), str(FIRST_PORT), str(ports)]
        self._server = pods.backends.start(*words)
        _line(self._server)  # it listens
        self._client = pods.client.start(str(program), "ask", str(listed))
        self._used = 0  # by the server and by the kernel's threads for packets

    @property
    def client_pid(self) -> int:
        return self._client.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._client, self._server):
            process.kill()
            process.communicate()

    def run(self, mode: Mode, seconds: float, seed: int) -> None:
        """RuntimeError where a request is never answered."""
        before = self._beside()
        cpu = _OTHER if mode.apart else _SERVERS
        _order(self._client, f"{cpu} {mode.name} {mode.at_once} {seconds * 1000:.0f} {seed}")
        self._used += self._beside() - before

    def told(self) -> Cell:
        """What came of all since this was asked last. RuntimeError where any request failed."""
        said = json.loads(_order(self._client, f"{_OTHER} tell 1 0 0"))
        if said["failed"] or not said["done"]:
            raise RuntimeError(f"{self._client.args!r}: {said}")
        done, beside = said["done"], self._used / 1000
        self._used = 0
        return Cell(done / said["seconds"], said["p99_us"], (said["cpu_us"] + beside) / done)

    def _beside(self) -> int:
        """Nanoseconds that the server and the kernel's threads for packets have run so far."""
        return sum(_ran(pid) for pid in (self._server.pid, *_softirqs()))


class Flood:
    """A client pod that floods `targets` with datagrams, and a backend pod's process that takes those to FIRST_PORT."""

    _SOCKETS: Final = 64

    def __init__(self, program: Path, pods: Pods, targets: Iterable[Target]) -> None:
        listed = program.with_name(f"{id(self)}.targets")
        listed.write_text("".join(f"{address} {port}\n" for address, port in targets))
        self._drain = pods.backends.start(str(program), "drain", str(_SERVERS), str(FIRST_PORT))
        _line(self._drain)
        self._client = pods.client.start(str(program), "ask", str(listed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._client, self._drain):
            process.kill()
            process.communicate()

    def run(self, seconds: float, seed: int) -> int:
        """How many arrived."""
        before = self._arrived()
        _order(self._client, f"{_OTHER} flood {self._SOCKETS} {seconds * 1000:.0f} {seed}")
        return self._arrived() - before

    def _arrived(self) -> int:
        return int(_order(self._drain, "many"))


def _order(process: subprocess.Popen[bytes], line: str) -> bytes:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
    return _line(process)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return line


def _ran(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@cache
def _softirqs() -> list[int]:
    names = ((each, each / "comm") for each in Path("/proc").iterdir() if each.name.isdecimal())
    return [int(each.name) for each, comm in names if comm.exists() and comm.read_text().startswith("ksoftirqd/")]
