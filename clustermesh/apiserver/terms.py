"""One process, one term of office after the other: who was deposed begins again with nothing in mind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from clustermesh.store.election import Election
from clustermesh.wire.timestamp import format_time


class Candidate(Protocol):
    """Stands in an election, and does the work of whoever leads while it does."""

    election: Election

    def tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Everything that has to run, the election too."""


C = TypeVar("C", bound=Candidate)


async def serve_terms(
    make: Callable[[], C], showing: Callable[[Callable[[], C]], AbstractContextManager[object]]
) -> None:
    """Run what `make` makes until SIGTERM or SIGINT, or until cancelled. `showing` is told how to ask for the one that
    runs; what it returns is entered meanwhile."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    current = make()

    def who() -> C:
        return current

    try:
        with showing(who):
            while not stop.is_set():
                await _run_until(stop, current.election.deposed, current.tasks())
                gc.unfreeze()  # what held the term together is garbage now
                current = make()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _run_until(stop: asyncio.Event, deposed: asyncio.Event, work: Sequence[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in work]
        ends = [asyncio.create_task(event.wait()) for event in (stop, deposed)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in [*tasks, *ends]:
                task.cancel()


def own_name() -> str:
    """What others call this process."""
    return f"{socket.gethostname()} (process {os.getpid()})"


def time_text() -> bytes:
    """Now, as heartbeats and canaries have it."""
    return format_time(int(time.time())).encode()
