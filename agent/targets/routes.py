"""Routes of the main table, of both families, as a reconciled resource: (destination, metric) -> Route.

Ours carry a protocol number of their own; routes of any other origin are never listed, changed or deleted.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Final

from agent import netlink
from agent.plan.routes import Kind, Route, RouteKey
from agent.pyroute import AsyncIPRoute, NetlinkError
from clustermesh.address import V4, Address, Prefix, is_ipv4, parse, prefix_text, text
from clustermesh.errors import ApplyError, Invalid

PROTOCOL: Final = 177  # /etc/iproute2/rt_protos: taken by nobody there
_SCOPE_ANY: Final = 255  # RT_SCOPE_NOWHERE, which a delete takes for a wildcard
_KINDS: Final[Mapping[int, Kind]] = {1: "unicast", 6: "blackhole"}  # rtm_type, linux/rtnetlink.h
_EVERYWHERE: Final = {2: V4, 10: Prefix(Address(bytes(16)), 0)}  # a default route names no destination; by AF_*


class RouteTarget:
    """Our routes. Implements clustermesh.reconcile.Target[RouteKey, Route].

    Routes go with their device without a word to us: audit after the device was made anew.
    """

    def __init__(self, protocol: int = PROTOCOL) -> None:
        self._protocol = protocol
        self._kinds: dict[RouteKey, Kind] = {}  # of every route of ours, as last dumped or written

    async def dump(self) -> dict[RouteKey, Route]:
        # In a thread with a loop of its own: ten thousand routes must not hold up whatever else this agent does.
        found = await asyncio.to_thread(asyncio.run, _read(self._protocol))
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
                    await batch.write(key, route)
                    self._kinds[key] = route.kind
                except Invalid as e:
                    failed[key] = str(e)
                except NetlinkError as e:
                    failed[key] = str(netlink.translate(f"route {prefix_text(key.dst)}", e))
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
                self._kinds.pop(key, None)  # a dump meanwhile may have found it gone


async def _read(protocol: int) -> dict[RouteKey, Route]:
    async with netlink.connect("list routes") as ip:
        names = {message["index"]: message.get("ifname") async for message in await ip.link("dump")}
        own = [m for m in await netlink.main_routes(ip) if m["proto"] == protocol and m["type"] in _KINDS]
    return dict([_parse(message, names) for message in own])


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
            request |= {"oif": await self._index(route.device), "scope": netlink.SCOPE_LINK}
        if route.prefsrc is not None:
            request["prefsrc"] = text(route.prefsrc)
        try:
            await self._ip.route("add", **request)
        except NetlinkError as e:
            if e.code != errno.EEXIST:
                raise
            holder = await self._holder(key)
            if holder != self._protocol:
                raise Invalid("route", prefix_text(key.dst), f"is held by a route of protocol {holder}") from e
            await self._ip.route("replace", **request)

    async def _index(self, device: str) -> int:
        if device not in self._devices:
            self._devices[device] = (await netlink.get_link(self._ip, device)).ifindex
        return self._devices[device]

    async def _holder(self, key: RouteKey) -> int | None:
        if self._holders is None:
            self._holders = {_key(message): message["proto"] for message in await netlink.main_routes(self._ip)}
        return self._holders.get(key)


def _request(key: RouteKey, protocol: int, kind: Kind) -> dict[str, Any]:
    dst = prefix_text(key.dst)
    return {"dst": dst, "priority": key.metric, "type": kind, "table": netlink.MAIN_TABLE, "proto": protocol}


def _key(message: Any) -> RouteKey:
    dst = message.get("dst")
    if dst is None:
        return RouteKey(_EVERYWHERE[message["family"]], message.get("priority") or 0)
    address = parse(dst)
    return RouteKey(Prefix(address, message["dst_len"] + (96 if is_ipv4(address) else 0)), message.get("priority") or 0)


def _parse(message: Any, names: Mapping[int, str]) -> tuple[RouteKey, Route]:
    kind = _KINDS[message["type"]]
    oif, source = message.get("oif"), message.get("prefsrc")
    return _key(message), Route(
        kind=kind,
        # A blackhole has no device; a device made since the list was read has a number for a name, which differs.
        device=names.get(oif, str(oif)) if oif and kind == "unicast" else "",
        prefsrc=parse(source) if source else None,
    )
