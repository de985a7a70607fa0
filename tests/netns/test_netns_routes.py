"""Routes against the real table: ours are kept as wanted, everybody else's are left alone.

  node 1 (net + mount namespace)
+--------------------------------------------------+
|  main table                                      |
|    10.2.0.0/24  dev wg-br    metric 0     (ours)  |
|    10.2.0.0/24  blackhole    metric 4096  (ours)  |
|    fd00:10:2::/64 likewise, metrics 1 and 4096    |
|    10.9.0.0/24  dev wg-br    (an admin's)         |
|  wg-br, other: bridges that stand for devices     |
+--------------------------------------------------+
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netns_mesh import MeshNode

from agent import netlink
from agent.plan.routes import Route, RouteKey, blackhole_routes, tunnel_routes
from agent.rtnetlink import RouteSocket
from agent.targets.routes import RouteTarget
from clustermesh.address import parse, parse_prefix
from clustermesh.errors import ApplyError
from clustermesh.reconcile import Reconciler, Tracker

ROUTERS = (parse("10.1.0.1"), parse("fd00:10:1::1"))
TWO, THREE, TWO6 = map(parse_prefix, ("10.2.0.0/24", "10.3.0.0/24", "fd00:10:2::/64"))
WANTED = tunnel_routes([TWO, THREE, TWO6], "wg-br", ROUTERS)


def key(dst: str, metric: int) -> RouteKey:
    return RouteKey(parse_prefix(dst), metric)


@pytest.fixture
def routed(node: MeshNode) -> MeshNode:
    for name in ("wg-br", "other"):
        node.run(f"ip link add {name} type bridge")
        node.run(f"ip link set {name} up")
    node.run("ip link set lo up")
    for router in ROUTERS:
        node.do(netlink.add_address("lo", router))
    return node


def table(node: MeshNode) -> list[Any]:
    """All routes, without those that the kernel makes by itself."""
    found = json.loads(node.run("ip -j -4 route show table main")) + json.loads(
        node.run("ip -j -6 route show table main")
    )
    return [route for route in found if route.get("protocol") != "kernel"]


def test_routes_are_written_as_wanted_and_read_back(routed: MeshNode) -> None:
    target = RouteTarget()
    routed.do(target.upsert(WANTED))
    assert routed.do(target.dump()) == WANTED
    routed.do(target.upsert(WANTED))
    assert len(table(routed)) == 6


def test_routes_of_others_are_never_listed_changed_or_deleted(routed: MeshNode) -> None:
    routed.run("ip route add 10.9.0.0/24 dev wg-br")
    routed.run("ip route add 10.2.0.0/24 dev other metric 50")
    routed.run("ip route add blackhole 10.8.0.0/24 metric 4096")
    routed.run("ip route add fd00:10:9::/64 dev wg-br")
    routed.run("ip route add fd00:10:2::/64 dev other")
    before = table(routed)
    target = RouteTarget()
    routed.do(target.upsert(WANTED))
    assert routed.do(target.dump()) == WANTED
    others = [key("10.9.0.0/24", 0), key("10.2.0.0/24", 50), key("10.8.0.0/24", 4096)]
    others += [key("fd00:10:9::/64", 1024), key("fd00:10:2::/64", 1024)]
    routed.do(target.delete([*WANTED, *others]))
    assert table(routed) == before


@pytest.mark.parametrize(
    ("taken", "dst"), [(key("10.2.0.0/24", 0), "10.2.0.0/24"), (key("fd00:10:2::/64", 1), "fd00:10:2::/64")]
)
def test_place_taken_by_another_route_is_refused_and_the_rest_is_written(
    routed: MeshNode, taken: RouteKey, dst: str
) -> None:
    routed.run(f"ip route add {dst} dev other metric {taken.metric}")
    target = RouteTarget()
    with pytest.raises(ApplyError) as caught:
        routed.do(target.upsert(WANTED))
    assert caught.value.failed.keys() == {taken}
    assert "protocol 3" in str(caught.value)  # boot: what `ip route add` writes
    assert routed.do(target.dump()).keys() == WANTED.keys() - caught.value.failed.keys()
    assert any({"dst": dst, "dev": "other"}.items() <= route.items() for route in table(routed))


def test_of_a_thousand_routes_each_fails_for_itself(routed: MeshNode) -> None:
    cidrs = [f"10.{64 + n // 256}.{n % 256}.0/24" for n in range(300)] + [f"fd77:{n:x}::/64" for n in range(300)]
    wanted = tunnel_routes(map(parse_prefix, cidrs), "wg-br", ROUTERS)
    for cidr in cidrs[::100]:
        routed.run(f"ip route add {cidr} dev other metric 4096")
    target = RouteTarget()
    taken = {key(cidr, 4096) for cidr in cidrs[::100]}
    for _ in range(2):  # made, and found there
        with pytest.raises(ApplyError) as caught:
            routed.do(target.upsert(wanted))
        assert caught.value.failed.keys() == taken
        assert routed.do(target.dump()) == {each: route for each, route in wanted.items() if each not in taken}
    routed.do(target.delete([*wanted]))
    assert routed.do(target.dump()) == {}
    assert len(table(routed)) == len(taken)


def test_a_list_beside_a_strangers_changes_has_all_of_ours(routed: MeshNode, tmp_path: Path) -> None:
    cidrs = [f"fd77:{n:x}::/64" for n in range(3000)]
    wanted = blackhole_routes(map(parse_prefix, cidrs))
    target = RouteTarget()
    routed.do(target.upsert(wanted))
    storm = tmp_path / "storm"
    lines = [f"route {verb} 2001:1:{n:x}::/64 dev other proto 99" for verb in ("add", "del") for n in range(2000)]
    storm.write_text("\n".join(lines))
    command = ["sh", "-c", f"while :; do ip -6 -force -batch {storm}; done >/dev/null 2>&1"]
    with routed.call(lambda: subprocess.Popen(command, start_new_session=True)) as storming:
        try:
            for _ in range(30):
                assert routed.do(target.dump()) == wanted
        finally:
            os.killpg(storming.pid, signal.SIGKILL)


def test_a_list_beside_which_nobody_changes_anything_is_read_once(
    routed: MeshNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed.do(RouteTarget().upsert(WANTED))
    asked, read_once = list[int](), RouteSocket._read_once

    def read(kernel: RouteSocket, family: int, *words: int) -> Iterator[bytes]:
        asked.append(family)
        return read_once(kernel, family, *words)

    monkeypatch.setattr(RouteSocket, "_read_once", read)
    for _ in range(50):  # devices that were just made are changed by the kernel for a while
        asked.clear()
        assert routed.do(RouteTarget().dump()) == WANTED
        if asked == [socket.AF_INET, socket.AF_INET6]:
            break
        time.sleep(0.1)
    assert asked == [socket.AF_INET, socket.AF_INET6]


def test_a_host_whose_sockets_are_small_gets_all_routes(routed: MeshNode) -> None:
    wanted = blackhole_routes(parse_prefix(f"10.77.{n}.0/24") for n in range(200))
    small = Path("/proc/sys/net/core/rmem_default")
    usual = small.read_text()
    small.write_text("32768")
    try:
        routed.do(RouteTarget().upsert(wanted))
    finally:
        small.write_text(usual)
    assert routed.do(RouteTarget().dump()) == wanted


def test_absent_device_fails_its_routes_and_not_the_blackholes(routed: MeshNode) -> None:
    routed.run("ip link del wg-br")
    target = RouteTarget()
    with pytest.raises(ApplyError) as caught:
        routed.do(target.upsert(WANTED))
    assert {key.metric for key in caught.value.failed} == {0, 1}
    assert "No such device" in str(caught.value)
    assert set(routed.do(target.dump()).values()) == {Route("blackhole")}


def test_routes_that_went_with_their_device_are_drift(routed: MeshNode) -> None:
    tracker = Tracker("routes", RouteTarget())
    reconciler = Reconciler(tracker)
    tracker.replace(WANTED)
    routed.do(reconciler.flush())
    routed.run("ip link del wg-br")
    assert routed.do(reconciler.audit()) == 3
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
    assert ["blackhole" in line for line in ours] == [True] * 3 + [False] * 6 + [True] * 3
    assert ["Deleted" in line for line in ours] == [False] * 6 + [True] * 6


def test_deleting_metric_0_leaves_other_metrics(routed: MeshNode) -> None:
    """To the kernel, metric 0 in a delete means any."""
    target = RouteTarget()
    kept = {key("10.2.0.0/24", 7): Route("unicast", "wg-br")}
    routed.do(target.upsert(kept))
    routed.do(target.delete([key("10.2.0.0/24", 0)]))
    assert routed.do(target.dump()) == kept


keys4 = st.builds(key, st.sampled_from(["10.2.0.0/24", "10.2.0.0/25", "0.0.0.0/0"]), st.sampled_from([0, 1, 4096]))
keys6 = st.builds(key, st.sampled_from(["fd00:10:2::/64", "fd00:10:2::/65", "::/0"]), st.sampled_from([1, 2, 4096]))
plain = [Route("blackhole"), Route("unicast", "wg-br"), Route("unicast", "other")]
routes = st.tuples(
    st.dictionaries(keys4, st.sampled_from([*plain, Route("unicast", "other", ROUTERS[0])])),
    st.dictionaries(keys6, st.sampled_from([*plain, Route("unicast", "other", ROUTERS[1])])),
).map(lambda both: both[0] | both[1])


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


def test_routes_as_the_version_before_left_them_are_adopted_without_a_change(routed: MeshNode) -> None:
    for cidr in ("10.2.0.0/24", "10.3.0.0/24"):
        routed.run(f"ip route add {cidr} dev wg-br proto 177 scope link src 10.1.0.1")
        routed.run(f"ip route add blackhole {cidr} metric 4096 proto 177")
    tracker = Tracker("routes", RouteTarget())
    reconciler = Reconciler(tracker)
    routed.do(reconciler.adopt())
    tracker.replace(tunnel_routes([TWO, THREE], "wg-br", ROUTERS))
    pending = tracker.pending()
    assert not pending.upserts
    assert not pending.deletes


def test_two_writers_of_one_table_do_not_meet(routed: MeshNode) -> None:
    ours, theirs = RouteTarget(), RouteTarget(protocol=200)
    other = {key("10.5.0.0/24", 0): Route("unicast", "other")}

    async def both() -> None:
        await asyncio.gather(ours.upsert(WANTED), theirs.upsert(other))
        assert (await ours.dump(), await theirs.dump()) == (WANTED, other)

    routed.do(both())
