"""Who answers, case by case: the fallback of affinity (wire.md, section 6), hints, policies, those that terminate."""

from __future__ import annotations

import pytest

from clustermesh.address import parse
from clustermesh.mesh.answering import Candidate, Here, answer, here_of
from clustermesh.model import Affinity, BackendState, Node, NodeAddress

ACTIVE, LEAVING, SICK, DOWN = BackendState
HERE = Here("n1", "a")


def those(cluster: int, *states: BackendState, **more: object) -> list[Candidate]:
    ips = [parse(f"10.{cluster}.0.{number}") for number in range(1, len(states) + 1)]
    return [Candidate(cluster, ip, 80, state, **more) for ip, state in zip(ips, states, strict=True)]  # type: ignore[arg-type]


def shown(given: object) -> str:
    return "".join(f"{each.cluster_id}{each.state.name[0]}" for each in given)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("affinity", "own", "others", "expected"),
    [
        (Affinity.NONE, [ACTIVE], [ACTIVE], "1A2A"),
        (Affinity.NONE, [LEAVING], [ACTIVE], "2A"),
        (Affinity.NONE, [LEAVING], [LEAVING, SICK], "1T2T"),
        (Affinity.LOCAL, [ACTIVE, LEAVING], [ACTIVE], "1A"),
        (Affinity.LOCAL, [LEAVING], [ACTIVE], "2A"),
        (Affinity.LOCAL, [LEAVING], [], "1T"),
        (Affinity.LOCAL, [LEAVING], [SICK], "1T"),
        (Affinity.LOCAL, [SICK], [ACTIVE], "2A"),
        (Affinity.LOCAL, [SICK], [DOWN], ""),
        (Affinity.LOCAL, [], [LEAVING], "2T"),
        (Affinity.REMOTE, [ACTIVE], [ACTIVE], "2A"),
        (Affinity.REMOTE, [ACTIVE], [LEAVING], "1A"),
        (Affinity.REMOTE, [], [LEAVING], "2T"),
        (Affinity.REMOTE, [ACTIVE], [SICK], "1A"),
        (Affinity.REMOTE, [LEAVING], [DOWN], "1T"),
        (Affinity.REMOTE, [SICK], [DOWN], ""),
    ],
)
def test_affinity_falls_back_where_nobody_healthy_is_preferred(
    affinity: Affinity, own: list[BackendState], others: list[BackendState], expected: str
) -> None:
    found = answer(those(1, *own), those(2, *others), affinity, HERE)
    assert shown(found.given) == expected
    assert len(found.given) + len(found.resting) == len(own) + len(others), "whoever is not given rests"


def test_a_draining_backend_is_given_to_nobody() -> None:
    found = answer(those(1, LEAVING, draining=True), [], Affinity.NONE, HERE)
    assert (shown(found.given), shown(found.resting)) == ("", "1T")


@pytest.mark.parametrize(
    ("zones", "nodes", "expected"),
    [
        ([("a",), ("b",)], [(), ()], [0]),
        ([("a",), ()], [(), ()], [0, 1]),
        ([("b",), ("b",)], [(), ()], [0, 1]),
        ([("a", "b"), ("b",)], [("n2",), ("n1",)], [1]),
        ([("a",), ("b",)], [("n2",), ("n3",)], [0]),
        ([("b",), ("a",)], [("n1",), ()], [1]),
    ],
    ids=["zone", "one has none", "none is ours", "node first", "else zone", "one has no node"],
)
def test_hints_count_where_all_ready_ones_have_them_and_one_has_ours(
    zones: list[tuple[str, ...]], nodes: list[tuple[str, ...]], expected: list[int]
) -> None:
    plain = those(1, ACTIVE, ACTIVE)
    own = [each._replace(for_zones=z, for_nodes=n) for each, z, n in zip(plain, zones, nodes, strict=True)]
    unready = those(3, LEAVING)
    found = answer([*own, *unready], [], Affinity.NONE, HERE)
    assert found.given == [own[each] for each in expected]


@pytest.mark.parametrize(
    ("here", "away", "expected"), [([ACTIVE], [ACTIVE], "1A"), ([LEAVING], [ACTIVE], "1T"), ([], [ACTIVE], "")]
)
@pytest.mark.parametrize("affinity", Affinity)
def test_a_policy_local_leaves_those_of_this_node_alone(
    here: list[BackendState], away: list[BackendState], expected: str, affinity: Affinity
) -> None:
    own = [*those(1, *here, node="n1"), *those(4, *away, node="n2")]
    assert shown(answer(own, those(2, ACTIVE), affinity, HERE, only_here=True).given) == expected


def test_a_policy_local_gives_nobody_where_nobody_knows_which_node_this_is() -> None:
    assert not answer(those(1, ACTIVE), [], Affinity.NONE, Here(), only_here=True).given


def test_a_node_is_its_name_its_zone_and_its_own_addresses() -> None:
    types = {"InternalIP": "192.0.2.1", "ExternalIP": "203.0.113.1", "CiliumInternalIP": "10.1.0.1"}
    addresses = tuple(NodeAddress(type=kind, ip=parse(ip)) for kind, ip in types.items())
    labels = {"topology.kubernetes.io/zone": "a"}
    node = Node(cluster="c", cluster_id=1, name="n1", addresses=addresses, labels=labels)
    assert here_of("n1", node) == Here("n1", "a", (parse("192.0.2.1"), parse("203.0.113.1")))
    assert here_of("n1", None) == Here("n1")
