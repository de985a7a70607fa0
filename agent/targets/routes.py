"""Routes of the main table, of both families, as a reconciled resource: (destination, metric) -> Route.

Ours carry a protocol number of their own; routes of any other origin are never listed, changed or deleted.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from agent import netlink
from agent.plan.routes import Kind, Route, RouteKey
from agent.rtnetlink import BLACKHOLE, UNICAST, RawRoute, RouteSocket
from agent.targets.thread import OwnThread
from clustermesh.address import prefix_text
from clustermesh.errors import ApplyError

PROTOCOL: Final = 177  # /etc/iproute2/rt_protos: taken by nobody there
_KINDS: Final[Mapping[int, Kind]] = {UNICAST: "unicast", BLACKHOLE: "blackhole"}
_AT_ONCE: Final = 1024  # routes, some 20 ms
_NUMBERS: Final = {kind: number for number, kind in _KINDS.items()}


class RouteTarget:
    """Our routes. Implements clustermesh.reconcile.Target[RouteKey, Route], in a thread: a hundred thousand hold up
    nothing else.

    Routes go with their device without a word to us: audit after the device was made anew.
    """

    def __init__(self, protocol: int = PROTOCOL) -> None:
        self._protocol = protocol
        self._kinds: dict[RouteKey, Kind] = {}  # of every route of ours, as last dumped or written
        self._thread = OwnThread("routes")

    async def dump(self) -> dict[RouteKey, Route]:
        found = await self._thread.do(_read, self._protocol)
        self._kinds = {key: route.kind for key, route in found.items()}
        return found

    async def upsert(self, entries: Mapping[RouteKey, Route]) -> None:
        """Raises ApplyError for routes whose device is absent or whose place is taken by a route of another origin."""
        failed: dict[Hashable, str] = {}
        # Blackholes first: there is no moment in which a CIDR has a tunnel and no safety net.
        order, taken = sorted(entries, key=lambda key: -key.metric), list[RouteKey]()
        for part in _parts(order):
            codes = await self._thread.do(_add, {key: entries[key] for key in part}, self._protocol)
            taken += [key for key, code in codes.items() if code == errno.EEXIST]
            failed |= _sentences({key: code for key, code in codes.items() if code != errno.EEXIST})
            self._kinds |= {key: entries[key].kind for key, code in codes.items() if not code}
        # The kernel would replace whatever has the place: who has it is looked at first.
        for key, holders in (await self._thread.do(_holders, taken) if taken else {}).items():
            if holders != {self._protocol}:
                others = ", ".join(map(str, sorted(holders - {self._protocol}))) or "?"
                failed[key] = f"route {prefix_text(key.dst)} is held by a route of protocol {others}"
        for part in _parts([key for key in taken if key not in failed]):
            failed |= _sentences(await self._thread.do(_replace, {key: entries[key] for key in part}, self._protocol))
            self._kinds |= {key: entries[key].kind for key in part if key not in failed}
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[RouteKey]) -> None:
        """Absent is success. Raises ApplyError."""
        if not self._kinds.keys() >= set(keys):
            await self.dump()
        failed: dict[Hashable, str] = {}
        # To the kernel metric 0 in a delete means any metric: only what is known to be there is named.
        for part in _parts(sorted(self._kinds.keys() & set(keys), key=lambda key: key.metric)):
            codes = await self._thread.do(_delete, {key: Route(self._kinds[key]) for key in part}, self._protocol)
            failed |= _sentences({key: code for key, code in codes.items() if code not in netlink.GONE})
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


def _holders(keys: Collection[RouteKey]) -> dict[RouteKey, set[int]]:
    """The protocols of the routes that have these places."""
    found: dict[RouteKey, set[int]] = {key: set() for key in keys}
    with _connect("list routes") as kernel:
        for route in kernel.dump():
            if (key := _key(route)) in found:
                found[key].add(route.protocol)
    return found


def _add(routes: Mapping[RouteKey, Route], protocol: int) -> dict[RouteKey, int]:
    """What the kernel said to each: an errno, or 0."""
    with _connect("write routes") as kernel:
        return _change(kernel.add, routes, protocol)


def _replace(routes: Mapping[RouteKey, Route], protocol: int) -> dict[RouteKey, int]:
    with _connect("write routes") as kernel:
        return _change(kernel.replace, routes, protocol)


def _delete(routes: Mapping[RouteKey, Route], protocol: int) -> dict[RouteKey, int]:
    with _connect("delete routes") as kernel:
        return _change(kernel.delete, routes, protocol)


def _change(
    change: Callable[[Sequence[RawRoute]], list[int]], routes: Mapping[RouteKey, Route], protocol: int
) -> dict[RouteKey, int]:
    """In their order; ENODEV where a device is absent."""
    indexes = {name: index for index, name in socket.if_nameindex()} | {"": 0}
    packed = {
        key: RawRoute(key.dst, key.metric, protocol, _NUMBERS[route.kind], indexes[route.device], route.prefsrc)
        for key, route in routes.items()
        if route.device in indexes
    }
    return dict.fromkeys(routes, errno.ENODEV) | dict(zip(packed, change([*packed.values()]), strict=True))


def _sentences(codes: Mapping[RouteKey, int]) -> dict[Hashable, str]:
    failed = {key: OSError(code, os.strerror(code)) for key, code in codes.items() if code}
    return {key: str(netlink.translate(f"route {prefix_text(key.dst)}", error)) for key, error in failed.items()}


def _key(route: RawRoute) -> RouteKey:
    return RouteKey(route.dst, route.metric)


def _parse(route: RawRoute, names: Mapping[int, str]) -> Route:
    kind = _KINDS[route.kind]
    # IPv6 has a device for a blackhole, too; one made since the list was read has a number for a name, which differs.
    device = names.get(route.device, str(route.device)) if route.device and kind == "unicast" else ""
    return Route(kind, device, route.source)
