"""/readyz and /metrics render one Health."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest
from msgspec.structs import replace

from clustermesh.apiserver.health import Health, Scope, health_server


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def a_health(*waiting: str) -> Health:
    scopes = {"services": Scope(keys=3, pending=2, drift=1, errors=4)}
    return Health(
        cluster="alpha",
        leading=True,
        waiting=waiting,
        problems=("a.yaml: broken",),
        scopes=scopes,
        synced=True,
        objects=lambda: {"services": 7},
        drift={"Service": 8},
        identities=5,
        leases=6,
        source="folder /srv",
    )


async def test_readiness_says_what_it_waits_for_and_problems_do_not_hold_it_up() -> None:
    now = a_health("etcd: away")
    with health_server("127.0.0.1:0", lambda: now) as server:
        assert await asyncio.to_thread(fetch, server.port, "/readyz") == (
            503,
            "waiting: etcd: away\nproblem: a.yaml: broken\nsource: folder /srv\n",
        )
        now = replace(a_health(), objects=lambda: pytest.fail("a look at every service"))
        assert await asyncio.to_thread(fetch, server.port, "/readyz?verbose") == (
            200,
            "problem: a.yaml: broken\nsource: folder /srv\n",
        )


async def test_metrics_are_the_same_health() -> None:
    with health_server("127.0.0.1:0", a_health) as server:
        status, text = await asyncio.to_thread(fetch, server.port, "/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if "apiserver" in line and line[0] != "#")
    labels = '{scope="services",source_cluster="alpha"}'
    scope = '{scope="services/v1",source_cluster="alpha"}'
    found = {name.split("apiserver_")[-1]: float(value) for name, value in samples.items() if "propagation" not in name}
    assert found == {
        f"kvstore_sync_queue_size{scope}": 2,
        f"kvstore_sync_errors_total{scope}": 4,
        'kvstore_initial_sync_completed{action="write",scope="services/v1",source_cluster="alpha"}': 1,
        f"keys{labels}": 3,
        f"drift_total{labels}": 1,
        "problems": 1,
        'source{source="folder /srv"}': 1,
        'source_objects{kind="services"}': 7,
        'source_drift_total{kind="Service"}': 8,
        "ready": 1,
        "leader_election_master_status": 1,
        "identities": 5,
        "leases": 6,
    }
