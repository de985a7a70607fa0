"""What a load balancer is told over HTTP, by who it asks for and by what becomes of the port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import pytest
from fake_kernel import NODE, Bed

from agent import health_checks
from agent.domains.services import HealthCheck
from agent.health_checks import HealthChecks
from clustermesh.address import parse
from clustermesh.model import BackendDetail, BackendState, LocalService, Outside, Port, Protocol, Service

WEB, API = ("shop", "web"), ("shop", "api")


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port: int = taken.getsockname()[1]
        return port


@asynccontextmanager
async def running(checks: HealthChecks) -> AsyncIterator[None]:
    task = asyncio.create_task(checks.keep())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_it_listens(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def ask(
    port: int, request: bytes = b"GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n", host: str = "127.0.0.1"
) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("ready", "status"), [(0, b"503 Service Unavailable"), (3, b"200 OK")])
async def test_it_is_told_how_many_backends_are_here(ready: int, status: bytes, host: str) -> None:
    port = free_port()
    async with running(HealthChecks({WEB: HealthCheck(port, ready)}, {})):
        await until_it_listens(port)
        head, _, body = (await ask(port, host=host)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert f"X-Load-Balancing-Endpoint-Weight: {ready}".encode() in head
    assert json.loads(body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": ready,
        "serviceProxyHealthy": True,
    }


async def test_a_port_is_listened_on_as_long_as_it_is_asked_for() -> None:
    wanted, port = {WEB: HealthCheck(free_port(), 1)}, free_port()
    checks = HealthChecks(wanted, {})
    async with running(checks):
        await until_it_listens(wanted[WEB].port)
        before, wanted[WEB] = wanted[WEB].port, HealthCheck(port, 1)
        checks.look()
        await until_it_listens(port)
        with pytest.raises(OSError, match="Connect call failed"):
            await ask(before)
    with pytest.raises(OSError, match="Connect call failed"):
        await ask(port)


async def test_a_port_that_is_taken_is_said_and_had_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "_RETRY", 0.05)
    problems: dict[tuple[str, str], str] = {}
    other = socket.create_server(("0.0.0.0", 0))
    port = other.getsockname()[1]
    async with running(HealthChecks({WEB: HealthCheck(port, 1)}, problems)):
        async with asyncio.timeout(10):
            while not problems:
                await asyncio.sleep(0.01)
        assert f"health check port {port} cannot be listened on" in problems[WEB]
        other.close()
        async with asyncio.timeout(10):
            while problems:
                await asyncio.sleep(0.01)
        assert b"200 OK" in await ask(port)


async def test_many_silent_ones_of_one_address_keep_nobody_else_out() -> None:
    """Only who holds most places loses any."""
    port = free_port()
    async with running(HealthChecks({WEB: HealthCheck(port, 1)}, {})):
        await until_it_listens(port)
        silent = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(200)]
        for _ in range(3):
            assert b"200 OK" in await ask(port)
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("request_", [b"", b"\0" * 100_000 + b"\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000])
async def test_whoever_asks_for_nothing_is_hung_up_on(request_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "_PATIENCE", 0.1)
    port = free_port()
    async with running(HealthChecks({WEB: HealthCheck(port, 1)}, {})):
        await until_it_listens(port)
        with suppress(ConnectionResetError):
            assert await ask(port, request_) == b""
        assert b"200 OK" in await ask(port)


async def test_for_more_than_a_load_balancer_needs_the_first_are_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "_MOST_ASKING", 1)
    port = free_port()
    async with running(HealthChecks({WEB: HealthCheck(port, 1)}, {})):
        await until_it_listens(port)
        await asyncio.sleep(0.05)
        reader, first = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        assert b"200 OK" in await ask(port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        first.close()


async def test_the_ready_backends_of_this_node_are_counted_of_services_with_the_policy_local() -> None:
    bed, told = Bed(), list[None]()
    bed.domains.services.on_health_check = lambda: told.append(None)
    ports = {"http": Port(protocol=Protocol.TCP, port=80)}
    ips = [parse(f"10.1.1.{number}") for number in range(1, 5)]
    service = Service(
        cluster="alpha",
        cluster_id=1,
        namespace="shop",
        name="web",
        frontends={parse("10.96.0.9"): ports},
        backends=dict.fromkeys(ips, ports),
    )
    states = (BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING)
    details = {ip: BackendDetail(node=NODE, state=state) for ip, state in zip(ips, states, strict=False)}
    details[ips[3]] = BackendDetail(node="n2")
    details[parse("fd00::1")] = BackendDetail(node=NODE)  # of a pod that has an IPv4 address as well
    outside = Outside(local_only=True, health_check_port=32000)
    for said, expected in ((outside, {WEB: HealthCheck(32000, 2)}), (Outside(), {})):
        local = LocalService(service=service, details=details, outside=said)
        bed.say("alpha", "local_services", WEB, local)
        await bed.step()
        assert bed.domains.services.health_checks == expected
    assert len(told) == 2, "once for each change"
