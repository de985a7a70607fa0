"""One gRPC connection to a server: dialled at the first call, broken for good once anything is wrong with it.

Each call says what became of it: `Failed`, with the error where the reason is the connection's and is known.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final, NamedTuple

from clustermesh.address import is_address
from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store.endpoint import Endpoint
from clustermesh.store.exchange import Ended, Exchange, Message
from clustermesh.store.frames import Broken, Metadata, request_headers
from clustermesh.store.http2 import Http2
from clustermesh.store.parts import Parts
from clustermesh.store.status import Code
from clustermesh.store.tls import Tls, Tunnel, explain

PING_AFTER: Final = 10.0  # seconds of silence; etcd ends connections that ping more often than every 5 s
PING_PATIENCE: Final = 5.0
_NEXT_ADDRESS: Final = 0.25  # of a name that has several: seconds until the next one is tried beside it (RFC 8305)
_AT_ONCE: Final = 1 << 15
_CLOSED: Final = "connection closed by the server"


class Outcome(NamedTuple):
    """How a call ended. `reason` is what is wrong with the connection, where that is known."""

    code: Code
    details: str
    reason: ClusterMeshError | None = None


class Failed(Exception):
    """A call ended so."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.details)
        self.outcome = outcome


class Call:
    """For one reader, who is the one writer too. To be cancelled in the end."""

    def __init__(self, channel: Channel, exchange: Exchange) -> None:
        self._channel, self.exchange = channel, exchange
        self._messages = deque[Message]()
        self._ended: Outcome | None = None
        self._waiter: asyncio.Future[None] | None = None

    def send(self, message: bytes, *, last: bool = False) -> None:
        """It goes when the server has room for it, if that ever is."""
        if self._ended is None:
            self._channel.send(self, message, last)

    async def sent(self) -> None:
        """Once all of that is on its way, or never will be."""
        while not self.exchange.is_sent and self._ended is None:
            self._channel.writers.append(self)
            await self._wait()

    async def read(self) -> bytes | bytearray:
        """The next message. Raises Failed, also with Code.OK where the last one was read."""
        while not self._messages:
            if self._ended is not None:
                raise Failed(self._ended)
            await self._wait()
        message = self._messages.popleft()
        self._channel.taken(self, message.data)
        return message.whole

    async def answer(self) -> bytes | bytearray:
        """The one message that is the answer. Raises Failed."""
        while self._ended is None:
            await self._wait()
        if self._ended.code is not Code.OK:
            raise Failed(self._ended)
        if not self._messages:
            raise Failed(Outcome(Code.INTERNAL, "it answered nothing"))
        return self._messages.popleft().whole

    def cancel(self, code: Code = Code.CANCELLED, details: str = "cancelled") -> None:
        """Nobody reads it any more; where it had not ended, it has now, and so."""
        if self._ended is None or self.exchange.lent:
            self._channel.drop(self)
        if self._ended is None:
            self.end(Outcome(code, details))
        self._messages.clear()  # an error's traceback may keep this

    def hear(self, message: Message) -> None:
        self._messages.append(message)
        self.wake()

    def end(self, how: Outcome) -> None:
        self._ended = how
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Channel(asyncio.BufferedProtocol):
    """To `endpoint`, dialled at `address`. Refused where the files of `tls` are no good."""

    def __init__(self, endpoint: Endpoint, address: str, tls: Tls | None) -> None:
        self._endpoint, self._address = endpoint, address
        self._tunnel = None if tls is None else Tunnel(tls, endpoint.host)
        self._http2 = Http2()
        self._loop = asyncio.get_running_loop()
        self._dialling, self._ready = asyncio.Lock(), self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] | None = None
        self._broken: Outcome | None = None
        self._calls: dict[Exchange, Call] = {}
        self.writers: list[Call] = []  # who waits until what they have sent is on its way
        self._buffer = bytearray()  # while one reads, only
        self._heard = 0.0
        self._pinged: float | None = None  # when, where nothing was heard since
        self._timer: asyncio.TimerHandle | None = None

    @property
    def usable(self) -> bool:
        """Whether another call can be made."""
        return self._broken is None and self._http2.usable

    async def connect(self, patience: float) -> None:
        """Where it is not connected yet. Raises Failed."""
        try:
            async with asyncio.timeout(patience):
                await self._connect()
        except TimeoutError as e:
            raise Failed(self._late(patience)) from e
        if self._broken is not None:
            raise Failed(self._broken)

    async def unary(self, path: str, request: bytes, patience: float, metadata: Metadata) -> bytes | bytearray:
        """The answer to one request. Raises Failed."""
        try:
            async with asyncio.timeout(patience):
                call = await self._open(path, metadata, int(patience * 1000))
                try:
                    call.send(request, last=True)
                    return await call.answer()
                finally:
                    call.cancel()
        except TimeoutError as e:
            raise Failed(self._late(patience)) from e

    async def stream(self, path: str, metadata: Metadata, patience: float) -> Call:
        """A call that goes on, begun within `patience` seconds; its answers come in parts. Raises Failed."""
        try:
            async with asyncio.timeout(patience):
                return await self._open(path, metadata, None, Parts())
        except TimeoutError as e:
            raise Failed(self._late(patience)) from e

    async def close(self) -> None:
        """Every call under way fails."""
        self._break(Outcome(Code.UNAVAILABLE, "the connection was closed"))
        if self._closed is not None:
            await asyncio.wait([self._closed])

    def send(self, call: Call, message: bytes, last: bool) -> None:
        self._http2.send(call.exchange, message, last=last)
        self._flush()

    def taken(self, call: Call, message: bytes | bytearray) -> None:
        self._http2.taken(call.exchange, message)
        self._flush()

    def drop(self, call: Call) -> None:
        self._calls.pop(call.exchange, None)
        self._http2.cancel(call.exchange)
        self._flush()

    def _late(self, patience: float) -> Outcome:
        connected = self._ready.done()
        reason = None if connected else Unavailable(f"etcd at {self._endpoint}: no connection within {patience:g} s")
        return Outcome(Code.DEADLINE_EXCEEDED, "Deadline Exceeded", reason)

    async def _open(self, path: str, metadata: Metadata, milliseconds: int | None, parts: Parts | None = None) -> Call:
        if not self._ready.done():
            await self._connect()
        if self._broken is not None:
            raise Failed(self._broken)
        if not self._http2.usable:
            raise Failed(Outcome(Code.UNAVAILABLE, "the server takes no more calls"))
        where = self._endpoint
        block = request_headers(where.secure, where.target, path, metadata, milliseconds)
        exchange = self._http2.open(block, parts)
        call = self._calls[exchange] = Call(self, exchange)
        return call

    # -- the connection ------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """The first who wants it dials; where that is cancelled, the next one goes on."""
        async with self._dialling:
            if self._transport is None and self._broken is None:
                # No race of one: asyncio loses the socket where it is cancelled in the instant that somebody wins.
                delay = None if is_address(self._address) else _NEXT_ADDRESS
                try:
                    await self._loop.create_connection(
                        lambda: self, self._address, self._endpoint.port, happy_eyeballs_delay=delay
                    )
                except (OSError, ValueError) as e:  # the latter for what is no name at all
                    self._fail(e)
            await asyncio.wait([self._ready])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._closed = transport, self._loop.create_future()
        self._heard = self._loop.time()
        if self._broken is not None:
            transport.abort()
        elif self._tunnel is None:
            self._flush()
        else:
            transport.write(self._tunnel.begin())

    def get_buffer(self, _sizehint: int) -> bytearray:
        """As much is heard at once: others have their turn in between, whatever a server says."""
        self._buffer = bytearray(_AT_ONCE)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        with memoryview(self._buffer) as whole:
            data = bytes(whole[:nbytes])
        self._buffer = bytearray()
        self._receive(data)

    def _receive(self, data: bytes) -> None:
        self._heard, self._pinged = self._loop.time(), None
        try:
            events = self._http2.receive(data if self._tunnel is None else self._tunnel.receive(data))
        except (Broken, ssl.SSLError) as e:
            self._fail(e)
            return
        for event in events:
            match event:
                case Message():
                    self._calls[event.exchange].hear(event)
                case Ended(exchange, code, details):
                    self._calls.pop(exchange).end(Outcome(code, details))
        if self._tunnel is not None and self._tunnel.ended:
            self._fail(ConnectionResetError(0, _CLOSED))
            return
        self._flush()
        if not self._ready.done() and self._http2.greeted:  # only now it is known that it takes our certificate
            self._ready.set_result(None)
            self._timer = self._loop.call_at(self._heard + PING_AFTER, self._look)

    def _wake_writers(self) -> None:
        writers, self.writers = self.writers, []
        for call in writers:
            call.wake()

    def pause_writing(self) -> None:
        """Who does not read gets no answers made, either."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed is not None:
            self._closed.set_result(None)
        self._fail(exc or ConnectionResetError(0, _CLOSED))

    def _flush(self) -> None:
        if self._transport is None or self._broken is not None:
            return
        try:
            said = self._http2.take() if self._tunnel is None else self._tunnel.wrap(self._http2.take)
        except ssl.SSLError as e:
            self._fail(e)
            return
        if said:
            self._transport.write(said)
            self._wake_writers()

    def _look(self) -> None:
        """Is the server still there?"""
        now = self._loop.time()
        due = self._heard + PING_AFTER if self._pinged is None else self._pinged + PING_PATIENCE
        if now >= due:
            if self._pinged is not None:
                self._fail(TimeoutError(0, "no answer to a ping"))
                return
            due = now + PING_AFTER
            if self._http2.busy:  # etcd wants no pings else
                self._pinged, due = now, now + PING_PATIENCE
                self._http2.ping()
                self._flush()
        self._timer = self._loop.call_at(due, self._look)

    def _fail(self, error: Exception) -> None:
        self._break(Outcome(Code.UNAVAILABLE, str(error), explain(self._endpoint, error)))

    def _break(self, how: Outcome) -> None:
        if self._broken is not None:
            return
        self._broken = how
        if self._timer is not None:
            self._timer.cancel()
        if not self._ready.done():
            self._ready.set_result(None)
        calls, self._calls = self._calls, {}
        for exchange, call in calls.items():
            exchange.incoming.clear()
            call.end(how)
        self._wake_writers()
        if self._transport is not None:
            if self._tunnel is not None and (said := self._tunnel.take()):
                self._transport.write(said)  # why we do not go on
            self._transport.abort()


async def try_out(endpoint: Endpoint, address: str, tls: Tls | None, patience: float) -> ClusterMeshError | None:
    """Why no connection to `endpoint` (dialled at `address`) can be made, or None. Takes up to `patience` seconds."""
    channel = Channel(endpoint, address, tls)
    try:
        await channel.connect(patience)
    except Failed as e:
        return e.outcome.reason
    finally:
        await channel.close()
    return None
