"""One connection and the next one, with a server of the h2 package that does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from struct import Struct

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from ports import free_port

from clustermesh.errors import Unavailable
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient

PREFIX = Struct(">BI")
ANSWER = pb.RangeResponse(header=pb.ResponseHeader(cluster_id=1, revision=7), count=3).SerializeToString()


class Server(asyncio.Protocol):
    """Answers every request with ANSWER, but `silent` where it is told to be."""

    silent = False

    def __init__(self, all_of_them: list[Server]) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self.asked = 0
        all_of_them.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, events.StreamEnded):
                self.asked += 1
                if not self.silent:
                    self.answer(event.stream_id)
        self._flush()

    def answer(self, stream: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self._h2.send_data(stream, PREFIX.pack(0, len(ANSWER)) + ANSWER)
        self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def go_away(self) -> None:
        self._h2.close_connection(last_stream_id=(1 << 31) - 1)
        self._flush()

    def _flush(self) -> None:
        self.transport.write(self._h2.data_to_send())


@asynccontextmanager
async def serving(patience: float = 5.0) -> AsyncIterator[tuple[EtcdClient, list[Server]]]:
    served: list[Server] = []
    server = await asyncio.get_running_loop().create_server(lambda: Server(served), "127.0.0.1", 0)
    async with (
        server,
        EtcdClient([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"], timeout=patience) as client,
    ):
        yield client, served
        for each in served:
            each.transport.abort()


async def until_asked(served: list[Server]) -> None:
    while not any(each.asked for each in served):
        await asyncio.sleep(0.01)


async def test_calls_share_a_connection() -> None:
    async with serving() as (client, served):
        assert await asyncio.gather(*(client.count(b"") for _ in range(50))) == [3] * 50
    assert [each.asked for each in served] == [50]


@pytest.mark.parametrize("end", [Server.go_away, lambda server: server.transport.close()], ids=["goaway", "closed"])
async def test_a_connection_that_the_server_ends_between_two_calls_costs_none(end) -> None:
    async with serving() as (client, served):
        for _ in range(3):
            assert await client.count(b"") == 3
            end(served[-1])
            while client._dialer._current.channel.usable:  # it is not heard of yet
                await asyncio.sleep(0.01)
    assert [each.asked for each in served] == [1, 1, 1]


async def test_a_call_under_way_fails_with_its_connection_and_the_next_one_dials(monkeypatch) -> None:
    async with serving() as (client, served):
        monkeypatch.setattr(Server, "silent", True)
        asking = asyncio.create_task(client.count(b""))
        await until_asked(served)
        served[0].transport.abort()
        with pytest.raises(Unavailable, match=r"connection closed by the server|reset"):
            await asking
        monkeypatch.setattr(Server, "silent", False)
        assert await client.count(b"") == 3


async def test_no_answer_in_time_is_said_and_another_connection_tried(monkeypatch) -> None:
    async with serving(3.0) as (client, served):
        monkeypatch.setattr(Server, "silent", True)
        with pytest.raises(Unavailable, match="gave no answer in time"):
            await client.count(b"")
        monkeypatch.setattr(Server, "silent", False)
        assert await client.count(b"") == 3
    assert len(served) == 2


async def test_who_greets_nobody_is_no_connection() -> None:
    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_us.append(writer)

    with_us: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(never, "127.0.0.1", 0)
    where = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, EtcdClient([where], timeout=0.1) as client:
        with pytest.raises(Unavailable, match=r"no connection within 0\.1 s"):
            await client.count(b"")
        for writer in with_us:
            writer.transport.abort()


async def test_where_nobody_listens_it_is_said_at_once() -> None:
    async with EtcdClient([f"http://127.0.0.1:{free_port()}"], timeout=60.0) as client:
        with pytest.raises(Unavailable, match=r"etcd at http://127.0.0.1:\d+: Connect call failed"):
            await client.count(b"")


async def test_a_call_that_is_cancelled_leaves_the_connection_to_the_others(monkeypatch) -> None:
    async with serving() as (client, served):
        monkeypatch.setattr(Server, "silent", True)
        asking = asyncio.create_task(client.count(b""))
        await until_asked(served)
        asking.cancel()
        await asyncio.wait([asking])
        monkeypatch.setattr(Server, "silent", False)
        assert await client.count(b"") == 3
    assert asking.cancelled()
    assert len(served) == 1
