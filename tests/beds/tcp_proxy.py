"""A TCP proxy on the loopback that can drop, refuse and freeze connections: the bad network between client and etcd."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Self

from clustermesh.store.endpoint import parse
from clustermesh.store.local import LocalEtcd


def port_of(etcd: LocalEtcd) -> int:
    return parse(etcd.endpoints[0]).port


class TcpProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target_port`. Frozen connections stay open and carry nothing."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.accepted = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._ration = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def cut(self) -> None:
        """Drop every connection; new ones are taken."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def refuse(self) -> None:
        """Drop every connection, and new ones as they come."""
        self._refusing = True
        await self.cut()

    def freeze(self) -> None:
        """Carry nothing until healed; new connections are taken, and hang."""
        self._flowing.clear()

    def strand(self) -> None:
        """Carry nothing of the connections there are, ever, as a NAT that forgot them; new ones work."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def ration(self, size: int) -> None:
        """Let every connection from now on carry so many bytes from the server, and drop it there."""
        self._ration = size
        await self.cut()

    def heal(self) -> None:
        self._refusing = False
        self._ration = 0
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.accepted += 1
        try:
            if not self._refusing:
                await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # dropped: by us, or by one of the two ends
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        flowing, left = self._flowing, self._ration or sys.maxsize
        try:
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._pump(reader, far_writer, flowing))
                both_ways.create_task(self._pump(far_reader, writer, flowing, left))
        except* (OSError, EOFError):
            pass  # one direction ended, and with it the other
        finally:
            far_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flowing: asyncio.Event,
        left: int = sys.maxsize,
    ) -> None:
        while left and (data := await reader.read(min(left, 1 << 16))):
            await flowing.wait()
            left -= len(data)
            writer.write(data)
            with suppress(ConnectionResetError):
                await writer.drain()
        raise EOFError
