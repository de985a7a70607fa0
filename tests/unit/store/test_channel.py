"""One connection and the next one, with a server of the h2 package that does what it is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from struct import Struct

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from ports import free_port

from clustermesh.errors import Unavailable
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.channel import PING_AFTER, PING_PATIENCE, Channel, try_out
from clustermesh.store.client import EtcdClient
from clustermesh.store.endpoint import parse
from clustermesh.store.faults import NobodyListens
from clustermesh.store.http2 import Http2

PREFIX = Struct(">BI")
ANSWER = pb.RangeResponse(header=pb.ResponseHeader(cluster_id=1, revision=7), count=3).SerializeToString()


class Server(asyncio.Protocol):
    """Answers every request with ANSWER, but `silent` where it is told to be."""

    silent = False

    def __init__(self, all_of_them: list[Server]) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self.asked, self.pinged = 0, False
        self.given_up: list[int] = []
        all_of_them.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            self.pinged |= isinstance(event, events.PingReceived)
            if isinstance(event, events.StreamReset):
                self.given_up.append(event.stream_id)
            if isinstance(event, events.StreamEnded):
                self.asked += 1
                if not self.silent:
                    self.answer(event.stream_id)
        self.flush()

    def answer(self, stream: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self._h2.send_data(stream, PREFIX.pack(0, len(ANSWER)) + ANSWER)
        self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def end(self, stream: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    def begin_answer(self, stream: int, size: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        self._h2.send_data(stream, PREFIX.pack(0, size))
        self.flush()

    def go_on(self, stream: int, size: int, *, ends: bool) -> None:
        """There is room for it, if not at once."""
        while size and (room := min(size, 1 << 14, self._h2.local_flow_control_window(stream))):
            self._h2.send_data(stream, bytes(room))
            size -= room
        if ends and not size:
            self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        self.flush()
        if size:
            asyncio.get_running_loop().call_later(0.001, partial(self.go_on, stream, size, ends=ends))

    def limit(self, calls: int) -> None:
        self._h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: calls})
        self.flush()

    def go_away(self) -> None:
        self._h2.close_connection(last_stream_id=(1 << 31) - 1)
        self.flush()

    def flush(self) -> None:
        self.transport.write(self._h2.data_to_send())


@asynccontextmanager
async def serving(patience: float = 5.0, port: int = 0) -> AsyncIterator[tuple[EtcdClient, list[Server]]]:
    served: list[Server] = []
    server = await asyncio.get_running_loop().create_server(lambda: Server(served), "127.0.0.1", port)
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


@pytest.mark.long
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


@asynccontextmanager
async def call_under_way(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[asyncio.Task[int], Server, Channel]]:
    """Nothing has been heard for longer than a ping and its answer take."""
    async with serving() as (client, served):
        monkeypatch.setattr(Server, "silent", True)
        asking = asyncio.create_task(client.count(b""))
        await until_asked(served)
        channel = client._dialer._current.channel
        channel._heard -= 2 * (PING_AFTER + PING_PATIENCE)
        channel._look()
        yield asking, served[0], channel


async def test_an_answer_to_a_ping_is_waited_for_however_long_it_was_quiet_before(monkeypatch) -> None:
    async with call_under_way(monkeypatch) as (asking, server, _):
        while not server.pinged:
            await asyncio.sleep(0)
        server.answer(1)
        server.flush()
        assert await asking == 3


async def test_a_ping_without_an_answer_is_the_end_of_the_connection(monkeypatch) -> None:
    async with call_under_way(monkeypatch) as (asking, server, channel):
        server.transport.pause_reading()
        channel._pinged -= PING_PATIENCE
        channel._look()
        with pytest.raises(Unavailable, match="no answer to a ping"):
            await asking


async def test_who_waits_for_room_goes_on_when_another_call_is_given_up() -> None:
    async with serving() as (client, served):
        assert await client.count(b"") == 3
        channel = client._dialer._current.channel
        served[0].limit(1)
        while channel._http2._most != 1:
            await asyncio.sleep(0)
        first, second = [await channel.stream("/x", (), 5.0) for _ in range(2)]
        second.send(b"x")
        waiting = asyncio.create_task(second.sent())
        await asyncio.sleep(0)
        assert not waiting.done()
        served[0].transport.pause_reading()  # and says nothing
        first.cancel()
        await asyncio.wait_for(waiting, 5.0)


@contextmanager
def swallows_what_knocks(port: int) -> Iterator[str]:
    """An address where nobody says yes or no: its queue is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.2", port))
        full.listen(0)
        for _ in range(4):
            knocks = stack.enter_context(socket.socket())
            knocks.setblocking(False)
            with suppress(BlockingIOError):
                knocks.connect(("127.0.0.2", port))
        yield "127.0.0.2"


