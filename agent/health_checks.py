"""What load balancers ask each node (`healthCheckNodePort`): whether a service with the external policy Local has
backends here. Answered as kube-proxy answers: 200 and how many, 503 where there is none.

A port is listened on while a service asks for it. One that cannot be had is that service's problem, and tried again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Never, cast

from agent.domains.services import HealthCheck

Name = tuple[str, str]

_RETRY: Final = 10.0  # seconds between tries to listen on a port that somebody else has
_PATIENCE: Final = 5.0  # seconds that who asks has for it
_MOST_ASKING: Final = 64  # at once, at one port: for one more, who holds most places loses that of his longest waiting
_LONGEST: Final = 8192  # bytes of a request


class HealthChecks:
    """`wanted` is what each service asks for; call `look` when it has changed."""

    def __init__(self, wanted: Mapping[Name, HealthCheck], problems: dict[Name, str]) -> None:
        self._wanted, self._problems = wanted, problems
        self._servers: dict[int, asyncio.Server] = {}
        self._asking: dict[int, dict[asyncio.Task[None], str]] = {}  # by port, whose address each is, the first first
        self._changed = asyncio.Event()

    def look(self) -> None:
        self._changed.set()

    async def keep(self) -> Never:
        """Never returns; cancelled, it listens no more."""
        try:
            while True:
                self._changed.clear()
                await self._listen()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY if self._problems else None):
                        await self._changed.wait()
        finally:
            for server in self._servers.values():
                server.close()

    async def _listen(self) -> None:
        by_port = self._by_port()
        for port in self._servers.keys() - by_port.keys():
            self._servers.pop(port).close()
        found = dict[Name, str]()
        for port, name in by_port.items():
            if port not in self._servers:
                try:
                    self._servers[port] = await asyncio.start_server(partial(self._answer, port), None, port)
                except OSError as e:
                    found[name] = f"its health check port {port} cannot be listened on: {e.strerror or e}"
        self._problems.clear()
        self._problems.update(found)

    def _by_port(self) -> dict[int, Name]:
        return {check.port: name for name, check in sorted(self._wanted.items(), reverse=True)}

    async def _answer(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asking, task = self._asking.setdefault(port, {}), cast("asyncio.Task[None]", asyncio.current_task())
        if len(asking) >= _MOST_ASKING:
            self._make_room(asking)
        asking[task] = writer.get_extra_info("peername", ("",))[0]
        try:
            async with asyncio.timeout(_PATIENCE):
                await _read_request(reader)
                writer.write(self._reply(port))
                await writer.drain()
        except (OSError, TimeoutError, ValueError, EOFError):  # who asked has left, or asked for nothing
            pass
        finally:
            asking.pop(task, None)
            writer.close()

    def _make_room(self, asking: dict[asyncio.Task[None], str]) -> None:
        places = Counter(asking.values())
        most = max(places.values())
        task = next(task for task, source in asking.items() if places[source] == most)
        del asking[task]
        task.cancel()

    def _reply(self, port: int) -> bytes:
        name = self._by_port().get(port)
        ready = 0 if name is None else self._wanted[name].ready
        service = {} if name is None else {"namespace": name[0], "name": name[1]}
        body = json.dumps({"service": service, "localEndpoints": ready, "serviceProxyHealthy": True}).encode()
        head = (
            f"HTTP/1.1 {'200 OK' if ready else '503 Service Unavailable'}",
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
            f"X-Load-Balancing-Endpoint-Weight: {ready}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def _read_request(reader: asyncio.StreamReader) -> None:
    """Up to its empty line, whatever it asks for. ValueError where it has none in sight."""
    size = 0
    while (line := await reader.readline()).strip():
        size += len(line)
        if size > _LONGEST:
            raise ValueError("too long")
    if not line:
        raise EOFError
