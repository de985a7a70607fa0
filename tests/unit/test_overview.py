"""What `clustermesh status` says of a whole cluster, from what its agents report."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clustermesh.overview import decode_status, summarise


def report(own: str = "fresh", beta: str | None = "fresh", **changes: Any) -> dict[str, Any]:
    def row(name: str, state: str, *, own: bool) -> dict[str, Any]:
        counts = dict.fromkeys(("nodes", "services", "endpoints", "identities", "refused"), 0)
        return {"name": name, "own": own, "id": 1, "state": state, "since": 1.0, "error": "", "behind": {}} | counts

    clusters = [row("alpha", own, own=True)] + ([row("beta", beta, own=False)] if beta else [])
    return {"ready": True, "problems": [], "clusters": clusters} | changes


def overview(statuses: dict[str, dict[str, Any]], nodes: set[str] | None = None, api_server: bool = True) -> Any:
    known = set(statuses) if nodes is None else nodes
    return summarise("alpha", 1, known, statuses, ["beta"], api_server=api_server)


def test_all_is_well_when_every_node_sees_every_cluster_fresh() -> None:
    found = overview({"n1": report(), "n2": report()})
    assert found["ok"]
    assert found["errors"] == []
    assert found["nodes"] == {"total": 2, "reporting": 2, "ready": 2}
    assert (found["clusters"]["beta"]["configured"], found["clusters"]["beta"]["connected"]) == (2, 2)


def test_each_fault_is_one_sentence_with_its_node() -> None:
    for statuses, sentence in (
        ({"n1": report(ready=False)}, "node n1: not ready"),
        ({"n1": report(problems=["map full"])}, "node n1: map full"),
        ({"n1": report(beta="stale")}, "node n1: cluster beta is stale"),
        ({"n1": report(beta=None)}, "node n1: does not know cluster beta yet"),
        ({"n1": report(own="stale")}, "node n1: cluster alpha is stale"),
    ):
        found = overview(statuses)
        assert found["errors"] == [sentence]
        assert not found["ok"]


def test_a_node_that_does_not_report_and_an_api_server_that_does_not_publish_are_errors() -> None:
    errors = overview({"n1": report()}, {"n1", "n2"}, api_server=False)["errors"]
    assert errors == [
        "the API server of alpha has not published: run `clustermesh apiserver`",
        "node n2: its agent does not report",
    ]


def test_an_agent_whose_node_is_gone_is_not_counted_among_the_nodes() -> None:
    found = overview({"n1": report(), "gone": report()}, {"n1"})
    assert found["nodes"] == {"total": 1, "reporting": 1, "ready": 1}
    assert found["clusters"]["beta"]["connected"] == 1


def test_what_a_cluster_waits_for_is_said_where_there_is_no_error() -> None:
    status = report(beta="syncing")
    status["clusters"][1]["behind"] = {"services": "waiting for its canary b'x'"}
    read = decode_status(json.dumps(status).encode())
    assert overview({"n1": read})["errors"] == [
        "node n1: cluster beta is syncing: services: waiting for its canary b'x'"
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ready", "problems", "clusters", "name", "state", "since"]), children, max_size=4
        )
    ),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=40), json_values.map(lambda v: json.dumps(v).encode())))
def test_any_value_in_etcd_is_a_status_or_a_problem(value: bytes) -> None:
    found = overview({"n1": decode_status(value)})
    assert isinstance(found["ok"], bool)
