"""One call at a time into something that may hang; what nobody waits for any more is nobody's news."""

from __future__ import annotations

import asyncio
import gc

from clustermesh.errors import Unavailable
from clustermesh.line import Line


async def test_a_call_that_fails_while_its_caller_is_cancelled_leaves_no_trace() -> None:
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context["message"]))
    go = asyncio.Event()

    async def fails() -> None:
        await go.wait()
        raise Unavailable("gone")

    caller = asyncio.create_task(Line().call(fails()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go.set()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    del caller
    await asyncio.sleep(0)  # the loop has the call in its hands until then
    gc.collect()
    assert said == []
