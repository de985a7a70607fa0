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
    cidrs = list(cidrs)
    return blackhole_routes(cidrs) | {RouteKey(cidr, 0): Route("unicast", device, prefsrc) for cidr in cidrs}


def blackhole_routes(cidrs: Iterable[str]) -> dict[RouteKey, Route]:
    """What drops packets for `cidrs` where nothing carries them."""
    return {RouteKey(cidr, BLACKHOLE_METRIC): Route("blackhole") for cidr in cidrs}


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
        self._kinds: dict[RouteKey, Kind] = {}  # of every route of ours, as last dumped or written

    async def dump(self) -> dict[RouteKey, Route]:
        async with netlink.connect("list routes") as ip:
            names = {message["index"]: message.get("ifname") async for message in await ip.link("dump")}
            own = [m for m in await _dump_main(ip) if m["proto"] == self._protocol and m["type"] in _KINDS]
        found = dict([_parse(message, names) for message in own])
        self._kinds = {key: route.kind for key, route in found.items()}
        return found

    async def upsert(self, entries: Mapping[RouteKey, Route]) -> None:
        """Raises ApplyError for routes whose device is absent or whose place is taken by a route of another origin."""
        failed: dict[Hashable, str] = {}
        async with netlink.connect("write routes") as ip:
            batch = _Batch(ip, self._protocol)
            # Blackholes first: there is no moment in which a CIDR has a tunnel and no safety net.
            for key, route in sorted(entries.items(), key=lambda entry: -entry[0].metric):
                try:
                    check_route(key, route)
                    await batch.write(key, route)
                    self._kinds[key] = route.kind
                except Invalid as e:
                    failed[key] = str(e)
                except NetlinkError as e:
                    failed[key] = str(netlink.translate(f"route {key.dst}", e))
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[RouteKey]) -> None:
        if not self._kinds.keys() >= set(keys):
            await self.dump()
        async with netlink.connect("delete routes") as ip:
            # To the kernel metric 0 in a delete means any metric: only what is known to be there is named.
            for key in sorted(self._kinds.keys() & set(keys), key=lambda key: key.metric):
                request = _request(key, self._protocol, self._kinds[key])
                await netlink.ignore_gone(ip.route("del", scope=_SCOPE_ANY, **request))
                del self._kinds[key]


class _Batch:
    """What several writes share: indexes of devices, and a look at the table where one finds its place taken."""

    def __init__(self, ip: AsyncIPRoute, protocol: int) -> None:
        self._ip, self._protocol = ip, protocol
        self._devices: dict[str, int] = {}
        self._holders: dict[RouteKey, int] | None = None

    async def write(self, key: RouteKey, route: Route) -> None:
        """Raises Invalid where a route of another origin has the place: the kernel would replace that one, too."""
        request = _request(key, self._protocol, route.kind)
        if route.device:
            request |= {"oif": await self._index(route.device), "scope": _SCOPE_LINK}
        if route.prefsrc:
            request["prefsrc"] = route.prefsrc
        try:
            await self._ip.route("add", **request)
        except NetlinkError as e:
            if e.code != errno.EEXIST:
                raise
            holder = await self._holder(key)
            if holder != self._protocol:
                raise Invalid("route", key, f"is held by a route of protocol {holder}") from e
            await self._ip.route("replace", **request)

    async def _index(self, device: str) -> int:
        if device not in self._devices:
            link = await netlink.lookup(self._ip, device)
            if link is None:
                raise NetlinkError(errno.ENODEV)
            self._devices[device] = link.ifindex
        return self._devices[device]

    async def _holder(self, key: RouteKey) -> int | None:
        if self._holders is None:
            self._holders = {_key(message): message["proto"] for message in await _dump_main(self._ip)}
        return self._holders.get(key)


def _request(key: RouteKey, protocol: int, kind: Kind) -> dict[str, Any]:
    return {"dst": key.dst, "priority": key.metric, "type": kind, "table": _MAIN_TABLE, "proto": protocol}


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
