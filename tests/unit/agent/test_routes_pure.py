"""Routes, as far as they need no kernel: what is wanted for remote pod CIDRs."""

from __future__ import annotations

from agent.plan.routes import Route, RouteKey, tunnel_routes
from clustermesh.address import parse, parse_prefix

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
