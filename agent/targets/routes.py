"""IPv4 routes of the main table as a reconciled resource: (destination, metric) -> Route.

Ours carry a protocol number of their own; routes of any other origin are never listed, changed or deleted. Each remote
pod CIDR has two: one through the tunnel, and beside it a blackhole with a worse metric, so that packets are dropped and
not sent in clear by the default route when the tunnel device is gone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Hashable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct
from pyroute2 import AsyncIPRoute, NetlinkError

from agent import netlink
from clustermesh.errors import ApplyError, Invalid

PROTOCOL: Final = 177  # /etc/iproute2/rt_protos: taken by nobody there
BLACKHOLE_METRIC: Final = 4096
_MAIN_TABLE: Final = 254
_SCOPE_LINK: Final = 253
_SCOPE_ANY: Final = 255  # RT_SCOPE_NOWHERE, which a delete takes for a wildcard


Kind = Literal["unicast", "blackhole"]
_KINDS: Final[Mapping[int, Kind]] = {1: "unicast", 6: "blackhole"}  # rtm_type, linux/rtnetlink.h


class RouteKey(NamedTuple):
    """What the kernel tells routes apart by. `dst` is a CIDR ("10.1.0.0/24"); the lower metric wins."""

    dst: str
    metric: int


class Route(Struct, frozen=True, gc=False):
    """`device` is "" for a blackhole. `prefsrc` is the source of the node's own packets, "" for the kernel's choice:
    the peer drops packets from an address outside of the sender's allowed IPs, so it has to be the router address."""

    kind: Kind
    device: str = ""
    prefsrc: str = ""


def tunnel_routes(cidrs: Iterable[str], device: str, prefsrc: str) -> dict[RouteKey, Route]:
    """The routes of remote pod CIDRs: through `device`, and the blackholes beside them."""
    routes: dict[RouteKey, Route] = {}
    for cidr in cidrs:
        routes[RouteKey(cidr, BLACKHOLE_METRIC)] = Route("blackhole")
        routes[RouteKey(cidr, 0)] = Route("unicast", device, prefsrc)
    return routes


def check_route(key: RouteKey, route: Route) -> None:
    """Raise Invalid for a route the kernel would refuse, or take in another form than given."""
    try:
        if str(IPv4Network(key.dst)) != key.dst or not 0 <= key.metric < 1 << 32:
            raise ValueError("not canonical, or its metric is out of range")
        if route.prefsrc:
            IPv4Address(route.prefsrc)
    except ValueError as e:
        raise Invalid("route", key, f"must be a canonical IPv4 CIDR and a metric ({e})") from e
    if (route.kind == "blackhole") == bool(route.device):
        raise Invalid("route", key, "a unicast route needs a device, a blackhole has none")


class RouteTarget:
    """Our routes. Implements clustermesh.reconcile.Target[RouteKey, Route].

    Routes go with their device without a word to us: audit after the device was made anew.
    """

    def __init__(self, protocol: int = PROTOCOL) -> None:
        self._protocol = protocol

    async def dump(self) -> dict[RouteKey, Route]:
        async with netlink.connect("list routes") as ip:
            names = {message["index"]: message.get("ifname") async for message in await ip.link("dump")}
            return dict([_parse(message, names) for message in await self._own(ip)])

    async def upsert(self, entries: Mapping[RouteKey, Route]) -> None:
        """Raises ApplyError for routes whose device is absent or whose place is taken by a route of another origin."""
        failed: dict[Hashable, str] = {}
        async with netlink.connect("write routes") as ip:
            taken = await self._foreign(ip)
            devices: dict[str, int | None] = {"": None}
            # Blackholes first: there is no moment in which a CIDR has a tunnel and no safety net.
            for key, route in sorted(entries.items(), key=lambda entry: -entry[0].metric):
                try:
                    check_route(key, route)
                    if key in taken:
                        raise Invalid("route", key, f"is held by a route of protocol {taken[key]}")
                    await self._replace(ip, key, route, devices)
                except (Invalid, NetlinkError) as e:
                    failed[key] = str(e) if isinstance(e, Invalid) else str(netlink.translate(f"route {key.dst}", e))
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[RouteKey]) -> None:
        async with netlink.connect("delete routes") as ip:
            # To the kernel metric 0 in a delete means any metric, so only what is really there is named.
            kinds = {_key(message): message["type"] for message in await self._own(ip)}
            for key in sorted(kinds.keys() & set(keys), key=lambda key: key.metric):
                await netlink.ignore_gone(
                    ip.route(
                        "del",
                        dst=key.dst,
                        priority=key.metric,
                        type=kinds[key],
                        scope=_SCOPE_ANY,
                        table=_MAIN_TABLE,
                        proto=self._protocol,
                    )
                )

    async def _replace(self, ip: AsyncIPRoute, key: RouteKey, route: Route, devices: dict[str, int | None]) -> None:
        if route.device not in devices:
            link = await netlink.lookup(ip, route.device)
            if link is None:
                raise NetlinkError(errno.ENODEV)
            devices[route.device] = link.ifindex
        request: dict[str, Any] = {"type": route.kind}
        if route.device:
            request |= {"oif": devices[route.device], "scope": _SCOPE_LINK}
        if route.prefsrc:
            request["prefsrc"] = route.prefsrc
        await ip.route("replace", dst=key.dst, priority=key.metric, table=_MAIN_TABLE, proto=self._protocol, **request)

    async def _own(self, ip: AsyncIPRoute) -> list[Any]:
        return [m for m in await _dump_main(ip) if m["proto"] == self._protocol and m["type"] in _KINDS]

    async def _foreign(self, ip: AsyncIPRoute) -> dict[RouteKey, int]:
        """Where routes of other origin sit: the kernel would replace them as gladly as our own."""
        return {_key(m): m["proto"] for m in await _dump_main(ip) if m["proto"] != self._protocol}


async def _dump_main(ip: AsyncIPRoute) -> list[Any]:
    dump = await ip.route("dump", family=socket.AF_INET, table=_MAIN_TABLE)
    return [message async for message in dump if message.get("table") == _MAIN_TABLE]


def _key(message: Any) -> RouteKey:
    return RouteKey(f"{message.get('dst') or '0.0.0.0'}/{message['dst_len']}", message.get("priority") or 0)


def _parse(message: Any, names: Mapping[int, str]) -> tuple[RouteKey, Route]:
    kind = _KINDS[message["type"]]
    oif = message.get("oif")
    return _key(message), Route(
        kind=kind,
        # A blackhole has no device; a device made since the list was read has a number for a name, which differs.
        device=names.get(oif, str(oif)) if oif and kind == "unicast" else "",
        prefsrc=message.get("prefsrc") or "",
    )
