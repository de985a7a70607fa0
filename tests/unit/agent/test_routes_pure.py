"""Routes, as far as they need no kernel: what is wanted for remote pod CIDRs, and what is refused."""

from __future__ import annotations

import pytest

from agent.targets.routes import Route, RouteKey, check_route, tunnel_routes
from clustermesh.errors import Invalid


def test_every_tunnel_route_has_a_blackhole_of_worse_metric_beside_it() -> None:
    routes = tunnel_routes(["10.2.0.0/24", "10.3.0.0/24"], "cm-wg0", "10.1.0.1")
    for cidr in ("10.2.0.0/24", "10.3.0.0/24"):
        tunnel, hole = sorted(key for key in routes if key.dst == cidr)
        assert routes[tunnel] == Route("unicast", "cm-wg0", "10.1.0.1")
        assert routes[hole] == Route("blackhole")
        assert tunnel.metric < hole.metric
    assert len(routes) == 4
    for key, route in routes.items():
        check_route(key, route)


@pytest.mark.parametrize(
    ("key", "route"),
    [
        (RouteKey("10.2.0.1/24", 0), Route("unicast", "cm-wg0")),
        (RouteKey("10.2.0.0", 0), Route("unicast", "cm-wg0")),
        (RouteKey("fd00::/64", 0), Route("unicast", "cm-wg0")),
        (RouteKey("10.2.0.0/24", -1), Route("unicast", "cm-wg0")),
        (RouteKey("10.2.0.0/24", 1 << 32), Route("unicast", "cm-wg0")),
        (RouteKey("10.2.0.0/24", 0), Route("unicast")),
        (RouteKey("10.2.0.0/24", 0), Route("blackhole", "cm-wg0")),
        (RouteKey("10.2.0.0/24", 0), Route("unicast", "cm-wg0", "node-1")),
    ],
)
def test_route_the_kernel_would_refuse_is_invalid(key: RouteKey, route: Route) -> None:
    with pytest.raises(Invalid):
        check_route(key, route)
