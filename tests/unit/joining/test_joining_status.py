"""The status of a Kubernetes cluster: what makes it bad, and the shape that Cilium's has."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from test_joining_checks import ALPHA, BETA, joined

from clustermesh.cli.context_status import print_status
from clustermesh.joining.member import CertFiles, Member, Version
from clustermesh.joining.status import summarise
from clustermesh.overview import ControlPlane
from clustermesh.overview import summarise as overview_of
from clustermesh.wire.agent_report import AgentReport, SeenCluster

WELL = replace(joined(ALPHA, BETA), service="NodePort", replicas=1, ready=1, local=CertFiles(cert=b"any"))


def told(*states: str, refused: int = 0, services: int = 2, took: int = 0) -> Any:
    """What a node each says of beta; `took` milliseconds times its number its changes."""
    reports = {
        f"n{number}": AgentReport(
            "0.1.0",
            "",
            (),
            (
                SeenCluster("alpha", "fresh", 1),
                SeenCluster("beta", state, 2, 100.0 + number, "", 3, services * number, 5, 1, refused, took * number),
            ),
        )
        for number, state in enumerate(states, 1)
    }
    nodes = set(reports)
    if took:
        slow = SeenCluster("beta", "fresh", 2, propagation_ms=10**6)
        reports["gone"] = AgentReport("0.1.0", "", (), (SeenCluster("alpha", "fresh", 1), slow))
    return overview_of("alpha", 1, nodes, reports, ["beta"], ControlPlane(last_beat=1))


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise(WELL, told("fresh", "fresh", refused=4))
    assert (found["ok"], found["errors"]) == (True, [])
    assert found["connectivity"] == {
        "global_services": {"min": 2, "avg": 3.0, "max": 4},
        "connected": {"min": 1, "avg": 1.0, "max": 1},
        "clusters": {"beta": {"configured": 2, "connected": 2}},
        "total": 2,
        "not_ready": 0,
    }
    print_status(found)
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "Cluster alpha (id 1)",
        '✅ Service "clustermesh-apiserver" of type "NodePort" found',
        "✅ Cluster access information is available:",
        "  - 192.0.2.1:2379",
    ]
    assert "✅ All 2 nodes are connected to all clusters [min:1 / avg:1.0 / max:1]" in said
    assert "  - beta: 2/2 configured, 2/2 connected" in said
    assert "      3 nodes, 4 services, 5 endpoints, 4 refused: `clustermesh node status` says why" in said


def test_what_is_stale_says_since_when(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise(WELL, told("fresh", "stale", "stale"))
    assert not found["ok"]
    assert found["connectivity"]["not_ready"] == 2
    assert (found["clusters"]["beta"]["stale_since"], found["clusters"]["beta"]["states"]) == (
        102.0,
        {"fresh": 1, "stale": 2},
    )
    print_status(found)
    said = capsys.readouterr().out
    assert "2/3 nodes are not connected to all clusters [min:0 / avg:0.3 / max:1]" in said
    assert "stale on 2 nodes, since 1970-01-01T00:01:42Z" in said


@pytest.mark.parametrize(
    ("states", "took", "says"),
    [
        (["fresh"], 0, None),
        (["fresh"], 20, (1, 0.02, 0.02, "n1")),
        (["fresh", "fresh"], 20, (2, 0.02, 0.04, "n2")),
        (["fresh", "fresh", "stale"], 50, (3, 0.1, 0.15, "n3")),
    ],
)
def test_how_long_changes_take_to_the_nodes_is_told(
    states: list[str], took: int, says: tuple[object, ...] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summarise(WELL, told(*states, took=took))
    propagation = found["clusters"]["beta"]["propagation"]
    print_status(found)
    line = [each.strip() for each in capsys.readouterr().out.splitlines() if "propagation" in each]
    if says is None:
        assert (propagation, line) == (None, [])
    else:
        assert tuple(propagation.values()) == says
        nodes, median, worst, node = says
        assert line == [
            f"propagation of its last change, over {nodes} nodes: median {median} s, worst {worst} s on {node}"
        ]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"entrance": None, "hidden": "no address yet"}, "no address yet"),
        ({"replicas": 0, "ready": 0}, "`clustermesh enable`"),
        ({"replicas": 2}, "1 of 2 replicas"),
        ({"local": CertFiles()}, "no Secret clustermesh-apiserver-local-cert"),
        ({"peers": {**WELL.peers, "junk": b"endpoints: 7"}}, "Secret cilium-clustermesh: junk"),
    ],
)
def test_what_the_api_tells_may_be_what_is_wrong(changed: dict[str, object], says: str) -> None:
    member: Member = replace(WELL, **changed)
    (error,) = summarise(member, told("fresh"))["errors"]
    assert says in error


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mirrored": True}, "lead to beta as without the mirror, or at another port: `clustermesh upgrade` has"),
        ({"copied": WELL.peers}, "lead to beta as with a mirror, which is off: `clustermesh upgrade` has"),
        ({"mirrored": True, "version": Version("cilium", "1.18.0")}, "`clustermesh connect` once more has agents"),
    ],
)
def test_all_is_not_well_while_agents_are_led_where_nothing_is(changed: dict[str, object], says: str) -> None:
    member: Member = replace(WELL, **changed)
    (error,) = summarise(member, told("fresh"))["errors"]
    assert says in error


def test_an_etcd_that_is_not_reached_is_said_and_the_rest_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise(WELL, None, "its etcd says nothing")
    assert found["errors"] == ["its etcd says nothing"]
    print_status(found)
    assert "beta: 0/0 configured" in capsys.readouterr().out


def test_no_cluster_is_connected(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise(replace(WELL, peers={}), overview_of("alpha", 1, set(), {}, [], ControlPlane(last_beat=1)))
    assert found["errors"] == ["no node is known: does its API server see any?"]
    print_status(found)
    assert "🔌 No cluster connected" in capsys.readouterr().out


def test_where_agents_are_ciliums_nobody_waits_for_their_reports(capsys: pytest.CaptureFixture[str]) -> None:
    control = ControlPlane(last_beat=1, reporting=False)
    found = summarise(WELL, overview_of("alpha", 1, {"n1"}, {}, ["beta"], control), ciliums=True)
    assert (found["ok"], found["agents"], found["connectivity"]["not_ready"]) == (True, "cilium", 0)
    print_status(found)
    assert "Connected are beta; how Cilium's agents see them is `cilium clustermesh status` to tell" in (
        capsys.readouterr().out
    )
    silent = overview_of("alpha", 1, {"n1"}, {}, ["beta"], replace(control, last_beat=1000))
    assert "has not written for 1000 s" in str(summarise(WELL, silent, ciliums=True)["errors"])


def test_how_much_a_peer_may_fill_is_shown_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = summarise(WELL, told("fresh", "fresh"))
    print_status(found)
    assert "limits" not in capsys.readouterr().out
    print_status(found, verbose=True)
    assert "      limits, used by the fullest node: 3/" in capsys.readouterr().out
    assert found["clusters"]["beta"]["limits"]["services"]["used"] == 4


@pytest.mark.parametrize(
    ("users", "product", "reads"),
    [
        ("users: [{name: remote-beta, role: remote}]", "clustermesh", True),
        ("users: [{name: remote-gamma, role: remote}]", "clustermesh", False),
        ("users: []", "clustermesh", False),
        ("users: []", "cilium", True),
        ("users: 7", "clustermesh", True),
    ],
)
def test_a_cluster_that_does_not_read_this_one_is_told(
    users: str, product: str, reads: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summarise(replace(WELL, users=users.encode(), version=Version(product, "0.1.0")), told("fresh"))
    assert (found["ok"], found["clusters"]["beta"]["read_by"]) == (True, reads)
    print_status(found)
    assert ("beta does not read this cluster" in capsys.readouterr().out) is not reads
