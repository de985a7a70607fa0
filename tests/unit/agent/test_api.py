"""The agent's socket: every line gets one answer, whatever the line."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
