"""What each program exposes is what the table has, no more and no less, and the document is made of the table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Exposed

from agent.histograms import HOP_SECONDS, SECONDS
from agent.metrics import StatusCollector
from clustermesh.apiserver.health import Health, Scope
from clustermesh.apiserver.health import health_server as apiserver_health
from clustermesh.health import HealthServer
from clustermesh.joining.inviting import Answers
from clustermesh.metrics import PROGRAMS, Metric, document, make_registry
from clustermesh.mirror.health import CopyHealth, MirrorHealth
from clustermesh.mirror.health import health_server as mirror_health
from clustermesh.mirror.propagation import HOP_SECONDS as MIRROR_HOP_SECONDS
from clustermesh.mirror.propagation import SECONDS as MIRROR_SECONDS

_OF_THE_PROCESS = ("process_", "python_")


class _Status:
    """As `agent.status.Status` tells it, with one own cluster and one other."""

    def clusters(self) -> list[dict[str, object]]:
        row = dict.fromkeys(
            ("failures", "last_failure", "withdrawals", "nodes", "services", "endpoints", "identities", "waited"), 1
        )
        more = {"state": "fresh", "refused_by_reason": {"taken": 2}, "drift": {"nodes": 3}, "limits": {"nodes": (4, 5)}}
        return [{"name": name, "own": name == "alpha"} | row | more for name in ("alpha", "beta")]

    def targets(self) -> list[dict[str, object]]:
        return [{"name": "backends", "desired": 1, "pending": 0, "failed": 0, "drift": 2, "capacity": 9}]

    def counters(self) -> dict[str, int]:
        return {"connect": 5, "drop_no_backend": 2, "drop_clear_ingress": 1}

    conntrack = SimpleNamespace(met={("ipv4", "TCP", "established"): 4}, passes=2, collected=7)

    def evicted(self) -> dict[tuple[str, str], int]:
        return {("backend", "reset"): 3}

    def maps(self) -> list[dict[str, object]]:
        return [{"name": "ipcache", "entries": 1, "capacity": 4}]

    def not_ready(self) -> str:
        return ""

    def problems(self) -> list[object]:
        return []

    def global_services(self) -> int:
        return 6


def of_agent() -> list[Exposed]:
    registry = CollectorRegistry()
    registry.register(StatusCollector(_Status()))  # type: ignore[arg-type]
    SECONDS.labels("beta")
    HOP_SECONDS.labels("beta", "read")
    return [*registry.collect(), *SECONDS.collect(), *HOP_SECONDS.collect()]


def of_api_server() -> list[Exposed]:
    health = Health(
        cluster="alpha",
        leading=True,
        waiting=(),
        problems=(),
        scopes={"services": Scope(keys=1, pending=0, drift=0)},
        synced=True,
        objects=lambda: {"nodes": 1},
        drift={"Node": 0},
        identities=1,
        leases=1,
        source="folder",
    )
    return exposed(apiserver_health("127.0.0.1:0", lambda: health))


def of_mirror() -> list[Exposed]:
    copy = CopyHealth(
        copied={"services": True, "nodes": False},
        ready=True,
        failures=0,
        last_failure=0.0,
        withdrawals=0,
        entries={"nodes": 1},
        bytes=1,
        most_bytes=2,
        refused={},
    )
    health = MirrorHealth(
        cluster="alpha",
        leading=True,
        waiting=(),
        problems=(),
        clusters={"beta": copy},
        pending={"nodes": 0},
        drift={"nodes": 0},
        errors={"nodes": 0},
        leases=1,
    )
    MIRROR_SECONDS.labels("beta")
    MIRROR_HOP_SECONDS.labels("beta", "copy")
    return exposed(mirror_health("127.0.0.1:0", lambda: health))


def exposed(server: HealthServer) -> list[Exposed]:
    return [each for each in server.registry.collect() if not each.name.startswith(_OF_THE_PROCESS)]


def of_invitations() -> list[Exposed]:
    answers = Answers()
    answers.count(200)
    return [*answers.collect()]


FOUND = {
    "agent": of_agent,
    "apiserver": of_api_server,
    "kvstoremesh": of_mirror,
    "invitations": of_invitations,
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_exposed_is_what_the_table_has(program: str) -> None:
    table, found = PROGRAMS[program], FOUND[program]()
    assert sorted(name_of(each) for each in found) == sorted(table)
    for each in found:
        wanted = table[name_of(each)]
        assert each.type == wanted.kind
        assert each.documentation == wanted.says
        assert each.samples, each.name
        for sample in each.samples:
            assert set(sample.labels) - {"le"} == set(wanted.labels)


def name_of(found: Exposed) -> str:
    return f"{found.name}_total" if found.type == "counter" else found.name


def test_names_are_ciliums_or_begin_with_our_own() -> None:
    for table in PROGRAMS.values():
        assert all(name.startswith(("cilium_", "clustermesh_")) for name in table)


def test_the_document_is_made_of_the_table() -> None:
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text() == document() + "\n"


def test_a_sample_has_the_labels_of_its_metric_in_their_order() -> None:
    metric = Metric("clustermesh_x_total", "X", ("a", "b"))
    (sample,) = metric.family({("1", 2): 3}).samples
    assert (sample.name, sample.labels, sample.value) == ("clustermesh_x_total", {"a": "1", "b": "2"}, 3.0)


def test_a_registry_says_what_the_process_uses() -> None:
    assert "process_resident_memory_bytes" in {each.name for each in make_registry().collect()}
