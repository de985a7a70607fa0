"""Programs inside the lab that print JSON lines while they run: load from a pod, a capture of the underlay."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from clustermesh.errors import Unavailable
from lab.lab import Lab
from lab.plan import INTERNET
from lab.records import Record, Traffic, summarize
from lab.waiting import until

_HERE: Final = Path(__file__).parent
_STOP_SECONDS: Final = 30.0  # longer than a request waits for its answer
_LINE: Final = 4 << 20


class _Lines(ABC):
    """A program inside the lab and the JSON objects it prints; `take` sees each of them."""

    def __init__(self, lab: Lab, where: str, script: str, *arguments: str) -> None:
        self._command, self._environment = lab.command(where, [sys.executable, "-IS", str(_HERE / script), *arguments])
        self._name = f"{script} on {where}"
        self._changed = asyncio.Event()

    @abstractmethod
    def take(self, line: bytes) -> None: ...

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It runs inside the block, and is stopped in order at its end. Unavailable where it failed."""
        child = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
            limit=_LINE,
        )
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(child))
            try:
                yield
                self._stop(child)
                async with asyncio.timeout(_STOP_SECONDS):
                    await reader
            except TimeoutError as error:
                raise Unavailable(f"{self._name} did not stop") from error
            finally:
                if not reader.done():  # so its session still has a process, and its number is still ours
                    self._stop(child, signal.SIGKILL)
                reader.cancel()
                await child.wait()

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        """Until it closes its output. What it says on stderr it says because it failed."""
        assert child.stdout is not None
        assert child.stderr is not None
        async for line in child.stdout:
            self.take(line)
            self._changed.set()
        if said := (await child.stderr.read()).decode(errors="replace").strip():
            raise Unavailable(f"{self._name} failed: {said[-500:]}")

    @staticmethod
    def _stop(child: asyncio.subprocess.Process, number: signal.Signals = signal.SIGTERM) -> None:
        """To the whole session: the process inside the node is a child of the one that entered it."""
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return

    async def changed(self, seconds: float) -> None:
        """Returns when something new was printed. Unavailable after `seconds` of silence."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError as error:
            raise Unavailable(f"{self._name} has been silent for {seconds:.0f} s") from error


class _LoadLine(Struct):
    records: list[Record] = []
    done: bool = False


class Load(_Lines):
    """Requests to the addresses of a service in turn, from one pod ("alpha/client"), and their records, in order of
    completion."""

    def __init__(
        self,
        lab: Lab,
        pod: str,
        hosts: Sequence[str],
        port: int,
        *,
        marker: str,
        kinds: str = "tcp",
        rate: float = 250.0,
    ) -> None:
        more = ["--marker", marker, "--kinds", kinds, "--rate", str(rate)]
        super().__init__(lab, pod, "client.py", ",".join(hosts), str(port), *more)
        self.records: list[Record] = []

    def take(self, line: bytes) -> None:
        self.records += msgspec.json.decode(line, type=_LoadLine).records

    @property
    def traffic(self) -> Traffic:
        """Figures of everything so far."""
        return summarize(self.records)


class Counts(Struct, frozen=True, kw_only=True):
    """What passed the underlay since the capture began; see `capture`."""

    frames: int = 0
    clear_on_wire: int = 0
    wireguard_packets: int = 0
    self_test: int = 0
    self_test_ipv6: int = 0
    dropped: int = 0


class Capture(_Lines):
    """What the internet's bridge sees of `marker` and of WireGuard. `self_test` is a marker meant to be seen."""

    def __init__(self, lab: Lab, marker: str, self_test: str) -> None:
        super().__init__(lab, INTERNET, "capture.py", "--marker", marker, "--self-test", self_test)
        self.counts: Counts | None = None

    def take(self, line: bytes) -> None:
        self.counts = msgspec.json.decode(line, type=Counts)


async def run_for(load: Load, seconds: float) -> Traffic:
    """Let it run that long from its first answer on; its figures."""
    async with load.running():
        await until(lambda: bool(load.records), "a first answer")
        await asyncio.sleep(seconds)
    return load.traffic
