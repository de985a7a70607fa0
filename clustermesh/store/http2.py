"""A gRPC client's side of one HTTP/2 connection: bytes in, events out. Pure; the shell is `channel`.

RFC 9113 and gRPC's PROTOCOL-HTTP2. Header blocks are read by the `hpack` package; what we send needs no table.

The rules:

1. Exchanges are opened in order, no more at a time than the server wants; the others wait.
2. What the server may not send (frames too large, beyond a window, in the middle of a header block) breaks the
   connection: Broken.
3. What nobody reads of an exchange is bounded by its window, and what is lent for large messages by what all have
   together (`room`).
4. Of an exchange that is opened with Parts a message comes in these, each a message of its own to all that follows.
5. The rest never waits for another one's reader: the connection's window is given back as it is used.
6. A server that says much and tells nothing (no message, no end of an exchange) is Broken, too: hearing it costs.
7. After GOAWAY, and when the numbers of streams end, nothing new is opened (`usable`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias
from urllib.parse import unquote

from hpack import Decoder, HPACKError

from clustermesh.store import frames
from clustermesh.store.exchange import Ended, Event, Exchange, Message
from clustermesh.store.frames import Broken
from clustermesh.store.parts import NOTHING, Parts
from clustermesh.store.room import LARGE, MAX_MESSAGE, NO_ROOM, WINDOW, Room
from clustermesh.store.status import Code, of_grpc, of_http, of_reset

_INDEXED: Final = 0x80  # a field begins so whose name and value are in the table (RFC 7541, 6.1)
_MOST_MEANT: Final = 64
_LAST: Final = 1 << 30  # no stream is opened after it: some days of a thousand calls a second
_FIRST_WINDOW: Final = 65_535  # of a connection, and of each stream until the server says another one
_WHOLE_WINDOW: Final = 1 << 26  # what is added to it
_MOST_IDLE: Final = 10_000  # frames that tell nothing, between two that do; etcd sends a few for each message
_LITTLE: Final = 64  # bytes: as much of what is no message counts as a frame of its own; so does a smaller part of one
_MOST_SAID: Final = 200  # characters of what a server says of an error


Headers: TypeAlias = dict[bytes, bytes]


class Http2:
    """Feed it what comes (`receive`); after each call write what it wants to say (`take`)."""

    def __init__(self) -> None:
        settings = [(frames.ENABLE_PUSH, 0), (frames.INITIAL_WINDOW_SIZE, WINDOW)]
        self._out = [
            frames.PREFACE,
            frames.frame(frames.SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*each) for each in settings)),
        ]
        self._out.append(frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.WORD.pack(_WHOLE_WINDOW)))
        self._going_away = self.greeted = False
        self._next = 1
        self._most, self._initial, self._window = frames.MOST, _FIRST_WINDOW, _FIRST_WINDOW  # as the server says
        self._open: dict[int, Exchange] = {}
        self._waiting = deque[Exchange]()
        self._room = Room(self._allow)
        self._rest = b""
        self._used = self._idle = 0
        self._late = 0  # bytes that may still come for exchanges that we have ended
        self._decoder, self._meant = Decoder(), dict[bytes, Headers]()
        self._block: tuple[int, int, bytes] | None = None  # a header block under way: stream, flags, what there is

    @property
    def usable(self) -> bool:
        """Whether something new can be asked."""
        return not self._going_away and self._next < _LAST

    @property
    def busy(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._open or self._waiting)

    def take(self) -> bytes:
        """What is to be written now."""
        out, self._out = self._out, []
        return b"".join(out)

    # -- asking --------------------------------------------------------------------------------------------------------

    def open(self, block: bytes, parts: Parts | None = None) -> Exchange:
        exchange = Exchange(block, parts)
        self._waiting.append(exchange)
        self._admit()
        return exchange

    def send(self, exchange: Exchange, message: bytes, *, last: bool = False) -> None:
        exchange.outgoing += frames.PREFIX.pack(0, len(message)) + message
        exchange.closing = last
        self._pump(exchange)

    def taken(self, exchange: Exchange, message: bytes | bytearray) -> None:
        """Somebody has read it."""
        self._room.taken(exchange, message)

    def cancel(self, exchange: Exchange) -> None:
        """Nobody reads any more of it."""
        self._room.given_up(exchange)
        if exchange.id in self._open:
            self._reset(exchange)
            self._close(exchange)
        elif exchange in self._waiting:
            self._waiting.remove(exchange)

    def ping(self) -> None:
        self._idle = 0  # it was quiet for long
        self._out.append(frames.frame(frames.PING, 0, 0, bytes(8)))

    def _admit(self) -> None:
        while self._waiting and len(self._open) < self._most:
            exchange = self._waiting.popleft()
            exchange.id, exchange.window = self._next, self._initial
            self._next += 2
            self._open[exchange.id] = exchange
            self._out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, exchange.id, exchange.block))
            self._pump(exchange)

    def _pump(self, exchange: Exchange) -> None:
        """Send of what waits as much as the windows let through."""
        while exchange.id and exchange.outgoing and (room := min(exchange.window, self._window, frames.MAX_FRAME)) > 0:
            part = bytes(exchange.outgoing[:room])
            del exchange.outgoing[:room]
            exchange.window -= len(part)
            self._window -= len(part)
            last = exchange.closing and not exchange.outgoing
            self._out.append(frames.frame(frames.DATA, frames.END_STREAM if last else 0, exchange.id, part))

    def _allow(self, exchange: Exchange, more: int) -> None:
        if exchange.id in self._open:
            self._out.append(frames.frame(frames.WINDOW_UPDATE, 0, exchange.id, frames.WORD.pack(more)))

    def _reset(self, exchange: Exchange) -> None:
        late = self._late + WINDOW - exchange.used  # the server may have sent so much before it hears of it
        self._late = min(late, _FIRST_WINDOW + _WHOLE_WINDOW)  # no more than that for all
        self._out.append(frames.frame(frames.RESET, 0, exchange.id, frames.WORD.pack(frames.CANCEL)))

    def _close(self, exchange: Exchange) -> None:
        del self._open[exchange.id]
        exchange.outgoing.clear()
        exchange.incoming.clear()
        self._room.ended(exchange)
        self._admit()

    # -- hearing -------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """What `data` tells. Raises Broken."""
        data, at, events = self._rest + data, 0, list[Event]()
        while len(data) - at >= frames.HEAD.size:
            high, low, kind, flags, stream = frames.HEAD.unpack_from(data, at)
            end = at + frames.HEAD.size + (high << 8 | low)
            self._check(kind, stream, end - at - frames.HEAD.size)
            if end > len(data):
                break
            told = len(events)
            if (hear := _HEARD.get(kind)) is not None:
                hear(self, flags, stream & frames.MOST, data[at + frames.HEAD.size : end], events)
            if len(events) > told:
                self._idle = 0
            else:
                self._count_idle(kind, end - at - frames.HEAD.size)
            at = end
        self._rest = data[at:]
        return events

    def _check(self, kind: int, stream: int, size: int) -> None:
        if size > frames.MAX_FRAME:
            raise Broken("it does not speak HTTP/2" if not self.greeted else f"a frame of {size} bytes")
        if not self.greeted and kind != frames.SETTINGS:
            raise Broken("it does not speak HTTP/2")
        if (kind == frames.CONTINUATION) != (self._block is not None):
            raise Broken("a header block was cut")
        if self._block is not None and self._block[0] != stream & frames.MOST:
            raise Broken("a header block of two streams")
        stream &= frames.MOST
        if kind in _OF_STREAMS:
            if stream >= self._next or not stream & 1:
                raise Broken("a stream that nobody opened")
        elif kind in _OF_CONNECTIONS and stream:
            raise Broken("on one stream what concerns all")
        if _SIZES.get(kind, size) != size:
            raise Broken(f"a frame of {size} bytes")

    def _count_idle(self, kind: int, size: int) -> None:
        self._idle += size < _LITTLE if kind == frames.DATA else 1 + size // _LITTLE
        if self._idle > _MOST_IDLE:
            raise Broken("it says much and tells nothing")

    def _hear_data(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        self._used += len(payload)
        if self._used >= _WHOLE_WINDOW // 2:
            self._out.append(frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.WORD.pack(self._used)))
            self._used = 0
        if (exchange := self._open.get(stream)) is None:
            self._late -= len(payload)
            if self._late < 0:
                raise Broken(NO_ROOM)
            return
        self._room.came(exchange, len(payload))
        part = frames.without_padding(flags, payload)
        size = len(part) - frames.PREFIX.size
        if size >= 0 and not exchange.incoming and frames.PREFIX.unpack_from(part) == (0, size):
            self._tell(Message(exchange, part[frames.PREFIX.size :]), events)  # one whole message, as most are
        else:
            exchange.incoming += part
            self._cut(exchange, events)
        if exchange.id in self._open and flags & frames.END_STREAM:
            self._end(exchange, Code.UNKNOWN, "it ended without a status", events)
        self._room.credit(exchange)

    def _cut(self, exchange: Exchange, events: list[Event]) -> None:
        """Messages out of what there is."""
        while len(incoming := exchange.incoming) >= frames.PREFIX.size:
            compressed, size = frames.PREFIX.unpack_from(incoming)
            part = size if exchange.parts is None else exchange.parts.size(incoming, frames.PREFIX.size, size)
            if compressed or part > MAX_MESSAGE:
                exchange.closing = False  # it is not done
                why = "a compressed message" if compressed else f"Received message larger than max ({part} bytes)"
                self._end(exchange, Code.INTERNAL if compressed else Code.RESOURCE_EXHAUSTED, why, events)
                return
            if len(incoming) < frames.PREFIX.size + part:
                self._room.begins(exchange, part)
                return
            self._tell(_split(exchange, part, size), events)

    def _tell(self, message: Message, events: list[Event]) -> None:
        self._room.waits(message.exchange, message.data)
        events.append(message)

    def _hear_headers(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        block = frames.without_padding(flags, payload)
        self._continue(
            flags, stream, block[5:] if flags & frames.PRIORITY else block, events, flags & frames.END_STREAM
        )

    def _hear_continuation(self, flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        _, ending, begun = self._block or (0, 0, b"")
        if not payload or len(begun) + len(payload) > frames.MAX_BLOCK:
            raise Broken("a header block without an end")
        self._continue(flags, stream, begun + payload, events, ending)

    def _continue(self, flags: int, stream: int, block: bytes, events: list[Event], ending: int) -> None:
        self._block = None if flags & frames.END_HEADERS else (stream, ending, block)
        if self._block is not None:
            return
        headers = self._meant.get(block) or self._decode(block)
        if (exchange := self._open.get(stream)) is not None:
            self._take_headers(exchange, headers, bool(ending), events)

    def _decode(self, block: bytes) -> Headers:
        """What names entries of the table alone means the same until something changes that."""
        try:
            headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except (HPACKError, ValueError, IndexError) as e:
            raise Broken("a header block that nobody can read") from e
        if min(block, default=0) < _INDEXED or len(self._meant) > _MOST_MEANT:
            self._meant.clear()
        else:
            self._meant[block] = headers
        return headers

    def _take_headers(self, exchange: Exchange, headers: Headers, ending: bool, events: list[Event]) -> None:
        status = headers.get(b":status", b"200")
        if b"grpc-status" in headers:
            code = of_grpc(headers[b"grpc-status"])
            details = unquote(headers.get(b"grpc-message", b"").decode("latin-1"))[:_MOST_SAID]
            if code is Code.OK and exchange.incoming:
                code, details = Code.INTERNAL, "it ended in the middle of a message"
            self._end(exchange, code, details, events)
        elif status != b"200" and not status.startswith(b"1"):
            self._end(exchange, of_http(status), f"HTTP {status.decode('latin-1')}", events)
        elif ending:
            self._end(exchange, Code.UNKNOWN, "it ended without a status", events)

    def _end(self, exchange: Exchange, code: Code, details: str, events: list[Event]) -> None:
        """Where one side was not done, the server is told that both are."""
        if not exchange.closing or exchange.outgoing:
            self._reset(exchange)
        self._close(exchange)
        events.append(Ended(exchange, code, details))

    def _hear_reset(self, _flags: int, stream: int, payload: bytes, events: list[Event]) -> None:
        code = frames.word(payload)
        if (exchange := self._open.get(stream)) is not None:
            self._close(exchange)
            events.append(Ended(exchange, of_reset(code), f"the stream was reset (HTTP/2 error {code})"))

    def _hear_settings(self, flags: int, _stream: int, payload: bytes, _events: list[Event]) -> None:
        if flags & frames.ACK:
            return
        if len(payload) % frames.SETTING.size:
            raise Broken("settings that nobody can read")
        settings = dict(frames.SETTING.iter_unpack(payload))  # the last one of a name holds
        self._most = settings.get(frames.MAX_CONCURRENT_STREAMS, self._most)
        self._resize(settings.get(frames.INITIAL_WINDOW_SIZE, self._initial))
        self.greeted = True
        self._out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._admit()

    def _resize(self, initial: int) -> None:
        if initial > frames.MOST:
            raise Broken(f"a window of {initial} bytes")
        change, self._initial = initial - self._initial, initial
        if not change:
            return
        for exchange in self._open.values():
            if (window := exchange.window + change) > frames.MOST:
                raise Broken(f"a window of {window} bytes")
            exchange.window = window
            self._pump(exchange)

    def _hear_ping(self, flags: int, _stream: int, payload: bytes, _events: list[Event]) -> None:
        if not flags & frames.ACK:
            self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload[:8]))

    def _hear_go_away(self, _flags: int, _stream: int, payload: bytes, events: list[Event]) -> None:
        self._going_away = True
        last, why = frames.word(payload) & frames.MOST, payload[8:200].decode("latin-1")
        waiting = list(self._waiting)
        self._waiting.clear()
        for each in [each for number, each in self._open.items() if number > last]:
            self._close(each)
            waiting.append(each)
        for each in waiting:
            events.append(Ended(each, Code.UNAVAILABLE, f"the server takes no more calls: {why or 'it ends'}"))

    def _hear_window(self, _flags: int, stream: int, payload: bytes, _events: list[Event]) -> None:
        more = frames.word(payload) & frames.MOST
        if not stream:
            was_full, self._window = self._window <= 0, frames.grown(self._window, more)
            for each in self._open.values() if was_full else ():
                self._pump(each)
        elif (exchange := self._open.get(stream)) is not None:
            exchange.window = frames.grown(exchange.window, more)
            self._pump(exchange)

    def _hear_push(self, _flags: int, _stream: int, _payload: bytes, _events: list[Event]) -> None:
        raise Broken("a push that nobody asked for")


def _split(exchange: Exchange, part: int, size: int) -> Message:
    """The first `part` bytes of a message of `size`; what is left has a prefix again. What is large is not copied."""
    incoming, start = exchange.incoming, frames.PREFIX.size
    around = NOTHING if exchange.parts is None else exchange.parts.take(incoming, start, part, size)
    message: bytes | bytearray
    if len(incoming) == start + part > LARGE:
        exchange.incoming, message = bytearray(), incoming
        del incoming[:start]
    else:
        with memoryview(incoming) as whole:
            message = bytes(whole[start : start + part])
        del incoming[: start + part]
    if part < size:
        exchange.incoming[:0] = frames.PREFIX.pack(0, size - part)
    return Message(exchange, message, around)


_OF_STREAMS: Final = frozenset((frames.DATA, frames.HEADERS, frames.RESET, frames.CONTINUATION))
_OF_CONNECTIONS: Final = frozenset((frames.SETTINGS, frames.PING, frames.GO_AWAY))
_SIZES: Final = {frames.PING: 8, frames.RESET: 4, frames.WINDOW_UPDATE: 4}
_HEARD: Final[dict[int, Callable[[Http2, int, int, bytes, list[Event]], None]]] = {
    frames.DATA: Http2._hear_data,
    frames.HEADERS: Http2._hear_headers,
    frames.RESET: Http2._hear_reset,
    frames.SETTINGS: Http2._hear_settings,
    frames.PUSH: Http2._hear_push,
    frames.PING: Http2._hear_ping,
    frames.GO_AWAY: Http2._hear_go_away,
    frames.WINDOW_UPDATE: Http2._hear_window,
    frames.CONTINUATION: Http2._hear_continuation,
}
