"""/livez, /readyz and /metrics over a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from clustermesh import health
from clustermesh.errors import Refused
from clustermesh.health import HealthServer, Readiness, serve_health
from clustermesh.listen import parse_address


def free_port(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with closing(socket.socket(family)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read().decode()


async def test_nobody_is_asked_for_this_machines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no DNS yet, an answer is waited for, 20 s as it is usual."""
    asked: list[str] = []
    monkeypatch.setattr(socket, "getfqdn", lambda name="": asked.append(name) or name)
    port = free_port()
    async with serving(f":{port}"):
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/livez") == (200, "ok\n")
    assert asked == []


@asynccontextmanager
async def serving(address: str, readiness: Readiness = lambda: (True, "ok")) -> AsyncIterator[None]:
    registry = CollectorRegistry()
    Gauge("answer", "of everything", registry=registry).set(42)
    task = asyncio.create_task(serve_health(address, registry, readiness))
    host, port = parse_address(address)
    async with asyncio.timeout(20):
        while not task.done():
            try:
                (await asyncio.open_connection(host or "127.0.0.1", port))[1].close()
            except OSError:
                await asyncio.sleep(0.01)
            else:
                break
    try:
        if task.done():
            await task
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_a_host_both_families_are_answered() -> None:
    port = free_port()
    async with serving(f":{port}"):
        for host in ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
            assert await asyncio.to_thread(get, f"http://{host}:{port}/livez") == (200, "ok\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_every_path_says_what_it_is_for(host: str) -> None:
    if host == "[::1]":
        try:
            port = free_port(socket.AF_INET6, "::1")
        except OSError:
            pytest.skip("no IPv6 loopback on this machine")
    else:
        port = free_port()
    why = [""]
    async with serving(f"{host}:{port}", lambda: (not why[0], why[0] or "ok")):
        ask = lambda path: asyncio.to_thread(get, f"http://{host}:{port}{path}")  # noqa: E731
        assert await ask("/livez") == (200, "ok\n")
        assert await ask("/readyz?verbose") == (200, "ok\n")
        why[0] = "waiting for etcd"
        assert await ask("/readyz") == (503, "waiting for etcd\n")
        status, text = await ask("/metrics")
        assert status == 200
        assert "answer 42.0" in text
        status, text = await ask("/else")
        assert (status, "/livez, /readyz and /metrics" in text) == (404, True)


async def test_an_event_loop_that_is_stuck_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.05)
    port = free_port()
    async with serving(f"127.0.0.1:{port}"):
        found: list[tuple[int, str]] = []
        asking = threading.Thread(target=lambda: found.append(get(f"http://127.0.0.1:{port}/livez")))
        asking.start()
        asking.join(60)  # on the event loop: it cannot answer meanwhile
        assert found[0][0] == 503
        assert "has not answered" in found[0][1]


async def test_a_fault_in_what_is_shown_is_an_answer_and_the_next_question_is_answered() -> None:
    port, faults = free_port(), [KeyError("a bug")]

    def readiness() -> tuple[bool, str]:
        if faults:
            raise faults.pop()
        return True, "ok"

    async with serving(f"127.0.0.1:{port}", readiness):
        status, text = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/readyz")
        assert status == 500
        assert "see the log" in text
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{port}/readyz") == (200, "ok\n")


async def test_no_address_is_no_server() -> None:
    await serve_health("", CollectorRegistry(), lambda: (True, "ok"))


async def test_a_taken_address_is_refused_with_a_sentence() -> None:
    port = free_port()
    async with serving(f"127.0.0.1:{port}"):
        with pytest.raises(Refused, match=f"cannot listen on 127.0.0.1:{port}"):
            await serve_health(f"127.0.0.1:{port}", CollectorRegistry(), lambda: (True, "ok"))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, "a..b"])
async def test_a_host_that_is_none_is_refused_with_a_sentence(host: str) -> None:
    with pytest.raises(Refused, match="cannot listen on"):
        await serve_health(f"{host}:1", CollectorRegistry(), lambda: (True, "ok"))


async def test_port_0_is_any_free_port() -> None:
    with HealthServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, "ok")) as server:
        assert await asyncio.to_thread(get, f"http://127.0.0.1:{server.port}/livez") == (200, "ok\n")


async def test_a_name_that_is_no_utf8_is_spelled_out() -> None:
    port = free_port()
    async with serving(f"127.0.0.1:{port}", lambda: (False, "bad\udcff.yaml: is odd")):
        answer = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/readyz")
    assert answer == (503, "bad\\udcff.yaml: is odd\n")


async def test_others_have_their_turn_between_two_metrics_and_nothing_of_the_text_is_another() -> None:
    registry, done, seen = CollectorRegistry(), list[str](), list[str]()

    class Metrics(Collector):
        def collect(self) -> Iterator[Metric]:
            for name in ("one", "two", "three"):
                seen.extend(done)
                done.clear()
                asyncio.get_running_loop().call_soon(done.append, name)
                yield GaugeMetricFamily(name, "of everything", 42)

    registry.register(Metrics())
    many = Gauge("many", "of\nmany", ["number"], registry=registry)
    for number in range(1001):
        many.labels(str(number)).set(number)
    Counter("all", "of everything", ["kind"], registry=registry).labels("x").inc()
    done.clear()
    seen.clear()
    server = HealthServer("127.0.0.1:0", registry, lambda: (True, "ok"))
    _, _, told = await server._render("/metrics")
    assert seen == ["one", "two"]
    strip = lambda page: [line for line in page.splitlines() if b"_created" not in line]  # noqa: E731  # a time
    assert strip(told) == strip(generate_latest(registry))


def test_a_metric_of_many_samples_is_written_in_parts() -> None:
    many = Gauge("many", "of many", ["number"], registry=None)
    for number in range(1001):
        many.labels(str(number))
    (metric,) = many.collect()
    assert [page.count(b"many{") for page in health._pages(metric)] == [500, 500, 1]
