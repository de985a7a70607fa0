"""A server in the API's place that hangs, cuts, lies or floods: nothing known goes, and the truth comes after it."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import pytest
from kube_mirror import Mirror, labelled, mirrored
from msgspec.structs import replace

from clustermesh.errors import DecodeError
from clustermesh.kube.access import Access, Grant
from clustermesh.kube.client import Patience

Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]
_HASTY: Final = Patience(connect=5.0, read=0.2, whole=0.4, quiet=0.2, most_bytes=1 << 20)
_PLAIN: Final = labelled("things")
_OK: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def _decode(data: msgspec.Raw) -> Any:
    try:
        return _PLAIN.decode(data)
    except msgspec.DecodeError as e:
        raise DecodeError("thing", "?", str(e)) from e


THINGS: Final = replace(_PLAIN, decode=_decode)


class HostileApi:
    """Serves `things` well, but for the requests that `fault` answers; `met` counts those."""

    def __init__(self) -> None:
        self.labels: dict[str, dict[str, str]] = {}
        self.fault: Fault | None = None
        self.of_lists, self.met, self._version = False, 0, 1
        self._log: list[bytes] = []
        self._moved, self._writers = asyncio.Event(), set[asyncio.StreamWriter]()

    @property
    def truth(self) -> dict[tuple[str, str], dict[str, str]]:
        return {("n", name): labels for name, labels in self.labels.items()}

    def put(self, name: str, **labels: str) -> None:
        self._tell("MODIFIED" if name in self.labels else "ADDED", name, labels)
        self.labels[name] = labels

    def remove(self, name: str) -> None:
        self._tell("DELETED", name, self.labels.pop(name))

    def _tell(self, kind: str, name: str, labels: dict[str, str]) -> None:
        self._version += 1
        self._log.append(json.dumps({"type": kind, "object": self._object(name, labels)}).encode() + b"\n")
        self._moved.set()

    def _object(self, name: str, labels: dict[str, str]) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": "n", "labels": labels, "resourceVersion": str(self._version)}}

    def break_with(self, fault: Fault | None, of_lists: bool = False) -> None:
        """From now on, and for whoever is connected."""
        self.fault, self.of_lists, self.met = fault, of_lists, 0
        for writer in self._writers:
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                await self._serve(b"watch=1" in head, head, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, watch: bool, head: bytes, writer: asyncio.StreamWriter) -> None:
        if self.fault is not None and watch and self.of_lists:
            writer.write(b"HTTP/1.1 410 Gone\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        elif self.fault is not None and watch is not self.of_lists:
            self.met += 1
            await self.fault(writer)
        elif watch:
            await self._watch(int(head.partition(b"resourceVersion=")[2].split(b"&")[0].split()[0]), writer)
        else:
            items = [self._object(name, labels) for name, labels in self.labels.items()]
            body = json.dumps({"metadata": {"resourceVersion": str(self._version)}, "items": items}).encode()
            writer.write(_OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def _watch(self, after: int, writer: asyncio.StreamWriter) -> None:
        writer.write(_OK + b"\r\n")
        sent = after - 1
        while not writer.is_closing():
            self._moved.clear()
            writer.write(b"".join(self._log[sent:]))
            sent = len(self._log)
            await self._moved.wait()


def says(body: object, head: bytes = _OK) -> Fault:
    async def fault(writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n"
        writer.write(head + b"\r\n" + data)
        await writer.drain()

    return fault


async def hangs(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.01)


async def trickles(writer: asyncio.StreamWriter) -> None:
    writer.write(_OK + b"\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await asyncio.sleep(0.02)


async def floods(writer: asyncio.StreamWriter) -> None:
    writer.write(_OK + b"\r\n")
    while not writer.is_closing():
        writer.write(b"x" * 65536)
        await writer.drain()


_ANYWHERE: dict[str, Fault] = {
    "hangs": hangs,
    "cuts at once": says(b"", head=b""),
    "cuts in the head": says(b"", head=b"HTTP/1.1 200"),
    "speaks something else": says(b"", head=b"SSH-2.0-OpenSSH_9.2\r\n"),
    "cuts in the middle": says(b'{"metadata": {"resource', head=_OK + b"Content-Length: 4000\r\n"),
    "garbage": says(b"\xff\x00{[" * 100 + b"\n"),
    "no object": says([1, 2]),
    "deep": says(b"[" * 100_000 + b"\n"),
    "no end": floods,
    "a packed answer nobody asked for": says(
        zlib.compress(b'{"items": []}' + b" " * (8 << 20), wbits=31), head=_OK + b"Content-Encoding: gzip\r\n"
    ),
    "an error in a packed answer": says(
        zlib.compress(b" " * (8 << 20), wbits=31),
        head=b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Encoding: gzip\r\n",
    ),
    "endless head": says(b"", head=_OK + b"X: " + b"y" * 100_000 + b"\r\n"),
    "a page of HTML": says(b"<html>", head=b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n"),
    "another place": says(b"", head=b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nConnection: close\r\n"),
}
_LISTS: dict[str, Fault] = {
    "no list": says({"metadata": 5, "items": {}}),
    "nameless objects": says({"metadata": {"resourceVersion": "9"}, "items": [5, "x", None, [], {}]}),
    "no version": says({"metadata": {}, "items": []}),
    "the same page again": says({"metadata": {"resourceVersion": "9", "continue": "x"}, "items": []}),
    "drop by drop": trickles,
}
_WATCHES: dict[str, Fault] = {
    "no event": says({"type": 5, "object": None}),
    "an event of nothing": says({"type": "ADDED", "object": 5}),
    "an object of other kinds": says({"type": "MODIFIED", "object": {"metadata": {"name": 5, "labels": "x"}}}),
    "an error of nothing": says({"type": "ERROR", "object": []}),
}
_FAULTS = [(name, fault, of_lists) for of_lists in (False, True) for name, fault in _ANYWHERE.items()]
_FAULTS += [(name, fault, True) for name, fault in _LISTS.items()]
_FAULTS += [(name, fault, False) for name, fault in _WATCHES.items()]


@asynccontextmanager
async def followed(api: HostileApi) -> AsyncIterator[Mirror]:
    async with await asyncio.start_server(api.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def grant() -> Grant:
            return Grant(server=f"http://127.0.0.1:{port}")

        async with mirrored(Access(grant), THINGS, patience=_HASTY) as mirror:
            yield mirror
            api.break_with(None)


@pytest.mark.parametrize(
    ("fault", "of_lists"), [pytest.param(f, o, id=f"{n}, {'list' if o else 'watch'}") for n, f, o in _FAULTS]
)
async def test_nothing_known_goes_and_the_truth_comes_after_it(fault: Fault, of_lists: bool) -> None:
    api = HostileApi()
    api.put("always", a="1")
    api.put("goes", a="1")
    async with followed(api) as mirror:
        known = dict(mirror.state)
        api.break_with(fault, of_lists)
        async with asyncio.timeout(60):
            while api.met < 2 or not mirror.interruptions():
                await asyncio.sleep(0.01)
        assert mirror.state == known
        api.remove("goes")
        api.put("comes", b="2")
        api.break_with(None)
        await mirror.until(lambda: mirror.state == api.truth)
        assert all(item.changes.get(("n", "always"), 1) for item in mirror.told if hasattr(item, "changes"))
