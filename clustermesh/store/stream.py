"""One bidirectional call on a connection to etcd, in which silence is an error.

Waiting is watched by one timer for the whole call: a task and a timer for every single response would cost as much as
the response itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from clustermesh.errors import ClusterMeshError

Heard: TypeAlias = Callable[[Any], None]
Failed: TypeAlias = Callable[[grpc.StatusCode, str | None], Awaitable[ClusterMeshError]]


class Stream:
    """For one reader, who is the one writer too. To be closed.

    `heard` is shown the header of each response and may raise; `failed` makes the error for the call's last status.
    """

    def __init__(self, call: Any, heard: Heard, failed: Failed) -> None:
        self._call, self._heard, self._failed = call, heard, failed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        self._patience = self._grace = 0.0
        self._probe: Any = None
        self._probes: set[asyncio.Task[None]] = set()
        self._silent = False

    async def write(self, request: Any, patience: float) -> None:
        """Send `request`. Unavailable where the transport takes it not within `patience` seconds."""
        self._patience, self._probe = patience, None
        try:
            async with asyncio.timeout(patience):  # gRPC wakes nobody who writes on a call that never began
                await self._watched(self._call.write(request))
        except TimeoutError as e:
            self._silent = True
            self._call.cancel()
            raise await self._failure() from e

    async def read(self, patience: float, probe: Any = None, grace: float = 0.0) -> Any:
        """The next response.

        After `patience` seconds of silence `probe` is sent, if any; Unavailable after `grace` more.
        """
        self._patience, self._probe, self._grace = patience, probe, grace
        response = await self._watched(self._call.read())
        if response is grpc.aio.EOF:
            raise await self._failure()
        self._heard(response.header)
        return response

    async def close(self) -> None:
        """End the call, and the probe still on its way out."""
        if self._timer is not None:
            self._timer.cancel()
        self._call.cancel()
        for probe in self._probes:
            probe.cancel()
        if self._probes:
            await asyncio.wait(self._probes)

    async def _watched(self, operation: Awaitable[Any]) -> Any:
        self._waiting_since = self._loop.time()
        self._arm(self._waiting_since + self._patience)
        try:
            return await operation
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
            raise await self._failure() from e
        except asyncio.CancelledError as e:
            if is_cancelled():
                raise
            raise await self._failure() from e
        finally:
            self._waiting_since = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Has the one wait that is under way taken too long?"""
        self._timer = None
        if self._waiting_since is None:
            return
        now, due = self._loop.time(), self._waiting_since + self._patience
        if now >= due and self._probe is None:
            self._silent = True
            self._call.cancel()
            return
        if now >= due:
            self._send_probe()
            due = now + self._grace
            self._patience = due - self._waiting_since
        self._arm(due)

    def _send_probe(self) -> None:
        probe = self._loop.create_task(self._call.write(self._probe))
        self._probe = None
        self._probes.add(probe)
        probe.add_done_callback(self._settle)

    def _settle(self, probe: asyncio.Task[None]) -> None:
        self._probes.discard(probe)
        if not probe.cancelled():
            probe.exception()  # looked at, so that asyncio does not complain: the reader learns of it by himself

    async def _failure(self) -> ClusterMeshError:
        if self._silent:
            return await self._failed(grpc.StatusCode.DEADLINE_EXCEEDED, "silence")
        return await self._failed(await self._call.code(), await self._call.details())


def is_cancelled() -> bool:
    """Whether the running task is. gRPC reports a call cancelled by us, or closed under us, in the same way."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
