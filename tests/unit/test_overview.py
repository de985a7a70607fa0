"""What `clustermesh status` says of a whole cluster, from what its agents report."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.folder import initialise
from certs.names import cluster_leaves
from clustermesh import overview as overview_module
from clustermesh.errors import Unavailable
from clustermesh.mesh.authority import Limits
from clustermesh.overview import ControlPlane, age_of_beat, decode_api_server, decode_report, summarise
from clustermesh.standalone import context as contexts
from clustermesh.standalone.context import Context
from clustermesh.wire import api_server_report, mirror_report
from clustermesh.wire.agent_report import AgentReport, SeenCluster
from clustermesh.wire.api_server_report import ApiServerReport
from clustermesh.wire.mirror_report import MirrorReport


def report(own: str = "fresh", beta: str | None = "fresh", **changes: Any) -> AgentReport:
    clusters = [SeenCluster("alpha", own, 1, 1.0)] + ([SeenCluster("beta", beta, 2, 1.0)] if beta else [])
    return msgspec.structs.replace(AgentReport("0.1.0", "", (), tuple(clusters)), **changes)


def overview(reports: dict[str, AgentReport], nodes: set[str] | None = None, **more: Any) -> Any:
    known = set(reports) if nodes is None else nodes
    return summarise("alpha", 1, known, reports, ["beta"], ControlPlane(**more))


def test_all_is_well_when_every_node_sees_every_cluster_fresh() -> None:
    found = overview({"n1": report(), "n2": report()})
    assert found["ok"]
    assert found["errors"] == []
    assert found["nodes"] == {"total": 2, "reporting": 2, "ready": 2}
    assert (found["clusters"]["beta"]["configured"], found["clusters"]["beta"]["connected"]) == (2, 2)


def test_each_fault_is_one_sentence_with_its_node_and_what_to_do() -> None:
    for reports, sentence, remedy in (
        ({"n1": report(not_ready="no device")}, "node n1: not ready: no device", "see `clustermesh node status` there"),
        ({"n1": report(problems=("map full; buy more",))}, "node n1: map full", "buy more"),
        ({"n1": report(beta="stale")}, "node n1: cluster beta is stale", "is its etcd up"),
        ({"n1": report(beta="evicted")}, "node n1: cluster beta is evicted", "disconnect it"),
        (
            {"n1": report(beta=None)},
            "node n1: does not know cluster beta yet",
            "folder, or Secret, by now?",
        ),
        ({"n1": report(own="stale")}, "node n1: cluster alpha is stale", "is its etcd up"),
    ):
        found = overview(reports)
        (error,) = found["errors"]
        assert error.startswith(sentence)
        assert remedy in error
        assert not found["ok"]


def test_a_fault_that_many_nodes_have_is_one_line() -> None:
    reports = {f"n{number:04}": report(beta="stale") for number in range(5000)}
    (error,) = overview(reports)["errors"]
    assert error.startswith("5000 nodes (n0000, n0001, n0002, …): cluster beta is stale")


def test_a_node_that_does_not_report_and_an_api_server_that_does_not_publish_are_errors() -> None:
    errors = overview({"n1": report()}, {"n1", "n2"}, published=False)["errors"]
    assert errors == [
        "the API server of alpha has not published: run `clustermesh apiserver`",
        "node n2: its agent does not report: start it there, its log says why it ended",
    ]


@pytest.mark.parametrize(("since", "silent"), [(0, False), (75, False), (76, True), (None, False)])
def test_an_api_server_that_stopped_beating_is_an_error_with_the_age_of_its_last_beat(
    since: int | None, silent: bool
) -> None:
    found = overview({"n1": report()}, last_beat=since)
    assert (found["last_beat"], found["api_server"], found["ok"]) == (since, not silent, not silent)
    if silent:
        assert found["errors"] == [
            "the API server of alpha has not written for 76 s: is `clustermesh apiserver` running, and do the clocks "
            "of its machine and this one agree?"
        ]


@pytest.mark.parametrize(
    ("value", "age"),
    [(b"2026-01-31T23:59:59Z", 61), (b"2026-02-01T00:02:00Z", 0), (b"now", None), (b"\xff", None)],
)
def test_the_age_of_a_beat_is_what_its_writer_says(value: bytes, age: int | None) -> None:
    assert age_of_beat(value, datetime(2026, 2, 1, 0, 1, tzinfo=UTC).timestamp()) == age


def test_an_alarm_of_etcd_is_an_error() -> None:
    (error,) = overview({"n1": report()}, alarms=("memberID:1 alarm:CORRUPT ",))["errors"]
    assert "alarm:CORRUPT" in error
    assert "docs/failures.md" in error


def test_what_the_api_server_does_not_act_on_is_an_error() -> None:
    (error,) = overview({"n1": report()}, unacted=("users.yaml: users[0].role: must be remote",))["errors"]
    assert error.startswith("API server: users.yaml: users[0].role: must be remote; correct it")
    passing = f"Kubernetes API: watch nodes: 429 TooManyRequests; {api_server_report.TRIED_AGAIN}"
    assert overview({"n1": report()}, unacted=(passing,))["errors"] == [f"API server: {passing}"]
    many = ApiServerReport(tuple(f"problem {n}" for n in range(23)), "folder /srv")
    told = decode_api_server(api_server_report.encode(many))
    assert told.problems[-1].startswith("and 3 more")
    assert told.source == "folder /srv"
    assert len(decode_api_server(b"[").problems) == 1
    assert decode_api_server(b'{"v":1,"problems":["x"]}') == ApiServerReport(("x",)), "of a release before"


def test_an_agent_whose_node_is_gone_is_not_counted_among_the_nodes() -> None:
    found = overview({"n1": report(), "gone": report()}, {"n1"})
    assert found["nodes"] == {"total": 1, "reporting": 1, "ready": 1}
    assert found["clusters"]["beta"]["connected"] == 1


def test_a_report_that_cannot_be_read_is_a_fault_of_its_node() -> None:
    found = overview({"n1": decode_report(b"[]")})
    assert found["nodes"] == {"total": 1, "reporting": 1, "ready": 0}
    assert "cannot be read" in found["errors"][0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ready", "problems", "clusters", "name", "state", "since", "v", "errors"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=40), json_values.map(lambda v: json.dumps(v).encode())))
def test_any_value_in_etcd_is_a_status_or_a_problem(value: bytes) -> None:
    found = overview({"n1": decode_report(value)})
    assert isinstance(found["ok"], bool)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Context]:
    """Call with a port: a cluster whose etcd is to be there, and is not waited for long."""
    monkeypatch.setattr(overview_module, "FIRST_ANSWER", 0.2)

    def make(port: int) -> Context:
        made = contexts.create(tmp_path / "alpha", "alpha", 1, f"https://127.0.0.1:{port}")
        initialise(made.certs, cluster_leaves(made.name, [made.address.host]), datetime.now(UTC))
        return made

    return make


@pytest.mark.parametrize(
    ("listening", "remedy"),
    [(True, "it takes connections and does not answer: it is stopped"), (False, "does `clustermesh etcd` run there?")],
)
async def test_an_etcd_that_does_not_answer_is_told_with_what_to_do(
    context: Callable[[int], Context], listening: bool, remedy: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # the kernel takes its connections, nobody reads them
        where = context(frozen.getsockname()[1])
        if not listening:
            frozen.close()
        with pytest.raises(Unavailable, match=re.escape(remedy)):
            await overview_module.read(where, [])


def test_limits_are_told_with_the_most_that_any_node_uses() -> None:
    seen = [SeenCluster("beta", "fresh", nodes=3), SeenCluster("beta", "fresh", nodes=5, services=2)]
    found = overview_module.limits_used(seen, Limits(keys={"nodes": 10, "services": 20}))
    assert found["nodes"] == {"used": 5, "most": 10}
    assert found["services"] == {"used": 2, "most": 20}
    assert found["node-prefixes"] == {"used": None, "most": Limits().node_prefixes}
    assert overview_module.limits_used([], Limits())["nodes"]["used"] == 0
    assert overview_module.limits_used([], Limits())["copied-bytes"]["used"] is None, "there is no mirror"
    assert overview_module.limits_used([], Limits(), 5)["copied-bytes"] == {"used": 5, "most": Limits().copied_bytes}


def test_what_a_mirror_has_copied_is_told_in_whole_mebibytes() -> None:
    told = mirror_report.encode(MirrorReport({"beta": 1, "gamma": 3 << 20}))
    assert overview_module.decode_mirror(told).copied == {"beta": 1 << 20, "gamma": 3 << 20}
    assert told == mirror_report.encode(MirrorReport({"gamma": (2 << 20) + 1, "beta": 1 << 20})), (
        "what is nearly the same is not written"
    )
    assert overview_module.decode_mirror(b'{"v":1,"copied":{"beta":-1}}') == MirrorReport()


def test_a_cluster_that_the_mirror_has_lost_is_an_error_though_all_agents_see_its_copies() -> None:
    sent = mirror_report.encode(MirrorReport({}, {"beta": "stale: permission denied", "gone": "x" * 1000}))
    told = overview_module.decode_mirror(sent)
    assert len(told.behind["gone"]) == 160
    seen = (SeenCluster("alpha", "fresh", 1), SeenCluster("beta", "fresh", 2))
    reports = {"n1": AgentReport("0.1.0", "", (), seen)}
    control = ControlPlane(last_beat=1, behind=told.behind)
    found = overview_module.summarise("alpha", 1, {"n1"}, reports, ["beta"], control)
    assert (found["ok"], found["behind"]) == (False, {"beta": "stale: permission denied"})
    (error,) = found["errors"]
    assert error.startswith("the mirror has cluster beta as stale: permission denied; what was known of it is kept; ")


@pytest.mark.parametrize(("left_out", "says"), [(0, "no node is known"), (2, "has pods for none of 2 nodes")])
def test_where_no_agent_is_expected_anywhere_nothing_is_well(left_out: int, says: str) -> None:
    found = summarise("alpha", 1, set(), {}, {"beta"}, ControlPlane(last_beat=1), left_out)
    assert not found["ok"]
    assert says in found["errors"][0]
