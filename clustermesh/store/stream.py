"""One bidirectional call on a connection to etcd, in which silence is an error.

Waiting is watched by one timer for the whole call: a task and a timer for every single response would cost as much as
the response itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from clustermesh.errors import ClusterMeshError
from clustermesh.store.channel import Call, Failed, Outcome
from clustermesh.store.methods import Method, decode
from clustermesh.store.silence import Pulse, Silence, Step, Wait
from clustermesh.store.status import Code

Heard: TypeAlias = Callable[[Any], None]
Translate: TypeAlias = Callable[[Outcome], ClusterMeshError]


class Stream:
    """For one reader, who is the one writer too. To be closed.

    `heard` is shown the header of each response and may raise; `translate` makes the error for the call's end.
    """

    def __init__(self, method: Method, call: Call, pulse: Pulse, heard: Heard, translate: Translate) -> None:
        self._method, self._call, self._pulse = method, call, pulse
        self._heard, self._translate = heard, translate
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wait: Wait | None = None  # for what is under way
        self._question: Any = None

    async def write(self, request: Any, patience: float) -> None:
        """Send `request`. Unavailable where the server takes it not within `patience` seconds."""
        self._call.send(request.SerializeToString())
        try:
            async with asyncio.timeout(patience):
                await self._call.sent()
        except TimeoutError as e:
            self._give_up()
            raise self._translate(Outcome(Code.DEADLINE_EXCEEDED, "silence")) from e

    async def read(self, silence: Silence, question: Any = None) -> Any:
        """The next response, for which `question` is sent when it does not come by itself. Unavailable where there is
        none for as long as `silence` is borne: for its `grace`, where nothing is to be asked."""
        now = self._loop.time()
        self._wait, self._question = Wait(self._pulse, silence, now, is_asked=question is None), question
        self._arm(self._wait.due)
        try:
            response = decode(self._method, await self._call.read())
        except Failed as e:
            raise self._translate(e.outcome) from e
        finally:
            self._wait = None
        self._heard(response.header)
        return response

    def close(self) -> None:
        """End the call."""
        if self._timer is not None:
            self._timer.cancel()
        self._call.cancel()

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
                self._give_up()
                return
            case Step.ASK:
                self._call.send(self._question.SerializeToString())
        self._arm(self._wait.due)

    def _give_up(self) -> None:
        self._call.cancel(Code.DEADLINE_EXCEEDED, "silence")
