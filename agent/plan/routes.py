"""Which routes remote pod CIDRs need. Pure.

Each has two: one through the tunnel, and beside it a blackhole with a worse metric, so that packets are dropped and not
sent in clear by the default route when the tunnel device is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Literal, NamedTuple

from msgspec import Struct

from clustermesh.address import Address, Prefix, is_ipv4

BLACKHOLE_METRIC: Final = 4096

Kind = Literal["unicast", "blackhole"]


class RouteKey(NamedTuple):
    """What the kernel tells routes apart by; the lower metric wins. IPv6 has no metric 0: the kernel makes it 1024."""

    dst: Prefix
    metric: int


class Route(Struct, frozen=True, gc=False):
    """`device` is "" for a blackhole. `prefsrc` is the source of the node's own packets, None for the kernel's choice:
    the peer drops packets from an address outside of the sender's allowed IPs, so it has to be the router address."""

    kind: Kind
    device: str = ""
    prefsrc: Address | None = None


def best_metric(dst: Prefix) -> int:
    """The metric that wins over every other of the family: nobody's route to the same CIDR stands before ours."""
    return 0 if is_ipv4(dst.address) else 1


def tunnel_routes(cidrs: Iterable[Prefix], device: str, sources: Collection[Address]) -> dict[RouteKey, Route]:
    """The routes of remote pod CIDRs: through `device`, from the one of `sources` of their family, and the blackholes
    beside them."""
    cidrs = list(cidrs)
    by_family = {is_ipv4(source): source for source in sources}
    through = {
        RouteKey(cidr, best_metric(cidr)): Route("unicast", device, by_family.get(is_ipv4(cidr.address)))
        for cidr in cidrs
    }
    return blackhole_routes(cidrs) | through


def blackhole_routes(cidrs: Iterable[Prefix]) -> dict[RouteKey, Route]:
    """What drops packets for `cidrs` where nothing carries them."""
    return {RouteKey(cidr, BLACKHOLE_METRIC): Route("blackhole") for cidr in cidrs}
