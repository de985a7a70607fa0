"""Routes against the real table: ours are kept as wanted, everybody else's are left alone.

  node 1 (net + mount namespace)
+--------------------------------------------------+
|  main table                                      |
|    10.2.0.0/24  dev wg-br    metric 0     (ours)  |
|    10.2.0.0/24  blackhole    metric 4096  (ours)  |
|    10.9.0.0/24  dev wg-br    (an admin's)         |
|  wg-br, other: bridges that stand for devices     |
+--------------------------------------------------+
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netns_mesh import MeshNode

from agent.targets.routes import Route, RouteKey, RouteTarget, tunnel_routes
from clustermesh.errors import ApplyError
from clustermesh.reconcile import Reconciler, Tracker

WANTED = tunnel_routes(["10.2.0.0/24", "10.3.0.0/24"], "wg-br", "10.1.0.1")


@pytest.fixture
def routed(node: MeshNode) -> MeshNode:
    for name in ("wg-br", "other"):
        node.run(f"ip link add {name} type bridge")
        node.run(f"ip link set {name} up")
    node.run("ip link set lo up")
    node.run("ip addr add 10.1.0.1/32 dev lo")
    return node


def table(node: MeshNode) -> list[Any]:
    return list(json.loads(node.run("ip -j -4 route show table main")))


def test_routes_are_written_as_wanted_and_read_back(routed: MeshNode) -> None:
    target = RouteTarget()
    routed.do(target.upsert(WANTED))
    assert routed.do(target.dump()) == WANTED
    routed.do(target.upsert(WANTED))
    assert len(table(routed)) == 4


def test_routes_of_others_are_never_listed_changed_or_deleted(routed: MeshNode) -> None:
    routed.run("ip route add 10.9.0.0/24 dev wg-br")
    routed.run("ip route add 10.2.0.0/24 dev other metric 50")
    routed.run("ip route add blackhole 10.8.0.0/24 metric 4096")
    before = table(routed)
    target = RouteTarget()
    routed.do(target.upsert(WANTED))
    assert routed.do(target.dump()) == WANTED
    others = [RouteKey("10.9.0.0/24", 0), RouteKey("10.2.0.0/24", 50), RouteKey("10.8.0.0/24", 4096)]
    routed.do(target.delete([*WANTED, *others]))
    assert table(routed) == before


def test_place_taken_by_another_route_is_refused_and_the_rest_is_written(routed: MeshNode) -> None:
    routed.run("ip route add 10.2.0.0/24 dev other")
    target = RouteTarget()
    with pytest.raises(ApplyError) as caught:
        routed.do(target.upsert(WANTED))
    assert caught.value.failed.keys() == {RouteKey("10.2.0.0/24", 0)}
    assert "protocol 3" in str(caught.value)  # boot: what `ip route add` writes
    assert routed.do(target.dump()).keys() == WANTED.keys() - caught.value.failed.keys()
    assert {"dst": "10.2.0.0/24", "dev": "other"}.items() <= table(routed)[0].items()


def test_absent_device_fails_its_routes_and_not_the_blackholes(routed: MeshNode) -> None:
    routed.run("ip link del wg-br")
    target = RouteTarget()
    with pytest.raises(ApplyError) as caught:
        routed.do(target.upsert(WANTED))
    assert {key.metric for key in caught.value.failed} == {0}
    assert "No such device" in str(caught.value)
    assert set(routed.do(target.dump()).values()) == {Route("blackhole")}


def test_routes_that_went_with_their_device_are_drift(routed: MeshNode) -> None:
    tracker = Tracker("routes", RouteTarget())
    reconciler = Reconciler(tracker)
    tracker.replace(WANTED)
    routed.do(reconciler.flush())
    routed.run("ip link del wg-br")
    assert routed.do(reconciler.audit()) == 2
    routed.run("ip link add wg-br type bridge")
    routed.run("ip link set wg-br up")
    routed.do(reconciler.flush())
    assert reconciler.settled
    assert routed.do(tracker.target.dump()) == WANTED


def test_routes_of_an_agent_before_this_one_can_be_deleted(routed: MeshNode) -> None:
    routed.do(RouteTarget().upsert(WANTED))
    routed.do(RouteTarget().delete(list(WANTED)))
    assert routed.do(RouteTarget().dump()) == {}


def test_blackholes_are_written_first_and_deleted_last(routed: MeshNode) -> None:
    """As the kernel tells whoever listens."""
    command = ["ip", "monitor", "route"]
    with routed.call(lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as monitor:
        assert monitor.stdout is not None
        try:
            for _ in range(100):  # until the monitor listens
                routed.run("ip route replace 10.99.0.0/24 dev other")
                if select.select([monitor.stdout], [], [], 0.1)[0]:
                    break
            target = RouteTarget()
            routed.do(target.upsert(WANTED))
            routed.do(target.delete(list(WANTED)))
            routed.run("ip route del 10.99.0.0/24 dev other")
            told = list(takewhile(lambda line: "Deleted 10.99" not in line, monitor.stdout))
        finally:
            monitor.terminate()
    ours = [line for line in told if "proto 177" in line]
    assert ["blackhole" in line for line in ours] == [True, True, False, False, False, False, True, True]
    assert ["Deleted" in line for line in ours] == [False] * 4 + [True] * 4


def test_deleting_metric_0_leaves_other_metrics(routed: MeshNode) -> None:
    """To the kernel, metric 0 in a delete means any."""
    target = RouteTarget()
    kept = {RouteKey("10.2.0.0/24", 7): Route("unicast", "wg-br")}
    routed.do(target.upsert(kept))
    routed.do(target.delete([RouteKey("10.2.0.0/24", 0)]))
    assert routed.do(target.dump()) == kept


routes = st.dictionaries(
    st.builds(RouteKey, st.sampled_from(["10.2.0.0/24", "10.2.0.0/25", "0.0.0.0/0"]), st.sampled_from([0, 1, 4096])),
    st.sampled_from([Route("blackhole"), Route("unicast", "wg-br"), Route("unicast", "other", "10.1.0.1")]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(routes, min_size=1, max_size=4))
def test_table_holds_what_is_wanted_after_any_changes(routed: MeshNode, stages: list[dict[RouteKey, Route]]) -> None:
    async def follow() -> None:
        target = RouteTarget()
        tracker = Tracker("routes", target)
        reconciler = Reconciler(tracker)
        reconciler.may_delete = True
        await reconciler.audit()  # the example before this one left its routes
        for wanted in stages:
            tracker.replace(wanted)
            await reconciler.flush()
            assert await target.dump() == wanted
            assert tracker.failed == {}

    routed.do(follow())


def test_two_writers_of_one_table_do_not_meet(routed: MeshNode) -> None:
    ours, theirs = RouteTarget(), RouteTarget(protocol=200)
    other = {RouteKey("10.5.0.0/24", 0): Route("unicast", "other")}

    async def both() -> None:
        await asyncio.gather(ours.upsert(WANTED), theirs.upsert(other))
        assert (await ours.dump(), await theirs.dump()) == (WANTED, other)

    routed.do(both())
