"""Which clusters are let in when, and how often the device is looked at for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.domains.gate import SHARE, WELCOME, Gate


def held(*clusters: str, now: float = 100.0) -> Gate:
    gate = Gate()
    for cluster in clusters:
        gate.hold(cluster)
        gate.meet(cluster, "n1", f"key of {cluster}", now)
    return gate


def test_a_cluster_is_let_in_when_every_node_with_a_key_has_shaken_hands() -> None:
    gate = held("beta")
    gate.meet("beta", "n2", "second key", 100.0)
    gate.meet("beta", "n3", "", 100.0)
    assert gate.looked({"key of beta"}, 100.1, 0.0) == []
    assert gate.looked({"key of beta", "second key"}, 100.2, 0.0) == ["beta"]
    assert not gate.waiting
    assert gate.next_look is None


def test_a_cluster_without_nodes_waits_for_them_and_nobody_looks() -> None:
    gate = Gate()
    gate.hold("beta")
    assert (gate.next_look, gate.next_overdue) == (None, None)
    assert gate.looked({"any"}, 100.0, 0.0) == []
    assert gate.open_overdue(1e9) == []
    gate.meet("beta", "n1", "", 200.0)
    assert gate.next_look is None
    assert gate.next_overdue == 200.0 + WELCOME


def test_a_tunnel_that_never_comes_up_is_waited_for_so_long_only() -> None:
    gate = held("beta", now=100.0)
    gate.meet("beta", "n2", "later", 105.0)
    assert gate.open_overdue(99.9 + WELCOME) == []
    assert gate.open_overdue(100.0 + WELCOME) == ["beta"]


def test_a_node_that_goes_is_not_waited_for() -> None:
    gate = held("beta")
    gate.meet("beta", "n2", "never heard of", 100.0)
    gate.meet("beta", "n2", None, 100.0)
    gate.meet("beta", "n2", None, 100.0)
    assert gate.looked({"key of beta"}, 100.1, 0.0) == ["beta"]


def test_one_that_leaves_is_forgotten_and_one_not_held_is_not_listened_to() -> None:
    gate = held("beta")
    gate.leave("beta")
    gate.leave("beta")
    gate.meet("beta", "n1", "key", 100.0)
    gate.meet("gamma", "n1", "key", 100.0)
    assert not gate.waiting
    assert gate.open_overdue(1e9) == []


def test_one_look_serves_all_who_wait() -> None:
    gate = held(*(f"c{number}" for number in range(250)))
    assert len(gate.looked({f"key of c{number}" for number in range(250)}, 101.0, 0.0)) == 250


def test_the_first_look_is_soon_and_then_they_grow_rare() -> None:
    gate = held("beta", now=100.0)
    now, waits = 100.0, []
    for _ in range(40):
        assert gate.next_look is not None
        waits.append(round(gate.next_look - now, 6))
        now = gate.next_look
        gate.looked(set(), now, 0.0)
    assert waits[0] < 0.06
    assert waits == sorted(waits)
    assert waits[-1] == 1.0
    gate.hold("gamma")
    gate.meet("gamma", "n1", "key", now)
    assert gate.next_look - now < 0.06, "somebody new"


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.booleans()), min_size=10, max_size=60))
def test_looks_never_take_more_than_their_share(looks: list[tuple[float, bool]]) -> None:
    gate = held("beta", now=0.0)
    now, spent, last = 0.0, 0.0, 0.0
    for number, (cost, somebody_new) in enumerate(looks):
        assert gate.next_look is not None
        now = max(now, gate.next_look) + cost
        spent, last = spent + cost, cost
        gate.looked(set(), now, cost)
        if somebody_new:
            gate.meet("beta", f"new {number}", f"key {number}", now)
    assert spent - last <= SHARE * now + 1e-6
