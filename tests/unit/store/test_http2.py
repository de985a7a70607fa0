"""Our side of HTTP/2 against the one of the h2 package, which checks all that it hears, and against nonsense."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes

from clustermesh.store.exchange import Ended, Event, Exchange, Message
from clustermesh.store.frames import Broken, request_headers
from clustermesh.store.http2 import Http2
from clustermesh.store.room import MAX_MESSAGE, WINDOW
from clustermesh.store.status import Code

BLOCK = request_headers(True, "a:2379", "/etcdserverpb.KV/Txn", (("token", "t" * 300),), 5000)
OK = [(":status", "200"), ("content-type", "application/grpc")]
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def prefixed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


class Server:
    """The other end. It answers each request with itself, twice, once that is complete."""

    def __init__(self, client: Http2, rng: random.Random, **settings: int) -> None:
        self.client, self._rng = client, rng
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes[name.upper()]: value for name, value in settings.items()})
        self.asked: dict[int, bytes] = {}
        self.headers: list[dict[str, str]] = []
        self._answers: dict[int, bytes] = {}
        self.open = self.most_open = 0
        self.told: list[Event] = []

    def turn(self) -> bool:
        """What each side has to say goes to the other one, in pieces; whether it was anything."""
        said = self.client.take()
        for piece in self._pieces(said):
            for event in self._h2.receive_data(piece):
                self._hear(event)
        for stream in list(self._answers):
            self._answer(stream)
        heard = self._h2.data_to_send()
        for piece in self._pieces(heard):
            self.told += self.client.receive(piece)
        return bool(said or heard)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            size = self._rng.choice((1, 9, 100, 1 << 14, 1 << 20))
            yield data[:size]
            data = data[size:]

    def _hear(self, event: events.Event) -> None:
        match event:
            case events.RequestReceived():
                self.headers.append(dict(event.headers))
                self.asked[event.stream_id] = b""
                self.open += 1
                self.most_open = max(self.open, self.most_open)
            case events.DataReceived():
                self.asked[event.stream_id] += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case events.StreamEnded():
                self._h2.send_headers(event.stream_id, OK)
                self._answers[event.stream_id] = 2 * self.asked[event.stream_id]

    def _answer(self, stream: int) -> None:
        """As much as there is room for, and its end."""
        while self._answers[stream] and (room := self._h2.local_flow_control_window(stream)):
            part = self._answers[stream][: min(room, self._rng.randint(1, 1 << 14))]
            self._answers[stream] = self._answers[stream][len(part) :]
            padding = self._rng.choice((None, 0, 5)) if len(part) + 6 < min(room, 1 << 14) else None
            self._h2.send_data(stream, part, pad_length=padding)
        if not self._answers[stream]:
            del self._answers[stream]
            self._h2.send_headers(stream, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)
            self.open -= 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_pieces_and_windows_every_message_arrives(seed: int) -> None:
    rng = random.Random(seed)
    server = Server(
        client := Http2(),
        rng,
        initial_window_size=rng.choice((1, 1000, 65_535, 1 << 20)) if seed % 4 else 65_535,
        max_concurrent_streams=(most := rng.choice((1, 3, 100))),
    )
    wanted: dict[Exchange, bytes] = {}
    for _ in range(10):
        exchange = client.open(BLOCK)
        size = rng.choice((0, 1, 500)) if seed % 4 else rng.choice((0, 1, 500, 200_000))
        wanted[exchange] = message = rng.randbytes(min(size, 2000) if seed % 2 else size)
        client.send(exchange, message, last=True)
        server.turn()
    got: dict[Exchange, list[bytes]] = {exchange: [] for exchange in wanted}
    ended: dict[Exchange, Code] = {}
    for _ in range(100_000):
        moved = server.turn()
        told, server.told = server.told, []
        for event in told:
            match event:
                case Message(exchange, data):
                    got[exchange].append(data)
                    client.taken(exchange, data)
                case Ended(exchange, code):
                    ended[exchange] = code
        if not moved and not told:
            break
    assert got == {exchange: [message, message] for exchange, message in wanted.items()}
    assert ended == dict.fromkeys(wanted, Code.OK)
    assert not client.busy
    assert server.most_open <= max(most, 1) or server.headers
    assert server.headers[0]["token"] == "t" * 300
    assert server.headers[0]["grpc-timeout"] == "5000m"


def greeted() -> Http2:
    client = Http2()
    client.receive(SETTINGS)
    client.take()
    return client


def test_more_than_the_server_wants_at_a_time_waits_for_the_end_of_another_one() -> None:
    client = Http2()
    client.receive(frame(4, 0, 0, struct.pack(">HI", 3, 1)))
    first, second = client.open(BLOCK), client.open(BLOCK)
    client.send(first, b"x", last=True)
    client.send(second, b"x", last=True)
    assert first.is_sent
    assert not second.is_sent
    client.receive(frame(3, 0, first.id, struct.pack(">I", 8)))
    assert second.is_sent


def test_what_nobody_reads_is_not_sent_beyond_the_window() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.take()
    piece = prefixed(b"x" * ((1 << 14) - 5))
    for _ in range(WINDOW // len(piece)):
        client.receive(frame(0, 0, exchange.id, piece))
    assert client.take() == b""
    with pytest.raises(Broken, match="room"):
        client.receive(frame(0, 0, exchange.id, piece))


def test_who_reads_makes_room() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.take()
    piece = prefixed(b"x" * ((1 << 14) - 5))
    for _ in range(10 * WINDOW // len(piece)):
        for event in client.receive(frame(0, 0, exchange.id, piece)):
            assert isinstance(event, Message)
            client.taken(exchange, event.data)
    assert client.take()


def test_a_message_that_is_larger_than_may_be_ends_its_call_before_it_is_there() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.send(exchange, b"x", last=True)
    client.take()
    events = client.receive(frame(0, 0, exchange.id, struct.pack(">BI", 0, MAX_MESSAGE + 1)))
    assert [(type(event), event.code) for event in events if isinstance(event, Ended)] == [
        (Ended, Code.RESOURCE_EXHAUSTED)
    ]
    assert client.take() == frame(3, 0, exchange.id, struct.pack(">I", 8))
    assert client.receive(frame(0, 1, exchange.id, b"more")) == []
    assert not client.busy


def test_half_a_message_is_no_answer_whatever_its_status() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.receive(frame(0, 0, exchange.id, prefixed(b"abc")[:-1]))
    assert client.receive(frame(1, 0x5, exchange.id, b"\0\x0bgrpc-status\x010")) == [
        Ended(exchange, Code.INTERNAL, "it ended in the middle of a message")
    ]


def test_after_going_away_what_the_server_did_not_take_fails_and_the_rest_goes_on() -> None:
    client = greeted()
    first, second = client.open(BLOCK), client.open(BLOCK)
    assert client.usable
    events = client.receive(frame(7, 0, 0, struct.pack(">II", first.id, 0) + b"bye"))
    assert events == [Ended(second, Code.UNAVAILABLE, "the server takes no more calls: bye")]
    assert not client.usable
    assert client.receive(frame(0, 0, first.id, prefixed(b"still"))) == [Message(first, b"still")]


@pytest.mark.parametrize(
    ("status", "headers", "code", "details"),
    [
        ("200", b"\0\x0bgrpc-status\x0211\0\x0cgrpc-message\x0aa%20b%zz%c", Code.OUT_OF_RANGE, "a b%zz%c"),
        ("200", b"\0\x0bgrpc-status\x0299", Code.UNKNOWN, ""),
        ("200", b"", Code.UNKNOWN, "it ended without a status"),
        ("503", b"", Code.UNAVAILABLE, "HTTP 503"),
        ("403", b"", Code.PERMISSION_DENIED, "HTTP 403"),
    ],
)
def test_how_a_call_ended(status: str, headers: bytes, code: Code, details: str) -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    block = b"\x08\x03" + status.encode() + headers
    assert client.receive(frame(1, 0x5, exchange.id, block)) == [Ended(exchange, code, details)]


def test_the_same_header_block_means_something_else_once_the_table_has_changed() -> None:
    client = greeted()
    found = []
    for number in (b"5", b"7"):
        named = client.open(BLOCK)
        first = client.receive(frame(1, 0x5, named.id, b"\x40\x0bgrpc-status\x01" + number))
        for _ in range(2):
            exchange = client.open(BLOCK)
            found += [event.code for event in client.receive(frame(1, 0x5, exchange.id, b"\xbe"))]
        assert [event.code for event in first] == [Code(int(number))]
    assert found == [Code.NOT_FOUND, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.PERMISSION_DENIED]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak HTTP/2"),
        (b"\x15\x03\x01\x00\x02\x02\x0a" * 9, "does not speak HTTP/2"),
        (SETTINGS + frame(0, 0, 1, b"x" * ((1 << 14) + 1)), "a frame of 16385 bytes"),
        (SETTINGS + frame(5, 4, 1, b"\0\0\0\2"), "push"),
        (SETTINGS + frame(8, 0, 0, b"\0\0\0\0"), "grow by 0"),
        (SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff"), "grow by"),
        (SETTINGS + frame(1, 0, 1, b"") + frame(0, 0, 1, b""), "was cut"),
        (SETTINGS + frame(9, 0, 1, b""), "was cut"),
        (SETTINGS + frame(1, 0, 1, b"") + frame(9, 0, 3, b"x"), "of two streams"),
        (SETTINGS + frame(1, 0, 1, b"") + frame(9, 0, 1, b""), "without an end"),
        (SETTINGS + frame(1, 0, 1, b"") + 5 * frame(9, 0, 1, b"x" * (1 << 14)), "without an end"),
        (SETTINGS + frame(1, 4, 1, b"\xff\xff\xff\xff\xff"), "nobody can read"),
        (SETTINGS + frame(4, 0, 0, b"x"), "settings"),
        (SETTINGS + frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)), "window"),
        (SETTINGS + frame(7, 0, 0, b"x"), "too short"),
        (SETTINGS + frame(1, 4, 3, b"\x88"), "nobody opened"),
        (SETTINGS + frame(1, 4, 0, b"\x88"), "nobody opened"),
        (SETTINGS + frame(0, 0, 2, b""), "nobody opened"),
        (SETTINGS + frame(4, 0, 1, b""), "concerns all"),
        (SETTINGS + frame(6, 0, 1, bytes(8)), "concerns all"),
        (SETTINGS + frame(7, 0, 1, bytes(8)), "concerns all"),
        (SETTINGS + frame(6, 0, 0, bytes(3)), "a frame of 3 bytes"),
        (SETTINGS + frame(3, 0, 1, bytes(5)), "a frame of 5 bytes"),
        (SETTINGS + frame(8, 0, 1, b"\x7f\0\0\0") + frame(4, 0, 0, struct.pack(">HI", 4, 1 << 30)), "a window of"),
    ],
)
def test_what_no_server_may_say_breaks_the_connection(said: bytes, why: str) -> None:
    client = Http2()
    client.open(BLOCK)
    with pytest.raises(Broken, match=why):
        client.receive(said)


@pytest.mark.parametrize(
    ("said", "most"),
    [
        (frame(0, 0, 1), 10_000),
        (frame(0, 0, 1, b"x"), 10_000),
        (frame(6, 0, 0, bytes(8)), 10_000),
        (frame(6, 1, 0, bytes(8)), 10_000),
        (frame(8, 0, 0, b"\0\0\0\1"), 10_000),
        (frame(99, 0, 0, b"?"), 10_000),
        (SETTINGS, 10_000),
        (frame(4, 0, 0, struct.pack(">HI", 4, 65_535) * 2730), 50),
        (frame(1, 4, 1, b"\x88" * 1500), 450),
    ],
    ids=["empty", "a byte", "ping", "pong", "window", "unknown", "settings", "large settings", "headers"],
)
def test_who_says_much_and_tells_nothing_is_heard_no_longer(said: bytes, most: int) -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.receive(frame(0, 0, exchange.id, struct.pack(">BI", 0, MAX_MESSAGE)))
    for _ in range(3):
        client.receive(frame(0, 0, exchange.id, b"x" * 1000))
    with pytest.raises(Broken, match="tells nothing"):
        client.receive(said * (most + 1))


def test_who_tells_something_now_and_then_may_say_much() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    for _ in range(3):
        client.receive(frame(6, 0, 0, bytes(8)) * 9_000)
        assert client.receive(frame(0, 0, exchange.id, prefixed(b"x"))) == [Message(exchange, b"x")]
    client.receive(frame(6, 0, 0, bytes(8)) * 9_000)
    client.ping()
    client.receive(frame(6, 1, 0, bytes(8)) + frame(6, 0, 0, bytes(8)) * 9_000)


def test_the_last_of_two_settings_of_one_name_holds() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    client.take()
    client.receive(frame(4, 0, 0, struct.pack(">HIHIHI", 3, 7, 4, 0, 4, 10)))
    client.take()
    client.send(exchange, b"x" * 20)
    assert client.take() == frame(0, 0, exchange.id, prefixed(b"x" * 20)[:10])


def test_of_what_a_server_says_of_an_error_the_beginning_is_kept() -> None:
    client = greeted()
    exchange = client.open(BLOCK)
    said = b"\0\x0bgrpc-status\x0214\0\x0cgrpc-message\x7f\x89\x07" + b"A" * 1032
    assert client.receive(frame(1, 0x5, exchange.id, said)) == [Ended(exchange, Code.UNAVAILABLE, "A" * 200)]


@pytest.mark.parametrize("seed", range(300))
def test_nonsense_is_heard_or_breaks_the_connection_and_holds_little(seed: int) -> None:
    rng = random.Random(seed)
    client = greeted()
    exchanges = [client.open(BLOCK) for _ in range(4)]
    client.send(exchanges[0], b"x" * 100_000, last=True)
    try:
        for _ in range(200):
            size = rng.choice((0, 1, 4, 5, 8, 9, 60, 1 << 14))
            payload = rng.choice((bytes(size), rng.randbytes(size), prefixed(bytes(max(0, size - 5)))))[: 1 << 14]
            said = frame(rng.randrange(11), rng.randrange(256), rng.choice((0, 1, 3, 5, 7)), payload)
            client.receive(said if rng.random() < 0.98 else said[: rng.randrange(len(said))])
            client.take()
    except Broken:
        pass
    assert all(len(each.incoming) <= WINDOW + MAX_MESSAGE for each in exchanges)
