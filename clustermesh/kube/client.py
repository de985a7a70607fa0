"""HTTP towards one API server. aiohttp's errors, and what TLS says, become ours here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp
from msgspec import Struct

from clustermesh.errors import Refused, Unavailable
from clustermesh.kube.access import Access, Grant
from clustermesh.kube.faults import Busy, Oversized, fault, read_status
from clustermesh.pace import Load, Pace

READS: Final = Load(at_once=16, per_second=500)
"""Requests, but for watches: of those there is one for each kind."""
_PIECE: Final = 1 << 18
_MAX_ERROR: Final = 1 << 16
_EXEC: Final = "v4.channel.k8s.io"
_STDOUT, _STDERR, _END = 1, 2, 3
"""Channels: the first byte of each message."""
_DONE: Final = (HTTPStatus.OK, HTTPStatus.CREATED)


class Patience(Struct, frozen=True, kw_only=True):
    """Seconds to connect, for the next piece of an answer, for all of one that has an end, and of silence before a
    watch is doubted.

    `most_bytes` is how much of one answer is held; `waits` how often what has an end is asked again where the server
    asks for patience, for `longest` seconds at most each time.
    """

    connect: float = 5.0
    read: float = 20.0
    whole: float = 300.0
    quiet: float = 30.0
    most_bytes: int = 64 << 20
    waits: int = 0
    longest: float = 30.0


class Request(Struct, frozen=True, kw_only=True):
    """One request; `what` is what is tried, as "list pods". `kind` is the type of `body`."""

    path: str
    what: str
    params: Mapping[str, str] = {}
    method: str = "GET"
    body: bytes | None = None
    kind: str = "application/json"


class _Answer(aiohttp.ClientResponse):
    """One that is not read to its end, or never began, ends its connection: nobody who has stopped reading waits
    for the other side's goodbye, least of all for that of one who is silent.
    """

    def close(self) -> None:
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()
        super().close()


class KubeClient:
    """`async with` it. One pool of connections for every kind."""

    def __init__(self, access: Access, patience: Patience | None = None, load: Load = READS) -> None:
        self.patience, self._pace = patience or Patience(), Pace(load)
        self._access = access
        self._shown: dict[str, Grant] = {}  # by path: two that are refused at once ask once

    async def __aenter__(self) -> Self:
        # Compressed answers cost both sides more CPU than a local network's bytes; one that comes all the same may be
        # of any size once unpacked, so nobody unpacks it.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "clustermesh"}
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(None, sock_connect=self.patience.connect),
            headers=headers,
            read_bufsize=_PIECE,
            connector=aiohttp.TCPConnector(limit=0),
            response_class=_Answer,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str, what: str, params: Mapping[str, str], *, fresh: bool = False) -> bytes:
        """The whole answer; `what` is what was tried, as "list pods". Raises ClusterMeshError."""
        return await self._whole(Request(path=path, what=what, params=params), fresh)

    async def send(self, request: Request) -> bytes:
        """The whole answer to a write, which is tried once: whether one that failed was heard, nobody knows. One that
        the server asks patience for was not."""
        return await self._whole(request, fresh=False)

    async def _whole(self, request: Request, fresh: bool) -> bytes:
        for _ in range(self.patience.waits):
            try:
                return await self._once(request, fresh)
            except Busy as e:
                await asyncio.sleep(min(e.seconds or 1.0, self.patience.longest))
        return await self._once(request, fresh)

    async def _once(self, request: Request, fresh: bool) -> bytes:
        pieces, size = [], 0
        async with self._pace, self._answer(request, fresh) as answer, asyncio.timeout(self.patience.whole):
            while piece := await _next(answer, self.patience.read):
                size += len(piece)
                if size > self.patience.most_bytes:
                    raise Oversized(f"{request.what}: the answer is larger than {self.patience.most_bytes >> 20} MiB")
                pieces.append(piece)
        return b"".join(pieces)

    async def execute(self, path: str, what: str, container: str, argv: Sequence[str], most_bytes: int) -> bytes:
        """What a program prints that is run in a container of the pod whose `exec` is at `path`.

        Raises ClusterMeshError; Unavailable where it fails and prints nothing.
        """
        grant = await self._access.grant(None)
        headers = [("Accept", "*/*"), *grant.headers]  # no JSON comes
        asked = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", e) for e in argv)]
        said: dict[int, bytearray] = {_STDOUT: bytearray(), _STDERR: bytearray(), _END: bytearray()}
        try:
            async with (
                self._pace,
                self._session.ws_connect(
                    grant.server + path,
                    params=asked,
                    protocols=(_EXEC,),
                    headers=headers,
                    ssl=True if grant.tls is None else grant.tls,
                    server_hostname=grant.server_name or None,
                    proxy=grant.proxy or None,
                    max_msg_size=most_bytes,
                ) as channel,
            ):
                async for message in channel:
                    if message.type is aiohttp.WSMsgType.BINARY and message.data:
                        said.setdefault(message.data[0], bytearray()).extend(message.data[1:])
                    if sum(map(len, said.values())) > most_bytes:
                        break
        except aiohttp.WSServerHandshakeError as e:
            raise Unavailable(f"{what}: {e.status} {e.message}") from e
        except (aiohttp.ClientError, OSError) as e:
            raise Unavailable(f"{what}: {str(e) or type(e).__name__}") from e
        if not said[_STDOUT]:
            words = (said[_STDERR] or said[_END]).decode(errors="replace")
            raise Unavailable(f"{what}: {words.strip()[-500:] or 'it prints nothing'}")
        return bytes(said[_STDOUT])

    @asynccontextmanager
    async def watch(
        self, path: str, what: str, params: Mapping[str, str], *, fresh: bool = False
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Once the server has taken the request: its answer piece by piece, b"" for each `quiet` seconds of none."""
        async with self._answer(Request(path=path, what=what, params=params), fresh) as answer:
            yield _pieces(answer, self.patience.quiet)

    @asynccontextmanager
    async def _answer(self, request: Request, fresh: bool) -> AsyncIterator[aiohttp.ClientResponse]:
        path, what = request.path, request.what
        grant = await self._access.grant(self._shown.get(path) if fresh else None)
        self._shown[path] = grant
        try:
            async with asyncio.timeout(self.patience.read):
                answer = await self._ask(grant, request)
            with closing(answer):
                encoding = answer.headers.get("Content-Encoding", "identity")
                if answer.status not in _DONE:
                    async with asyncio.timeout(self.patience.read):
                        body = await answer.content.read(_MAX_ERROR) if encoding == "identity" else b""
                    raise fault(answer.status, read_status(body), what, answer.headers.get("Retry-After", ""))
                if encoding != "identity":
                    rule = "must be identity, as was asked for"
                    raise Unavailable(f"{what}: Content-Encoding of the answer: {encoding[:40]!r}: {rule}")
                yield answer
        except aiohttp.ClientConnectorCertificateError as e:
            raise Refused(f"{what}: the API server's certificate is not accepted: {_verdict(e)}") from e
        except TimeoutError as e:
            raise Unavailable(f"{what}: the API server gave no answer in time") from e
        except aiohttp.ClientConnectorError as e:
            raise Unavailable(f"{what}: cannot connect to {e.host}:{e.port}: {e.strerror or e.os_error}") from e
        except aiohttp.ClientResponseError as e:  # its text has the URL, which may be a proxy's, with a password
            raise Unavailable(f"{what}: {e.status} {e.message}") from e
        except (aiohttp.ClientError, OSError) as e:
            raise Unavailable(f"{what}: {str(e) or type(e).__name__}") from e

    async def _ask(self, grant: Grant, request: Request) -> aiohttp.ClientResponse:
        kind = [] if request.body is None else [("Content-Type", request.kind)]
        return await self._session.request(
            request.method,
            grant.server + request.path,
            params=request.params,
            data=request.body,
            headers=[*grant.headers, *kind],
            ssl=True if grant.tls is None else grant.tls,
            server_hostname=grant.server_name or None,
            proxy=grant.proxy or None,
            allow_redirects=False,
        )


async def _next(answer: aiohttp.ClientResponse, seconds: float) -> bytes:
    async with asyncio.timeout(seconds):
        return await answer.content.readany()


async def _pieces(answer: aiohttp.ClientResponse, quiet: float) -> AsyncIterator[bytes]:
    while True:
        try:
            piece = await _next(answer, quiet)
        except TimeoutError:
            yield b""
            continue
        if not piece:
            return
        yield piece


def _verdict(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    return getattr(cause, "verify_message", "") or str(cause)
