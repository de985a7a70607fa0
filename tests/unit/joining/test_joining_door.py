"""Newcomers' connections: so many at once, none that is silent for long, and nobody is kept out by who says nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from ports import free_port

from certs.issue import create_authority, issue
from certs.names import server
from clustermesh.errors import Unavailable
from clustermesh.joining import door
from clustermesh.joining.door import Door, find_dispensable, listen

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Bed:
    """A door; what is asked there is answered once `answering` is set."""

    task: asyncio.Task[None]
    door: Door

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked, self.answering = asyncio.Semaphore(0), asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        if request.path == "/large":
            raise web.HTTPRequestEntityTooLarge(1, 2)
        if request.path == "/none":
            return web.Response(text="go away", status=404)
        self.asked.release()
        await self.answering.wait()
        return web.Response(text="come in")

    async def come(self, *, shake: bool = True, source: str = "127.0.0.1") -> Streams:
        tls = ssl._create_unverified_context() if shake else None
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, local_addr=(source, 0))

    async def ask(self) -> Streams:
        streams = await self.come()
        streams[1].write(ASK)
        await self.asked.acquire()
        return streams


@asynccontextmanager
async def opened(folder: Path, most: int = door.MOST) -> AsyncIterator[Bed]:
    pair = issue(create_authority(datetime.now(UTC)), server(), datetime.now(UTC))
    (folder / "pair.pem").write_bytes(pair.key_pem + pair.certificate_pem)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / "pair.pem")
    (listener,) = await listen("127.0.0.1:0")
    bed = Bed(listener.getsockname()[1])
    bed.door = Door(bed.answer, 1 << 20, most)
    bed.task = asyncio.create_task(bed.door.open([listener], tls))
    try:
        yield bed
    finally:
        bed.answering.set()
        bed.task.cancel()
        await asyncio.gather(bed.task, return_exceptions=True)


async def ended(streams: Streams) -> bytes:
    """What comes until its end."""
    async with asyncio.timeout(30):
        try:
            return await streams[0].read()
        except ConnectionError:
            return b""
        finally:
            streams[1].close()


async def test_who_has_been_silent_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SILENCE", 600.0)
    async with opened(tmp_path, most=3) as bed:
        silent = [await bed.come(shake=False), await bed.come(), await bed.come(shake=False)]
        asking = await bed.ask()
        assert await ended(silent[0]) == b""
        another = await bed.ask()
        assert await ended(silent[1]) == b""
        bed.answering.set()
        for each in (asking, another):
            assert b"come in" in await ended(each), "one connection has one question"
        silent[2][1].write(b"x")  # it is there still
        silent[2][1].close()


async def test_who_holds_most_places_makes_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SILENCE", 600.0)
    async with opened(tmp_path, most=3) as bed:
        first = await bed.come()
        many = [await bed.come(shake=False, source="127.0.0.2") for _ in range(8)]
        for each in many[:6]:
            assert await ended(each) == b""
        first[1].write(ASK)
        async with asyncio.timeout(30):
            await bed.asked.acquire()
        bed.answering.set()
        assert b"come in" in await ended(first)
        for each in many[6:]:
            each[1].close()


async def test_who_is_answered_and_goes_on_holding_its_place_makes_room(tmp_path: Path) -> None:
    async with opened(tmp_path, most=2) as bed:
        holding = [await bed.come() for _ in range(2)]
        for reader, writer in holding:
            writer.write(b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert b"404" in await reader.readline()
        async with asyncio.timeout(30):
            asking = await bed.ask()
        bed.answering.set()
        assert b"come in" in await ended(asking)
        for _, writer in holding:
            writer.close()


async def test_an_answer_that_is_raised_is_the_last_of_its_connection_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as bed:
        streams = await bed.come()
        streams[1].write(ASK.replace(b"GET /", b"GET /large"))
        said = await ended(streams)
        assert b" 413 " in said.splitlines()[0]
        assert b"connection: close" in said.lower()


async def test_who_is_answered_before_it_has_said_all_may_say_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as bed:
        streams = await bed.come()
        streams[1].write(b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        said = await streams[0].readline()
        streams[1].write(bytes(100000))
        assert (b"404" in said, b"go away" in await ended(streams)) == (True, True)


async def test_who_asks_is_sent_away_by_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path, most=2) as bed:
        asking = [await bed.ask(), await bed.ask()]
        assert await ended(await bed.come(shake=False)) == b""
        bed.answering.set()
        assert [b"come in" in await ended(each) for each in asking] == [True, True]
        async with asyncio.timeout(30):
            while bed.door._visits:
                await asyncio.sleep(0.01)
        assert b"come in" in await ended(await bed.ask())


@pytest.mark.parametrize("shake", [False, True])
async def test_who_says_nothing_or_half_of_it_is_sent_away(
    shake: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "SILENCE", 0.5)
    async with opened(tmp_path) as bed:
        streams = await bed.come(shake=shake)
        streams[1].write(ASK[:-2] if shake else b"\x16\x03")
        assert await ended(streams) == b""


async def test_an_answer_that_nobody_reads_or_that_never_comes_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_LONGEST", 0.2)
    async with opened(tmp_path) as bed:
        assert await ended(await bed.ask()) == b""


async def test_what_is_asked_when_it_closes_is_answered(tmp_path: Path) -> None:
    async with opened(tmp_path) as bed:
        asking, silent = await bed.ask(), await bed.come(shake=False)
        bed.task.cancel()
        await asyncio.sleep(0)
        bed.answering.set()
        assert b"come in" in await ended(asking)
        assert await ended(silent) == b""
        with pytest.raises(ConnectionRefusedError):
            await bed.come(shake=False)


@pytest.mark.parametrize(("lacking", "left"), [(socket.AF_INET6, 1), (socket.AF_INET, 1), (None, 2)])
async def test_it_listens_by_what_families_of_addresses_there_are(
    lacking: socket.AddressFamily | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without(lacking, monkeypatch)
    found = await listen(f":{free_port()}")
    assert (len(found), lacking in {each.family for each in found}) == (left, False)
    for each in found:
        each.close()


async def test_without_any_family_of_an_address_it_cannot_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(socket.AF_INET, monkeypatch)
    with pytest.raises(Unavailable, match="Address family not supported"):
        await listen("127.0.0.1:0")


def _without(lacking: socket.AddressFamily | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.create_server

    def create(where: tuple[str, int], *, family: socket.AddressFamily) -> socket.socket:
        if family == lacking:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return made(where, family=family)

    monkeypatch.setattr(socket, "create_server", create)


@pytest.mark.parametrize(
    ("sources", "leaves"), [("abc", 0), ("abb", 1), ("abbaa", 0), ("bbaca", 0), ("caabb", 1), ("a", 0)]
)
def test_who_makes_room(sources: str, leaves: int) -> None:
    assert find_dispensable(dict(enumerate(sources))) == leaves


async def test_where_it_cannot_listen_is_said() -> None:
    (taken,) = await listen("127.0.0.1:0")
    port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: Address already in use"):
        await listen(f"127.0.0.1:{port}")
    taken.close()
