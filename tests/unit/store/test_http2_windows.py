"""What is held of what a server sends: bounded by windows, in which all of it arrives once it is read."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.exchange import Exchange, Message
from clustermesh.store.frames import Broken
from clustermesh.store.http2 import Http2
from clustermesh.store.parts import Parts
from clustermesh.store.room import LARGE, MAX_MESSAGE, MOST_LENT, WINDOW

FRAME = 1 << 14
RESET = 3
WINDOW_UPDATE = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def prefixed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def said(client: Http2) -> Iterator[tuple[int, int, bytes]]:
    """The frames that it wants to say now: kind, stream, payload."""
    data = client.take().removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    while data:
        size = int.from_bytes(data[:3])
        yield data[3], int.from_bytes(data[5:9]), data[9 : 9 + size]
        data = data[9 + size :]


class Sender:
    """A server that sends as much as the windows let it, and no more."""

    def __init__(self) -> None:
        self.client = Http2()
        self.client.receive(frame(4, 0, 0))
        self._windows, self._whole = dict[int, int](), 65_535
        self._rest = dict[Exchange, bytearray]()
        self.unread = dict[Exchange, list[bytes]]()

    def open(self, *messages: bytes, parts: Parts | None = None) -> Exchange:
        exchange = self.client.open(b"\x83", parts)
        self._windows[exchange.id] = WINDOW
        self._rest[exchange], self.unread[exchange] = bytearray(b"".join(map(prefixed, messages))), []
        return exchange

    def send(self) -> None:
        """All that there is room for, each exchange in turn."""
        while sum(self._send_frame(*each) for each in self._rest.items()):
            pass

    def _send_frame(self, exchange: Exchange, rest: bytearray) -> bool:
        for kind, stream, payload in said(self.client):
            if kind == WINDOW_UPDATE and stream:
                self._windows[stream] += int.from_bytes(payload)
            elif kind == WINDOW_UPDATE:
                self._whole += int.from_bytes(payload)
        size = min(FRAME, self._windows[exchange.id], self._whole, len(rest))
        part = bytes(rest[:size])
        del rest[:size]
        self._windows[exchange.id] -= size
        self._whole -= size
        for event in self.client.receive(frame(0, 0, exchange.id, part)) if size else ():
            assert isinstance(event, Message)
            self.unread[event.exchange].append(bytes(event.data))
        return size > 0

    def read(self, exchange: Exchange) -> bytes:
        message = self.unread[exchange].pop(0)
        self.client.taken(exchange, message)
        return message

    def cancel(self, exchange: Exchange) -> None:
        self.client.cancel(exchange)
        self._rest[exchange].clear()
        self.unread[exchange].clear()

    @property
    def held(self) -> int:
        return sum(sum(map(len, waiting)) + len(each.incoming) for each, waiting in self.unread.items())

    @property
    def is_done(self) -> bool:
        return not any(self._rest.values())


def test_what_nobody_reads_is_bounded_for_all_together() -> None:
    sender = Sender()
    exchanges = [sender.open(bytes(MAX_MESSAGE), bytes(MAX_MESSAGE)) for _ in range(6)]
    sender.send()
    assert MOST_LENT <= sender.held <= MOST_LENT + len(exchanges) * (WINDOW + LARGE)
    assert sum(len(each) for each in sender.unread.values()) == 3


def test_who_finds_no_room_has_it_once_another_one_has_read() -> None:
    sender = Sender()
    exchanges = [sender.open(bytes(MAX_MESSAGE), b"next") for _ in range(6)]
    sender.send()
    for exchange in exchanges:
        sender.read(exchange)
        sender.send()
    assert [sender.unread[exchange] for exchange in exchanges] == [[b"next"]] * 6


def test_who_is_given_up_gives_back_what_was_lent_to_it() -> None:
    sender = Sender()
    *first, last = [sender.open(bytes(MAX_MESSAGE)) for _ in range(4)]
    sender.send()
    assert not sender.unread[last]
    sender.client.cancel(first[0])
    sender.send()
    assert sender.unread[last]


def test_who_is_given_up_waits_for_no_room() -> None:
    sender = Sender()
    exchanges = [sender.open(bytes(MAX_MESSAGE)) for _ in range(5)]
    sender.send()
    for exchange in reversed(exchanges):
        sender.client.cancel(exchange)
    assert (sender.client._room.lent, sender.client._room.borrowers) == (0, {})


def test_who_is_given_up_with_one_large_message_unread_and_the_next_begun_keeps_no_room() -> None:
    sender = Sender()
    for _ in range(6):
        exchange = sender.open(bytes(MAX_MESSAGE), bytes(MAX_MESSAGE))
        sender.send()
        assert (len(sender.unread[exchange]), exchange.lent) == (1, MAX_MESSAGE)
        assert exchange.incoming
        sender.cancel(exchange)
        assert (sender.client._room.lent, sender.client._room.borrowers) == (0, {})


def test_a_small_answer_needs_no_room_that_others_have() -> None:
    sender = Sender()
    for _ in range(6):
        sender.open(bytes(MAX_MESSAGE), bytes(MAX_MESSAGE))
    sender.send()
    small = sender.open(bytes(LARGE))
    sender.send()
    assert sender.unread[small]


def test_what_came_whole_before_there_was_room_asks_for_none() -> None:
    sender = Sender()
    for _ in range(3):
        sender.open(bytes(MAX_MESSAGE))
    fits = sender.open(bytes(LARGE + 1))
    sender.send()
    assert sender.unread[fits]
    assert (sender.client._room.lent, sender.client._room.borrowers) == (MOST_LENT, {})


def test_who_does_not_read_a_large_message_has_room_for_no_other() -> None:
    sender = Sender()
    one = sender.open(bytes(4 * WINDOW), bytes(4 * WINDOW), b"end")
    sender.send()
    assert len(sender.unread[one]) == 1
    assert len(one.incoming) <= WINDOW
    sender.read(one)
    sender.send()
    assert len(sender.unread[one]) == 2


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
def test_all_that_is_sent_arrives_as_it_is_read_and_no_room_is_lost(seed: int) -> None:
    rng, sender, most = random.Random(seed), Sender(), 0
    sizes = (0, 1, 100, FRAME, LARGE, LARGE + 1, WINDOW - 5, WINDOW, 3 * WINDOW, MAX_MESSAGE)
    wanted = {}
    for _ in range(6):
        messages = [rng.randbytes(1) * rng.choice(sizes) for _ in range(4)]
        wanted[sender.open(*messages)] = messages
    got: dict[Exchange, list[bytes]] = {exchange: [] for exchange in wanted}
    while not sender.is_done or any(sender.unread.values()):
        sender.send()
        most = max(most, sender.held)
        exchange = rng.choice([each for each, messages in sender.unread.items() if messages])
        got[exchange].append(sender.read(exchange))
    assert got == wanted
    assert most <= MOST_LENT + 6 * (WINDOW + LARGE)
    assert (sender.client._room.lent, sender.client._room.borrowers) == (0, {})


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
def test_all_parts_arrive_as_they_are_read_and_no_room_is_lost(seed: int) -> None:
    rng, sender, most = random.Random(seed), Sender(), 0
    sizes = (0, 100, LARGE - 20, LARGE, LARGE + 1, WINDOW - 5, 2 * WINDOW, 100, 1000, 10_000)
    wanted, got = dict[Exchange, bytes](), dict[Exchange, bytes]()
    for _ in range(6):
        messages = [watch_response([rng.choice(sizes) for _ in range(rng.choice((1, 5)))]) for _ in range(2)]
        exchange = sender.open(*messages, parts=Parts())
        wanted[exchange], got[exchange] = b"".join(messages), b""
    while not sender.is_done or any(sender.unread.values()):
        sender.send()
        most = max(most, sender.held)
        exchange = rng.choice([each for each, messages in sender.unread.items() if messages])
        got[exchange] += sender.read(exchange)
    assert got == wanted
    assert most <= MOST_LENT + 6 * (WINDOW + LARGE)
    assert (sender.client._room.lent, sender.client._room.borrowers) == (0, {})
    list(said(sender.client))
    for exchange in wanted:  # no more and no less than it had at first
        assert 0 <= exchange.used < WINDOW // 2
        assert (exchange.held, exchange.lent) == (0, 0)


def watch_response(sizes: list[int]) -> bytes:
    events = [pb.Event(kv=pb.KeyValue(key=b"k", value=bytes(size), mod_revision=7)) for size in sizes]
    return bytes(
        pb.WatchResponse(header=pb.ResponseHeader(cluster_id=1, revision=7), events=events).SerializeToString()
    )


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 20))])
def test_no_room_is_lost_to_those_that_are_given_up_whenever_that_is(seed: int) -> None:
    rng, sender, sizes = random.Random(seed), Sender(), (100, LARGE + 1, 2 * WINDOW, 3 * WINDOW, MAX_MESSAGE)
    open_ones = list[Exchange]()
    for _ in range(60):
        while len(open_ones) < 6:
            if rng.random() < 0.5:
                open_ones.append(sender.open(*[bytes(rng.choice(sizes)) for _ in range(4)]))
            else:
                open_ones.append(sender.open(*[watch_response([rng.choice(sizes[:3])] * 2)] * 2, parts=Parts()))
        sender.send()
        exchange = rng.choice(open_ones)
        if rng.random() < 0.3:
            open_ones.remove(exchange)
            sender.cancel(exchange)
        elif sender.unread[exchange]:
            sender.read(exchange)
        assert sender.client._room.lent == sum(each.lent for each in open_ones)
    for exchange in open_ones:
        sender.cancel(exchange)
    assert (sender.client._room.lent, sender.client._room.borrowers) == (0, {})


def test_what_comes_for_a_call_that_was_given_up_is_heard_no_longer_than_its_window() -> None:
    sender = Sender()
    exchange = sender.open()
    client = sender.client
    list(said(client))
    client.receive(frame(0, 0, exchange.id, bytes(FRAME)))
    client.cancel(exchange)
    assert list(said(client)) == [(RESET, exchange.id, struct.pack(">I", 8))]
    for _ in range(WINDOW // FRAME - 1):
        assert client.receive(frame(0, 0, exchange.id, bytes(FRAME))) == []
    with pytest.raises(Broken, match="than there was room for"):
        client.receive(frame(0, 0, exchange.id, bytes(FRAME)))


def test_what_comes_for_many_that_were_given_up_is_heard_no_longer_than_the_window_of_the_connection() -> None:
    client = Sender().client
    exchanges = [client.open(b"\x83") for _ in range(100)]
    for exchange in exchanges:
        client.cancel(exchange)
    part, frames = frame(0, 0, exchanges[0].id, bytes(FRAME)), ((1 << 26) + 65_535) // FRAME
    for _ in range(frames):
        assert client.receive(part) == []
    with pytest.raises(Broken, match="than there was room for"):
        client.receive(part)