def addresses(*hosts: str) -> Callable[..., Awaitable[list[object]]]:
    """What a resolver says of every name."""

    async def resolve(_host: str, port: int, **_: object) -> list[object]:
        families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts]
        return [(each, socket.SOCK_STREAM, 6, "", (host, port)) for each, host in zip(families, hosts, strict=True)]

    return resolve


async def test_a_name_whose_first_address_swallows_all_is_reached_at_its_next(monkeypatch) -> None:
    port = free_port()  # at every address: what the kernel gives may be somebody's at another one
    async with serving(port=port):
        with swallows_what_knocks(port) as silent:
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses(silent, "127.0.0.1"))
            assert await try_out(parse(f"http://etcd.example:{port}"), "etcd.example", None, 5.0) is None


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
async def test_nobody_listens_where_each_address_of_a_name_refuses(monkeypatch, hosts: list[str]) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses(*hosts))
    error = await try_out(parse(f"http://etcd.example:{free_port()}"), "etcd.example", None, 5.0)
    assert isinstance(error, NobodyListens), error


@pytest.mark.parametrize("address", ["a\0b", "a" * 64, "a..b"])
async def test_an_address_that_is_none_is_said(address: str) -> None:
    error = await try_out(parse("http://etcd.example"), address, None, 60.0)
    assert str(error).startswith("etcd at http://etcd.example:2379: ")


async def test_a_call_that_is_cancelled_leaves_the_connection_to_the_others(monkeypatch) -> None:
    async with serving() as (client, served):
        monkeypatch.setattr(Server, "silent", True)
        asking = asyncio.create_task(client.count(b""))
        await until_asked(served)
        asking.cancel()
        await asyncio.wait([asking])
        monkeypatch.setattr(Server, "silent", False)
        assert await client.count(b"") == 3
        assert served[0].given_up == [1]
    assert asking.cancelled()
    assert len(served) == 1


async def until_an_answer_has_begun(
    monkeypatch: pytest.MonkeyPatch, client: EtcdClient, served: list[Server]
) -> tuple[asyncio.Task[int], Http2]:
    """A large one, which room was lent to: who waits for it, and its connection."""
    monkeypatch.setattr(Server, "silent", True)
    asking = asyncio.create_task(client.count(b""))
    await until_asked(served)
    http2 = client._dialer._current.channel._http2
    served[0].begin_answer(1, 1 << 20)
    while not http2._room.lent:
        await asyncio.sleep(0)
    return asking, http2


@pytest.mark.parametrize("stage", ["begun", "whole", "ended"])
async def test_a_call_that_is_given_up_gives_back_the_room_that_its_answer_had(monkeypatch, stage: str) -> None:
    async with serving() as (client, served):
        asking, http2 = await until_an_answer_has_begun(monkeypatch, client, served)
        if stage != "begun":
            served[0].go_on(1, 1 << 20, ends=stage == "ended")
            while http2.busy and http2._open[1].begun:
                await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert http2._room.lent == 0


async def test_the_error_of_a_broken_connection_keeps_nothing_of_what_came(monkeypatch) -> None:
    async with serving() as (client, served):
        asking, http2 = await until_an_answer_has_begun(monkeypatch, client, served)
        exchange = http2._open[1]
        assert exchange.incoming
        served[0].transport.abort()
        with pytest.raises(Unavailable):
            await asking
        assert not exchange.incoming


async def test_no_answer_is_none_whatever_its_status(monkeypatch) -> None:
    monkeypatch.setattr(Server, "answer", Server.end)
    async with serving() as (client, _):
        with pytest.raises(Unavailable, match="it answered nothing"):
            await client.count(b"")


async def test_who_does_not_read_what_we_say_is_not_heard_either() -> None:
    """Else each of its pings would be an answer that waits here."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\x06\4\0\0\0\0\0" + b"\0\4\x7f\xff\xff\xff" + b"\0\0\4\x08\0\0\0\0\0\x7f\0\0\0")
        await reads.wait()
        with suppress(ConnectionResetError):
            while await reader.read(1 << 20):
                pass
        writer.transport.abort()
        over.set()

    reads, over = asyncio.Event(), asyncio.Event()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    where = parse(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    async with listening:
        channel = Channel(where, where.host, None)
        call = await channel.stream("/x", (), 5.0)
        call.send(bytes(32 << 20))
        while channel._http2._open[1].outgoing:
            await asyncio.sleep(0)
        assert not channel._transport.is_reading()
        reads.set()
        while not channel._transport.is_reading():
            await asyncio.sleep(0)
        await channel.close()
        await over.wait()
        await asyncio.sleep(0)


async def test_the_others_have_their_turn_however_much_a_server_says() -> None:
    assert len(Channel(parse("http://a"), "a", None).get_buffer(1 << 18)) <= 1 << 15
