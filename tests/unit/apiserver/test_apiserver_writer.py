"""When the writer writes: one change at once, many of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from test_apiserver_ledger import Rig, rig, value_key

from clustermesh.apiserver.publish import Updates
from clustermesh.wire import keys
from clustermesh.wire.kinds import LOCAL_SERVICES, SERVICES


class _StoppedClock(asyncio.SelectorEventLoop):
    now = 0.0

    def time(self) -> float:
        return self.now


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_StoppedClock) as runner:
        runner.run(work)


async def _pass(seconds: float = 0.0) -> None:
    """So much time, and as many turns of the event loop as anybody may need in it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _StoppedClock)
    loop.now += seconds
    for _ in range(100):
        await asyncio.sleep(0)


def _ask(made: Rig, name: str) -> None:
    made.want(name, b"1")
    made.writer.wake()


def _written(made: Rig) -> list[set[str]]:
    """The services in each transaction that has any."""
    names = {value_key(name): name for name in "abcd"}
    return [found for keys in made.etcd.log if (found := {names[key] for key in keys if key in names})]


async def _gather() -> None:
    made = await rig()
    writing = asyncio.create_task(made.writer.run())
    await _pass()  # its first, of nothing
    await _pass(60)
    _ask(made, "a")
    await _pass()
    assert _written(made) == [{"a"}]
    for name in "bc":
        _ask(made, name)
        await _pass(0.001)
    assert _written(made) == [{"a"}]
    await _pass(1)
    assert _written(made) == [{"a"}, {"b", "c"}]
    await _pass(60)
    made.tell(1000)
    made.writer.wake()  # the echo
    await _pass()
    _ask(made, "d")
    await _pass()
    assert _written(made)[-1] == {"d"}
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing


async def _tell_own_agents_first() -> None:
    made = await rig()
    own, told = keys.local_service_key("shop", "a"), value_key("a")

    async def write(shared: bytes | None, more: bytes | None) -> list[list[bytes]]:
        updates = Updates()
        updates.add(SERVICES, told, shared)
        updates.add(LOCAL_SERVICES, own, more)
        begin = len(made.etcd.log)
        made.ledger.want(updates)
        await made.settle()
        found = ([key for key in written if key in (own, told)] for written in made.etcd.log[begin:])
        return [each for each in found if each]

    assert await write(b"two backends", None) == [[told]]
    assert await write(b"one", b"one drains") == [[own], [told]]
    assert await write(b"two backends", None) == [[told], [own]]
    assert await write(None, b"not shared") == [[own], [told]]


def test_own_agents_are_told_of_a_backend_that_drains_before_all_are_told_that_it_is_gone() -> None:
    asyncio.run(_tell_own_agents_first())


def test_a_change_alone_is_written_at_once_and_what_comes_right_after_it_goes_together() -> None:
    _run(_gather())
