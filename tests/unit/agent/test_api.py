"""The agent's socket: every line gets one answer, whatever the line."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import api
from clustermesh.errors import Refused, Unavailable


async def echo(params: dict[str, Any]) -> Any:
    return params


async def unavailable(_params: dict[str, Any]) -> Any:
    raise Unavailable("not now")


async def broken(_params: dict[str, Any]) -> Any:
    raise ZeroDivisionError


METHODS = {"echo": echo, "unavailable": unavailable, "broken": broken}


async def test_a_result_or_an_error_with_a_hint() -> None:
    assert await api.answer(b'{"method": "echo", "params": {"a": 1}}\n', METHODS) == {"result": {"a": 1}}
    assert await api.answer(b'{"method": "unavailable"}\n', METHODS) == {
        "error": {"message": "not now", "hint": "try again in a moment"}
    }
    assert "methods: broken, echo, unavailable" in str(await api.answer(b'{"method": "nope"}\n', METHODS))
    assert "failed inside the agent" in str(await api.answer(b'{"method": "broken"}\n', METHODS))


@given(st.binary())
async def test_any_bytes_get_an_answer(line: bytes) -> None:
    reply = await api.answer(line, METHODS)
    assert set(reply) in ({"result"}, {"error"})
    json.dumps(reply)


@pytest.fixture
async def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    path = tmp_path / "run" / "agent.sock"
    task = asyncio.create_task(api.serve(path, METHODS))
    while not path.exists():
        await asyncio.sleep(0.01)
    yield path
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def asking(
    path: Path, methods: dict[str, Any], method: str, limit: int = 1 << 26
) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has asked for `method`, and the server for it."""
    serving = asyncio.create_task(api.serve(path, methods))
    while not path.exists():
        await asyncio.sleep(0.001)
    reader, writer = await asyncio.open_unix_connection(path, limit=limit)
    writer.write(json.dumps({"method": method}).encode() + b"\n")
    try:
        yield reader
    finally:
        writer.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
async def test_rows_come_as_one_list_whatever_steps_they_take(tmp_path: Path, count: int) -> None:
    steps = (row for number in range(count) for row in (None, {"n": number}))
    async with asking(tmp_path / "agent.sock", {"rows": lambda _: steps}, "rows") as client:
        assert json.loads(await client.readline()) == {"result": [{"n": number} for number in range(count)]}


async def test_while_rows_are_told_others_have_their_turn(tmp_path: Path) -> None:
    turns, seen = 0, Counter[int]()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def rows() -> Iterator[dict[str, int]]:
        for number in range(20_000):
            seen[turns] += 1
            yield {"n": number}

    other = asyncio.create_task(take_turns())
    async with asking(tmp_path / "agent.sock", {"rows": lambda _: rows()}, "rows") as client:
        assert len(json.loads(await client.readline())["result"]) == 20_000
    other.cancel()
    assert max(seen.values()) <= api.PAGE


async def test_rows_are_made_no_faster_than_they_are_read(tmp_path: Path) -> None:
    made = 0

    def rows() -> Iterator[str]:
        nonlocal made
        for made in range(100_000):  # noqa: B007
            yield "x" * 1000

    async with asking(tmp_path / "agent.sock", {"rows": lambda _: rows()}, "rows", limit=1 << 16):
        before, idle = -1, 0
        while idle < 1000:
            idle = idle + 1 if made == before else 0
            before = made
            await asyncio.sleep(0)
        assert 0 < made < 10_000


async def test_rows_that_break_off_are_no_whole_answer(tmp_path: Path) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise ValueError

    async with asking(tmp_path / "agent.sock", {"rows": lambda _: rows()}, "rows") as client:
        assert not (await asyncio.wait_for(client.read(), 60)).endswith(b"\n")


async def test_many_requests_on_one_connection(served: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(served)
    for number in range(3):
        writer.write(json.dumps({"method": "echo", "params": {"n": number}}).encode() + b"\n")
        assert json.loads(await reader.readline()) == {"result": {"n": number}}
    writer.close()
    assert served.stat().st_mode & 0o777 == 0o600


async def test_a_second_agent_is_refused_and_a_dead_ones_socket_is_taken_over(served: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="another agent answers"):
        await api.serve(served, METHODS)
    import socket

    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    task = asyncio.create_task(api.serve(stale, METHODS))
    for _ in range(2000):
        try:
            _, writer = await asyncio.open_unix_connection(stale)
            break
        except OSError:
            await asyncio.sleep(0.01)
    writer.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_line_too_long_ends_the_connection_and_not_the_server(served: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(served)
    writer.write(b"x" * (2 << 20))
    with contextlib.suppress(ConnectionError):  # whichever the kernel says first: closed, or reset
        assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
    reader, writer = await asyncio.open_unix_connection(served)
    writer.write(b'{"method": "echo"}\n')
    assert json.loads(await reader.readline()) == {"result": {}}
    writer.close()


async def test_lines_without_end_come_as_they_are_made_and_end_with_who_reads_them(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            for number in itertools.count():
                yield b"%d\n" % number
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with asking(tmp_path / "agent.sock", {"lines": lambda _: lines()}, "lines") as client:
        assert [await client.readline() for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]
        assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 60)
