"""Routes, as far as they need no kernel: what is wanted for remote pod CIDRs, and a kernel that does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from agent.plan.routes import Route, RouteKey, tunnel_routes
from agent.rtnetlink import RawRoute
from agent.targets import routes as targets
from clustermesh.address import parse, parse_prefix
from clustermesh.reconcile import Reconciler, Tracker

V4, OTHER, V6 = map(parse_prefix, ("10.2.0.0/24", "10.3.0.0/24", "fd00:10:2:1::/64"))
ROUTERS = (parse("10.1.0.1"), parse("fd00:10:1:1::1"))


def test_every_tunnel_route_has_a_blackhole_of_worse_metric_beside_it() -> None:
    routes = tunnel_routes([V4, OTHER, V6], "cm-wg0", ROUTERS)
    for cidr, router in ((V4, ROUTERS[0]), (OTHER, ROUTERS[0]), (V6, ROUTERS[1])):
        tunnel, hole = sorted(key for key in routes if key.dst == cidr)
        assert routes[tunnel] == Route("unicast", "cm-wg0", router)
        assert routes[hole] == Route("blackhole")
        assert tunnel.metric < hole.metric
    assert len(routes) == 6
    assert all(key.metric for key in routes if key.dst == V6), "the kernel would make it 1024, drift for ever"


def test_routes_of_ipv4_are_those_of_the_version_before_so_that_an_upgrade_adopts_them() -> None:
    assert {key.metric for key in tunnel_routes([V4], "cm-wg0", ROUTERS)} == {0, 4096}


def test_node_without_a_router_address_of_the_family_leaves_the_source_to_the_kernel() -> None:
    assert tunnel_routes([V6], "cm-wg0", ROUTERS[:1])[RouteKey(V6, 1)] == Route("unicast", "cm-wg0")


class Kernel:
    """Holds what was added to it, once `goes_on` is set."""

    def __init__(self) -> None:
        self.held: set[RawRoute] = set()
        self.goes_on = threading.Event()
        self.threads: set[int] = set()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        self.goes_on.wait(20)

    def dump(self, _protocol: int = 0) -> list[RawRoute]:
        self._wait()
        return [*self.held]

    def add(self, routes: Sequence[RawRoute]) -> list[int]:
        self._wait()
        self.held.update(routes)
        return [0] * len(routes)

    def delete(self, routes: Sequence[RawRoute]) -> list[int]:
        self._wait()
        gone = {(each.dst, each.metric) for each in routes}
        self.held = {each for each in self.held if (each.dst, each.metric) not in gone}
        return [0] * len(routes)


async def test_a_write_that_hung_ends_before_the_next_begins_and_takes_no_other_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel()
    monkeypatch.setattr(targets, "RouteSocket", lambda: kernel)
    tracker = Tracker("routes", targets.RouteTarget(), limit=0.01, clock=lambda: now)
    reconciler, key, now = Reconciler(tracker), RouteKey(V4, 4096), 0.0
    reconciler.may_delete = True
    tracker.set(key, Route("blackhole"))
    for _ in range(5):
        await reconciler.flush()
        now += 60.0
    assert len(kernel.threads) == 1
    assert "has not ended yet" in tracker.problems[key].sentence
    tracker.remove(key)
    await reconciler.flush()
    kernel.goes_on.set()
    for _ in range(200):
        await asyncio.sleep(0.01)
        now += 60.0
        await reconciler.flush()
        if reconciler.settled:
            break
    assert not kernel.held
