"""A server that asks for patience: a command waits and asks again, who has rounds of its own hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clustermesh.kube.access import Access, Grant
from clustermesh.kube.client import KubeClient, Patience, Request
from clustermesh.kube.faults import Busy

_BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def access(server: str) -> Access:
    async def read() -> Grant:
        return Grant(server=server)

    return Access(read)


@asynccontextmanager
async def server(busy: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """One that asks for patience so many times; what it was asked."""
    asked = list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(e[15:]) for e in head.split(b"\r\n") if e.startswith(b"Content-Length:")), 0)
                await reader.readexactly(length)
                asked.append(head.split(b" ")[0])
                writer.write(_BUSY if len(asked) <= busy else _OK)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as made:
        yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}", asked


WRITE = Request(path="/things/a", what="patch things/a", method="PATCH", body=b"{}")


@pytest.mark.parametrize("busy", [0, 1, 3])
async def test_who_waits_is_answered(busy: int) -> None:
    async with server(busy) as (at, asked), KubeClient(access(at), Patience(waits=3, longest=0.01)) as client:
        assert await client.get("/things", "list things", {}) == b"{}"
        assert asked == [b"GET"] * (busy + 1)
        asked.clear()
        assert await client.send(WRITE) == b"{}"
        assert asked == [b"PATCH"] * (busy + 1)


@pytest.mark.parametrize("waits", [0, 2])
async def test_patience_ends(waits: int) -> None:
    async with server(99) as (at, asked), KubeClient(access(at), Patience(waits=waits, longest=0.01)) as client:
        with pytest.raises(Busy, match="429"):
            await client.get("/things", "list things", {})
        assert len(asked) == waits + 1
