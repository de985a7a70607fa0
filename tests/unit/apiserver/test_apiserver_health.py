"""/livez, /readyz and /metrics render one Health, and say so when the event loop is stuck."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request

import pytest

from clustermesh.apiserver import health as module
from clustermesh.apiserver.health import Health, HealthServer, Scope, parse_address
from clustermesh.errors import Invalid, Unavailable


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def a_health(*waiting: str) -> Health:
    scopes = {"services": Scope(keys=3, pending=2, drift=1)}
    return Health(
        cluster="alpha",
        waiting=waiting,
        problems=("a.yaml: broken",),
        scopes=scopes,
        synced=True,
        errors=4,
        identities=5,
        leases=6,
    )


async def test_readiness_says_what_it_waits_for_and_problems_do_not_hold_it_up() -> None:
    now = a_health("etcd: away")
    with HealthServer("127.0.0.1:0", lambda: now) as server:
        assert await asyncio.to_thread(fetch, server.port, "/readyz") == (
            503,
            "waiting: etcd: away\nproblem: a.yaml: broken\n",
        )
        now = a_health()
        assert await asyncio.to_thread(fetch, server.port, "/readyz?verbose") == (200, "problem: a.yaml: broken\n")


async def test_metrics_are_the_same_health() -> None:
    with HealthServer("127.0.0.1:0", a_health) as server:
        status, text = await asyncio.to_thread(fetch, server.port, "/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    prefix, labels = "clustermesh_apiserver_", '{scope="services",source_cluster="alpha"}'
    assert {name.removeprefix(prefix): float(value) for name, value in samples.items()} == {
        f"kvstore_sync_queue_size{labels}": 2,
        f"keys{labels}": 3,
        f"drift_total{labels}": 1,
        'kvstore_initial_sync_completed{action="write",scope="services",source_cluster="alpha"}': 1,
        "kvstore_sync_errors_total": 4,
        "problems": 1,
        "ready": 1,
        "identities": 5,
        "leases": 6,
    }


async def test_a_stuck_event_loop_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with HealthServer("127.0.0.1:0", a_health) as server:
        asked = asyncio.get_running_loop().run_in_executor(None, fetch, server.port, "/livez")
        time.sleep(1.0)  # noqa: ASYNC251  # stuck, as the test wants it
        status, text = await asked
        assert (status, "has not answered" in text) == (503, True)
        assert await asyncio.to_thread(fetch, server.port, "/livez") == (200, "ok\n")


async def test_an_address_that_is_taken_is_said() -> None:
    with (
        HealthServer("127.0.0.1:0", a_health) as server,
        pytest.raises(Unavailable, match="cannot listen on 127"),
        HealthServer(f"127.0.0.1:{server.port}", a_health),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "parsed"), [("127.0.0.1:9880", ("127.0.0.1", 9880)), ("[::1]:0", ("::1", 0)), (":80", ("", 80))]
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize("text", ["", "127.0.0.1", "host:", "host:x", "host:70000"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(Invalid, match="must be HOST:PORT"):
        parse_address(text)
