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
from clustermesh.store.silence import Pulse, Silence, Step, Wait

Heard: TypeAlias = Callable[[Any], None]
Failed: TypeAlias = Callable[[grpc.StatusCode, str | None], Awaitable[ClusterMeshError]]


class Stream:
    """For one reader, who is the one writer too. To be closed.

    `heard` is shown the header of each response and may raise; `failed` makes the error for the call's last status.
    """

    def __init__(self, call: Any, pulse: Pulse, heard: Heard, failed: Failed) -> None:
        self._call, self._pulse, self._heard, self._failed = call, pulse, heard, failed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait: Wait | None = None  # for what is under way
        self._question: Any = None
        self._probes: set[asyncio.Task[None]] = set()
        self._silent = False

    async def write(self, request: Any, patience: float) -> None:
        """Send `request`. Unavailable where the transport takes it not within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):  # gRPC wakes nobody who writes on a call that never began
                await self._translated(self._call.write(request))
        except TimeoutError as e:
            self._silent = True
            self._call.cancel()
            raise await self._failure() from e

    async def read(self, silence: Silence, question: Any = None) -> Any:
        """The next response, for which `question` is sent when it does not come by itself. Unavailable where there is
        none for as long as `silence` is borne: for its `grace`, where nothing is to be asked."""
        now = self._loop.time()
        self._wait, self._question = Wait(self._pulse, silence, now, is_asked=question is None), question
        self._arm(self._wait.due)
        try:
            response = await self._translated(self._call.read())
        finally:
            self._wait = None
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

    async def _translated(self, operation: Awaitable[Any]) -> Any:
        try:
            return await operation
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
            raise await self._failure() from e
        except asyncio.CancelledError as e:
            if is_cancelled():
                raise
            raise await self._failure() from e

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Has the one wait that is under way taken too long?"""
        self._timer = None
        if self._wait is None:
            return
        match self._wait.step(self._loop.time()):
            case Step.GIVE_UP:
                self._silent = True
                self._call.cancel()
                return
            case Step.ASK:
                self._ask()
        self._arm(self._wait.due)

    def _ask(self) -> None:
        probe = self._loop.create_task(self._call.write(self._question))
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
