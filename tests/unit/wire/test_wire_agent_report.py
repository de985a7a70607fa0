"""What an agent says of itself is small, comes back as it was, and any bytes are a report or a DecodeError."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import DecodeError
from clustermesh.wire.agent_report import AgentReport, SeenCluster, decode, encode

_COUNTS = st.integers(0, 10**6)
_CLUSTERS = st.builds(
    SeenCluster,
    name=st.text("abcdefgh-", min_size=1, max_size=32),
    state=st.sampled_from(["fresh", "stale", "connecting", "evicted"]),
    id=st.integers(1, 511),
    since=st.integers(0, 4 * 10**9).map(float),
    error=st.text(max_size=50),
    nodes=_COUNTS,
    services=_COUNTS,
    endpoints=_COUNTS,
    identities=_COUNTS,
    refused=_COUNTS,
    propagation_ms=_COUNTS,
)
_REPORTS = st.builds(
    AgentReport,
    version=st.text(max_size=8),
    not_ready=st.text(max_size=100),
    problems=st.lists(st.text(max_size=100), max_size=6).map(tuple),
    clusters=st.lists(_CLUSTERS, max_size=5, unique_by=lambda cluster: cluster.name).map(tuple),
)


@given(_REPORTS)
def test_a_report_comes_back_as_it_was(report: AgentReport) -> None:
    found = decode(encode(report))
    assert sorted(found.clusters, key=lambda c: c.name) == sorted(report.clusters, key=lambda c: c.name)
    assert (found.version, found.not_ready, found.problems) == (report.version, report.not_ready, report.problems)


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.floats() | st.text(max_size=4), st.lists).map(json.dumps).map(str.encode)
)
def test_garbage_raises_nothing_but_decode_error(value: bytes) -> None:
    with suppress(DecodeError):
        decode(value)


def test_a_fresh_cluster_takes_16_bytes_and_its_counts() -> None:
    alone, more = (
        encode(
            AgentReport("0.1.0", "", (), tuple(SeenCluster(f"c{n:02}", "fresh", n, 1.7e9 + 3) for n in range(1, most)))
        )
        for most in (11, 51)
    )
    assert (len(more) - len(alone)) / 40 <= 16


def test_whatever_is_wrong_a_report_is_a_few_kb() -> None:
    gone = tuple(SeenCluster(f"cluster-{n}", "stale", n, 1.7e9, "x" * 500, *[10**5] * 5) for n in range(50))
    assert len(encode(AgentReport("0.1.0", "y" * 9999, ("z" * 9999,) * 500, gone))) < 6000


def test_of_many_problems_the_first_are_told_and_the_rest_is_counted() -> None:
    found = decode(encode(AgentReport(problems=tuple(f"problem {n}" for n in range(20)))))
    assert found.problems[0] == "problem 0"
    assert found.problems[-1] == "and 14 more: see `clustermesh node status` there"


def test_rows_of_an_earlier_and_of_a_later_version_are_read() -> None:
    rows = {"earlier": [2, 0, 3, 4, 5, 6, 7], "this": [2, 0, 3, 4, 5, 6, 7, 20], "later": [2, 0, 3, 4, 5, 6, 7, 20, 9]}
    found = decode(json.dumps({"v": 2, "version": "0.1.0", "clusters": {"fresh": rows}}).encode())
    assert {each.name: (each.refused, each.propagation_ms) for each in found.clusters} == {
        "earlier": (7, 0),
        "this": (7, 20),
        "later": (7, 20),
    }


def test_the_format_without_a_version_is_still_read() -> None:
    cluster = {
        "name": "beta",
        "id": 2,
        "state": "syncing",
        "since": 5.0,
        "error": "",
        "behind": {"services": "its canary"},
    }
    whole = {"version": "0.1.0", "node": "n1", "ready": False, "problems": ["a"], "clusters": [cluster | {"nodes": 3}]}
    found = decode(msgspec.json.encode(whole))
    assert found.problems == ("a",)
    assert found.not_ready
    assert found.clusters == (SeenCluster("beta", "syncing", 2, 5.0, "services: its canary", nodes=3),)
