"""Routes of the main table, of both families, as a reconciled resource: (destination, metric) -> Route.

Ours carry a protocol number of their own; routes of any other origin are never listed, changed or deleted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from agent import netlink
from agent.plan.routes import Kind, Route, RouteKey
from agent.rtnetlink import BLACKHOLE, UNICAST, RawRoute, RouteSocket
from clustermesh.address import prefix_text
from clustermesh.errors import ApplyError

PROTOCOL: Final = 177  # /etc/iproute2/rt_protos: taken by nobody there
_KINDS: Final[Mapping[int, Kind]] = {UNICAST: "unicast", BLACKHOLE: "blackhole"}
_AT_ONCE: Final = 1024  # routes, some 20 ms
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}


class RouteTarget:
    """Our routes. Implements clustermesh.reconcile.Target[RouteKey, Route], in threads: a hundred thousand of them hold
    up nothing else.

    Routes go with their device without a word to us: audit after the device was made anew.
    """

    def __init__(self, protocol: int = PROTOCOL) -> None:
        self._protocol = protocol
        self._kinds: dict[RouteKey, Kind] = {}  # of every route of ours, as last dumped or written

    async def dump(self) -> dict[RouteKey, Route]:
        found = await asyncio.to_thread(_read, self._protocol)
        self._kinds = {key: route.kind for key, route in found.items()}
        return found

    async def upsert(self, entries: Mapping[RouteKey, Route]) -> None:
        """Raises ApplyError for routes whose device is absent or whose place is taken by a route of another origin."""
        failed: dict[Hashable, str] = {}
        # Blackholes first: there is no moment in which a CIDR has a tunnel and no safety net.
        for keys in _parts(sorted(entries, key=lambda key: -key.metric)):
            part = {key: entries[key] for key in keys}
            failed |= await asyncio.to_thread(_write, part, self._protocol)
            self._kinds |= {key: route.kind for key, route in part.items() if key not in failed}
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[RouteKey]) -> None:
        """Absent is success. Raises ApplyError."""
        if not self._kinds.keys() >= set(keys):
            await self.dump()
        failed: dict[Hashable, str] = {}
        # To the kernel metric 0 in a delete means any metric: only what is known to be there is named.
        for part in _parts(sorted(self._kinds.keys() & set(keys), key=lambda key: key.metric)):
            failed |= await asyncio.to_thread(_delete, {key: Route(self._kinds[key]) for key in part}, self._protocol)
            for key in part:
                if key not in failed:
                    self._kinds.pop(key, None)  # a dump meanwhile may have found it gone
        if failed:
            raise ApplyError(failed)


def _parts(keys: Sequence[RouteKey]) -> Iterator[Sequence[RouteKey]]:
    """What is done by then is done, where a call is left behind."""
    return (keys[at : at + _AT_ONCE] for at in range(0, len(keys), _AT_ONCE))


@contextmanager
def _connect(what: str) -> Iterator[RouteSocket]:
    """An OSError that leaves the block becomes one of ours."""
    try:
        with RouteSocket() as kernel:
            yield kernel
    except OSError as e:
        raise netlink.translate(what, e) from e


def _read(protocol: int) -> dict[RouteKey, Route]:
    with _connect("list routes") as kernel:
        names = dict(socket.if_nameindex())
        own = [route for route in kernel.dump(protocol) if route.kind in _KINDS]
    return {_key(route): _parse(route, names) for route in own}


def _write(entries: Mapping[RouteKey, Route], protocol: int) -> dict[Hashable, str]:
    """The keys that failed, each with a sentence."""
    with _connect("write routes") as kernel:
        wanted = _pack(entries, protocol)
        codes: dict[RouteKey, int] = dict(zip(wanted, kernel.add([*wanted.values()]), strict=True))
        taken = [key for key, code in codes.items() if code == errno.EEXIST]
        # The kernel would replace whatever has the place: ours is asked for by name.
        holders = {_key(route): route.protocol for route in kernel.dump()} if taken else {}
        ours = {key: wanted[key] for key in taken if holders.get(key) == protocol}
        codes |= dict(zip(ours, kernel.replace([*ours.values()]), strict=True))
    missing = dict.fromkeys(entries.keys() - wanted.keys(), errno.ENODEV)
    held = {key: f"is held by a route of protocol {holders.get(key)}" for key in taken if key not in ours}
    return _sentences(codes | missing) | {key: f"route {prefix_text(key.dst)} {why}" for key, why in held.items()}


def _delete(routes: Mapping[RouteKey, Route], protocol: int) -> dict[Hashable, str]:
    """As `_write`."""
    with _connect("delete routes") as kernel:
        there = _pack(routes, protocol)
        codes: dict[RouteKey, int] = dict(zip(there, kernel.delete([*there.values()]), strict=True))
    return _sentences({key: code for key, code in codes.items() if code not in netlink.GONE})


def _sentences(codes: Mapping[RouteKey, int]) -> dict[Hashable, str]:
    failed = {key: OSError(code, os.strerror(code)) for key, code in codes.items() if code}
    return {key: str(netlink.translate(f"route {prefix_text(key.dst)}", error)) for key, error in failed.items()}


def _pack(routes: Mapping[RouteKey, Route], protocol: int) -> dict[RouteKey, RawRoute]:
    """Those whose device is there, in their order."""
    indexes = {name: index for index, name in socket.if_nameindex()} | {"": 0}
    return {
        key: RawRoute(key.dst, key.metric, protocol, _NUMBERS[route.kind], indexes[route.device], route.prefsrc)
        for key, route in routes.items()
        if route.device in indexes
    }


def _key(route: RawRoute) -> RouteKey:
    return RouteKey(route.dst, route.metric)


def _parse(route: RawRoute, names: Mapping[int, str]) -> Route:
    kind = _KINDS[route.kind]
    # IPv6 has a device for a blackhole, too; one made since the list was read has a number for a name, which differs.
    device = names.get(route.device, str(route.device)) if route.device and kind == "unicast" else ""
    return Route(kind, device, route.source)
