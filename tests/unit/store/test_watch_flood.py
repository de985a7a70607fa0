"""A server that floods one watch."""

from __future__ import annotations

import asyncio
import struct
import weakref
from contextlib import suppress

import pytest

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.store import methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.parts import MOST_FIELDS
from clustermesh.store.silence import Silence
from clustermesh.store.watch import open_watch

HEADER = pb.ResponseHeader(cluster_id=1, revision=7)
CREATED = pb.WatchResponse(header=HEADER, created=True).SerializeToString()
PROGRESS = pb.WatchResponse(header=HEADER).SerializeToString()
EVENT = pb.WatchResponse(header=HEADER, events=[pb.Event(kv=pb.KeyValue(key=b"k", mod_revision=7))]).SerializeToString()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


async def end_of_watch(message: bytes, times: int) -> tuple[int, ClusterMeshError]:
    """How many messages were read of a watch that says `message` so many times, and with what it ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(4, 0, 0))
        await reader.readuntil(b"Watch/Watch")
        said = b"".join(struct.pack(">BI", 0, len(each)) + each for each in [CREATED, *[message] * times])
        for at in range(0, len(said), 1 << 14):
            writer.write(frame(0, 0, 1, said[at : at + (1 << 14)]))
        writer.write(frame(3, 0, 1, struct.pack(">I", 7)))
        with suppress(ConnectionResetError):
            while await reader.read(1 << 16):
                pass
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    where, count = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 0
    async with (
        server,
        EtcdClient([where], timeout=10.0) as client,
        open_watch(client, b"k", 1, Silence(10.0)) as watch,
    ):
        try:
            while True:
                await watch.read()
                count += 1
        except ClusterMeshError as e:
            return count, e


async def test_a_watch_that_is_flooded_with_what_tells_nothing_ends() -> None:
    count, error = await end_of_watch(PROGRESS, 5_000)
    assert count < 1500
    assert "tells of no change" in str(error)


async def test_a_watch_that_tells_of_many_changes_goes_on() -> None:
    count, error = await end_of_watch(EVENT, 5_000)
    assert count == 5_001
    assert isinstance(error, Unavailable)
    assert "tells of no change" not in str(error)


@pytest.mark.long
async def test_a_message_of_countless_changes_is_read_in_parts_of_few() -> None:
    changes = 1_000_000
    count, _ = await end_of_watch(PROGRESS + b"\x5a\0" * changes, 1)
    assert count == 1 + -(-(changes + 1) // MOST_FIELDS)


@pytest.mark.parametrize(
    "field", [b"\x5a\0", b"\x5a\1x", b"\x08\1", b"\x0d\0\0\0\0", b"\x09" + bytes(8), b"\xa0\x06\0"]
)
def test_fields_are_counted_however_they_are_written(field: bytes) -> None:
    assert not methods._is_crowded(field * methods.MOST_FIELDS)
    assert methods._is_crowded(field * (methods.MOST_FIELDS + 1))


class Data(bytearray):
    """One whose end can be noticed."""


@pytest.mark.parametrize("said", [b"\xff", b"\x5a\0" * (methods.MOST_FIELDS + 1)], ids=["garbage", "crowded"])
def test_the_error_of_what_is_no_answer_does_not_keep_it(said: bytes) -> None:
    data = [Data(said)]
    kept = weakref.ref(data[0])
    with pytest.raises(ClusterMeshError):
        methods.decode(methods.WATCH, data.pop())
    assert kept() is None


@pytest.mark.parametrize("garbage", [b"\xff", b"\x5a\xff\xff\xff\xff\x7f", b"\x5a", b"x"])
def test_garbage_is_left_to_who_decodes(garbage: bytes) -> None:
    methods._is_crowded(garbage + bytes(3 * methods.MOST_FIELDS))
    methods._is_crowded(b"\x5a\x80\x80\x20" + bytes(1 << 19) + garbage)
