"""Where newcomers knock: connections over TLS, so many at once, and none that says nothing for long.

Whoever is there has `SILENCE` seconds to shake hands, and as long again to say what it asks; it has one question. Where
there is no room, one of those makes it who ask nothing, or have been answered: of the source that holds most places so,
who does so longest. Nobody is kept out by those who only hold a place.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

from aiohttp import web
from msgspec import Struct

from clustermesh.address import Address, is_ipv4, masked, parse
from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.listen import parse_address

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
MOST: Final = 256
SILENCE: Final = 5.0
_LONGEST: Final = 90.0
"""Seconds from a question to the last byte of its answer."""
_LINGER: Final = 1.0
"""Seconds in which who is answered may say the rest of its question: a connection that is closed before is reset, and
its answer perhaps lost."""
_GOODBYE: Final = 20.0
"""Seconds for what is being answered when nobody is let in any more."""
_PER_SECOND, _BURST = 0.5, 10
TOO_MANY: Final = "too many try to join: try again in a minute"
_MOST_SOURCES: Final = 4096
_CUSTOMER, _SITE = 56, 48
"""Bits of an IPv6 address: what who asks too often has alone, and what is one where places are counted."""


class Rate:
    """So many at once, and so many a second after that: a token bucket."""

    def __init__(self, per_second: float = _PER_SECOND, burst: int = _BURST) -> None:
        self._per_second, self._burst, self._level, self._at = per_second, burst, float(burst), 0.0

    def admits(self, now: float) -> bool:
        """Whether one more is admitted at `now`, which never goes back."""
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


class Rates:
    """A `Rate` for each source of questions: an IPv4 address, or the /56 of an IPv6 one."""

    def __init__(self) -> None:
        self._rates = dict[str | Address, Rate]()

    def admits(self, source: str, now: float) -> bool:
        key = _source(source, _CUSTOMER)
        rate = self._rates.pop(key, None) or Rate()
        self._rates[key] = rate  # last in order: the first is who has not asked for longest
        if len(self._rates) > _MOST_SOURCES:
            del self._rates[next(iter(self._rates))]
        return rate.admits(now)


def _source(text: str, bits: int) -> str | Address:
    try:
        address = parse(text)
    except ClusterMeshError:
        return text
    return address if is_ipv4(address) else masked(address, bits)


def find_dispensable(places: Mapping[T, str | Address]) -> T:
    """Who makes room: of the source that has most of the `places`, which are in the order in which they were taken,
    who has its own longest."""
    taken = Counter(places.values())
    most = max(taken.values())
    return next(place for place, source in places.items() if taken[source] == most)


class NotHeard(ClusterMeshError):
    """A question that has not come whole: `status` says why, as HTTP does."""

    def __init__(self, status: int, says: str) -> None:
        self.status = status
        super().__init__(says)


class Hearing:
    """Questions that are held in memory, `most` at once, each for `seconds` until it has come. Where there is no room,
    one makes it that has not come yet: who says half of it keeps nobody out."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._coming, self._whole = dict[asyncio.Timeout, str | Address](), 0

    @asynccontextmanager
    async def hear(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The question, for as long as it is being answered. Raises NotHeard."""
        if len(self._coming) + self._whole >= self._most:
            self._make_room()
        data = await self._come(request)
        self._whole += 1
        try:
            yield data
        finally:
            self._whole -= 1

    def _make_room(self) -> None:
        if not self._coming:
            raise NotHeard(429, TOO_MANY)
        limit = find_dispensable(self._coming)
        del self._coming[limit]
        if not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time())

    async def _come(self, request: web.BaseRequest) -> bytes:
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                self._coming[limit] = _source(request.remote or "", _SITE)
                return await request.read()
        except web.HTTPRequestEntityTooLarge as e:
            raise NotHeard(413, "what was asked is too much") from e
        except (TimeoutError, OSError, web.RequestPayloadError) as e:  # too slow, or gone
            if limit in self._coming:
                raise NotHeard(408, "what was asked did not come in time: try again") from e
            raise NotHeard(429, TOO_MANY) from e
        finally:
            self._coming.pop(limit, None)


async def listen(address: str) -> list[socket.socket]:
    """At HOST:PORT, by the families of addresses that the kernel has. Raises Unavailable."""
    host, port = parse_address(address)
    loop, stream = asyncio.get_running_loop(), socket.SOCK_STREAM
    made, lacking = list[socket.socket](), list[OSError]()
    try:
        found = await loop.getaddrinfo(host or None, port, type=stream, flags=socket.AI_PASSIVE)
        for family, *_, where in found:
            try:
                made.append(socket.create_server(where[:2], family=family))
            except OSError as e:
                if e.errno != errno.EAFNOSUPPORT:
                    raise
                lacking.append(e)
        if not made:
            raise lacking[0]
    except OSError as e:
        for each in made:
            each.close()
        raise Unavailable(f"{address}: {e.strerror or e}") from e
    return made


class _Visit(Struct, eq=False):
    """One connection. It is `over` once its TLS is closed."""

    source: str | Address
    task: asyncio.Task[None]
    over: asyncio.Event
    limit: asyncio.Timeout | None = None


class Door(web.Server):
    """Answers questions by `answer`, of `most_bytes` each, at most `most` connections at once."""

    def __init__(
        self,
        answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        most_bytes: int,
        most: int = MOST,
    ) -> None:
        loop = asyncio.get_running_loop()
        made = partial(web.BaseRequest, loop=loop, client_max_size=most_bytes)
        super().__init__(self._hear, request_factory=made, access_log=None, lingering_time=_LINGER)
        self._answer, self._most = answer, most
        self._visits = dict[web.RequestHandler, _Visit]()
        self._silent = dict[web.RequestHandler, _Visit]()  # in the order in which they came, or were answered

    async def open(self, listeners: Sequence[socket.socket], tls: ssl.SSLContext) -> None:
        """Until it is cancelled: then it answers what it has been asked, and closes `listeners`."""
        async with asyncio.TaskGroup() as tasks:
            try:
                await asyncio.gather(*(self._take(listener, tls, tasks) for listener in listeners))
            finally:
                for listener in listeners:
                    listener.close()
                await self.shutdown(_GOODBYE)

    async def _take(self, listener: socket.socket, tls: ssl.SSLContext, tasks: asyncio.TaskGroup) -> None:
        listener.setblocking(False)
        while True:
            try:
                taken, where = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as e:  # it has gone again, or there are no more files
                _LOG.warning("a connection is not taken: %s", e.strerror or e)
                await asyncio.sleep(0.1)
                continue
            if len(self._visits) >= self._most:
                if not self._silent:
                    taken.close()
                    continue
                dispensable = find_dispensable({handler: each.source for handler, each in self._silent.items()})
                self._silent.pop(dispensable).task.cancel()
            handler = self()
            task = tasks.create_task(self._hold(handler, taken, tls))
            self._visits[handler] = self._silent[handler] = _Visit(_source(where[0], _SITE), task, asyncio.Event())
            await asyncio.sleep(0)  # so that it has begun when it is ended

    async def _hold(self, handler: web.RequestHandler, taken: socket.socket, tls: ssl.SSLContext) -> None:
        visit, loop = self._visits[handler], asyncio.get_running_loop()
        transport: asyncio.BaseTransport | None = None
        try:
            with suppress(OSError):  # TLS's errors are such, and a time that is over
                transport, _ = await loop.connect_accepted_socket(
                    lambda: handler, taken, ssl=tls, ssl_handshake_timeout=SILENCE, ssl_shutdown_timeout=SILENCE
                )
                async with asyncio.timeout(SILENCE) as visit.limit:
                    await visit.over.wait()
        finally:
            del self._visits[handler]
            self._silent.pop(handler, None)
            if isinstance(transport, asyncio.Transport) and not visit.over.is_set():
                transport.abort()

    async def _hear(self, request: web.BaseRequest) -> web.StreamResponse:
        visit = self._visits.get(request.protocol)
        self._silent.pop(request.protocol, None)
        if visit is not None and visit.limit is not None:
            visit.limit.reschedule(asyncio.get_running_loop().time() + _LONGEST)
        try:
            answer = await self._answer(request)
            answer.force_close()
            return answer
        except web.HTTPException as e:  # is an answer, too
            e.force_close()
            raise
        finally:
            if visit is not None and request.protocol in self._visits:
                self._silent[request.protocol] = visit

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if handler in self._visits:
            self._visits[handler].over.set()
