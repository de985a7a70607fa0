"""A long answer of a watch, read in parts: together they are the answer, whatever its size."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.exchange import Ended, Message
from clustermesh.store.http2 import Http2
from clustermesh.store.parts import MOST_FIELDS, PART, Parts
from clustermesh.store.room import MAX_MESSAGE
from clustermesh.store.status import Code

HEAD = pb.WatchResponse(header=pb.ResponseHeader(cluster_id=1, member_id=1 << 63, revision=9, raft_term=3), watch_id=4)
FRAME = 1 << 14


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def response(*sizes: int, fragment: bool = False) -> Any:
    events = [
        pb.Event(kv=pb.KeyValue(key=b"%d" % number, value=bytes(size), mod_revision=9))
        if size
        else pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"%d" % number, mod_revision=9))
        for number, size in enumerate(sizes)
    ]
    answer = pb.WatchResponse(fragment=fragment, events=events)
    answer.MergeFrom(HEAD)
    return answer


def heard(data: bytes, rng: random.Random, *, ends: bool = False) -> list[bytes]:
    """What is to be decoded of a stream that says `data`, each part read at once."""
    client, found = Http2(), list[bytes]()
    client.receive(frame(4, 0, 0))
    exchange = client.open(b"\x83", Parts())
    at = 0
    while at < len(data):
        size = rng.choice((1, 10, 1000, *[FRAME] * 20))
        for event in client.receive(frame(0, 0, exchange.id, data[at : at + size])):
            if isinstance(event, Ended):
                assert ends
                return found
            found.append(bytes(event.whole))
            client.taken(exchange, event.data)
        assert len(exchange.incoming) <= MAX_MESSAGE + FRAME
        at += size
    assert ends or not exchange.incoming
    return found


def prefixed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 30))])
def test_the_parts_of_an_answer_tell_all_of_it_and_each_is_one(seed: int) -> None:
    rng = random.Random(seed)
    wanted = [
        response(*rng.choices((0, 1, 100, 5000, PART), k=rng.choice((0, 1, 3, 50, 3000))), fragment=rng.random() < 0.3)
        for _ in range(4)
    ]
    parts = iter(heard(b"".join(prefixed(each.SerializeToString()) for each in wanted), rng))
    for whole in wanted:
        told, more = pb.WatchResponse(), True
        while more:
            part = next(parts)
            decoded = pb.WatchResponse.FromString(part)
            assert (decoded.header, decoded.watch_id) == (HEAD.header, HEAD.watch_id)
            assert len(decoded.events) <= MOST_FIELDS
            assert len(part) < PART + 200 + max((each.ByteSize() for each in decoded.events), default=0)
            told.events.extend(decoded.events)
            more = decoded.fragment and len(told.events) < len(whole.events)
        assert decoded.fragment == whole.fragment
        assert told.events == whole.events
    assert list(parts) == []


def test_an_answer_may_be_larger_than_any_message() -> None:
    wanted = response(*[1_400_000] * 20)
    data = wanted.SerializeToString()
    assert len(data) > MAX_MESSAGE
    decoded = [pb.WatchResponse.FromString(part) for part in heard(prefixed(data), random.Random(1))]
    assert [len(part.events) for part in decoded] == [1] * 20
    assert [part.fragment for part in decoded] == [True] * 19 + [False]


@pytest.mark.parametrize("before", [0, 3])
def test_one_change_that_is_larger_than_any_message_ends_the_watch_before_it_is_there(before: int) -> None:
    client = Http2()
    client.receive(frame(4, 0, 0))
    exchange = client.open(b"\x83", Parts())
    data = prefixed(response(*[PART // 2] * before, MAX_MESSAGE).SerializeToString())
    events = [
        event
        for at in range(0, 4 * PART, FRAME)
        for event in client.receive(frame(0, 0, exchange.id, data[at : at + FRAME]))
    ]
    *told, last = events
    assert isinstance(last, Ended)
    assert last.code is Code.RESOURCE_EXHAUSTED
    assert all(isinstance(each, Message) for each in told)
    assert len(told) == before // 2


def test_what_precedes_the_changes_is_repeated_unless_it_is_long() -> None:
    answer = response(*[PART] * 3)
    answer.cancel_reason = "x" * 5000
    first, *others = map(pb.WatchResponse.FromString, heard(prefixed(answer.SerializeToString()), random.Random(1)))
    assert len(first.cancel_reason) == 5000
    assert [(each.cancel_reason, each.HasField("header"), len(each.events)) for each in others] == [("", False, 1)] * 2


@pytest.mark.parametrize("seed", range(60))
def test_garbage_ends_or_comes_in_parts_that_are_garbage(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(response(*rng.choices((0, 100, 5000), k=200)).SerializeToString())
    for _ in range(rng.choice((1, 10, 100))):
        at = rng.randrange(len(data))
        data[at : at + rng.choice((0, 1, 30))] = rng.choice((b"", b"\xff", b"\x80" * 30, rng.randbytes(5)))
    for part in heard(prefixed(bytes(data)), rng, ends=True):
        try:
            pb.WatchResponse.FromString(part)
        except DecodeError:
            return


@pytest.mark.parametrize("number", [b"\x80" * 30, b"\xff" * 30, b"\x5a" + b"\xff" * 30], ids=["low", "high", "size"])
def test_a_number_without_an_end_is_not_waited_for(number: bytes) -> None:
    client = Http2()
    client.receive(frame(4, 0, 0))
    exchange = client.open(b"\x83", Parts())
    said = HEAD.SerializeToString() + number + bytes(PART)
    data, events = struct.pack(">BI", 0, 2 * MAX_MESSAGE) + said, []
    for at in range(0, len(data), FRAME):
        events += client.receive(frame(0, 0, exchange.id, data[at : at + FRAME]))
    assert [type(each) for each in events] == [Ended]
