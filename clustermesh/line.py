"""One call at a time, each with a time limit, into something that may hang for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from clustermesh.errors import Unavailable

T = TypeVar("T")

LIMIT: Final = 10.0  # seconds that a call may take ...
PER_ENTRY: Final = 0.005  # ... and what each entry adds to that
_GRACE: Final = 0.01  # seconds to end after it was cancelled; then a call is left behind


class Line:
    """One call at a time into something that may hang."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self._left: asyncio.Task[Any] | None = None

    async def call(self, attempt: Coroutine[Any, Any, T], entries: int = 0) -> T:
        """What `attempt` returns or raises; Unavailable where it takes too long, or an earlier one still does."""
        if self._left is not None and not self._left.done():
            attempt.close()
            raise Unavailable("does not answer: the call before this one has not ended yet")
        limit = self._limit + PER_ENTRY * entries
        task = asyncio.ensure_future(attempt)
        task.add_done_callback(_look_at)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit)
        except BaseException:
            self._leave(task)
            raise
        if not done:
            self._leave(task)
            await asyncio.wait({task}, timeout=_GRACE)
            raise Unavailable(f"does not answer: no end of a call within {limit:g} s")
        return task.result()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self._left = task


def _look_at(ended: asyncio.Task[Any]) -> None:
    """Where the caller was cancelled, nobody else asks how it ended, and asyncio would complain."""
    if not ended.cancelled():
        ended.exception()
