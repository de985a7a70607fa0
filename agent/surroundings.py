"""What this machine lives by, found out by looking: the ground that every plan stands on.

etcds                 of the own cluster and of every peer, their names resolved
gateways              of all routes of the main table
addresses, networks   of the interfaces, but for the mesh's own device
resolvers             from /etc/resolv.conf; and Kubernetes' API server where the environment names it
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent import netlink
from agent.plan.devices import LOOPBACK, Ways
from clustermesh.address import LINK_LOCAL, Address, Prefix, contains, is_ipv4, masked, parse, single
from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Ground, Place
from clustermesh.mesh.peer_files import PeerFile
from clustermesh.store import endpoint as etcd_endpoint
from clustermesh.store.endpoint import Endpoint

_log = logging.getLogger(__name__)
_PERIOD: Final = 30.0  # seconds between looks at everything; names are asked for only then
_PAUSE: Final = 1.0  # between looks where much is heard: this agent's own routes are heard, too
_RESOLVING: Final = 2.0  # the start of an agent waits for it
_RESOLVERS: Final = 8  # threads: a name server that is dead holds each of them for many seconds
_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_{IPV4,IPV6}_{IFADDR,ROUTE}, linux/rtnetlink.h


class Gateway(NamedTuple):
    """The next hop of a route, and the device it leaves by."""

    address: Address
    device: str


class Network(NamedTuple):
    """An address of an interface, with the length of its network in bits of 128."""

    device: str
    address: Address
    length: int


class Surroundings:
    """Looks around, and again when the kernel says that something moved or `look_again` was called.

    `endpoints` are the own etcd's, `peers` gives the files of the other clusters as they are now; `device` is the
    mesh's.
    """

    def __init__(
        self, own: str, endpoints: Sequence[str], peers: Callable[[], Mapping[str, PeerFile]], device: str
    ) -> None:
        self._ways = Ways()
        self._on_ways: Callable[[Ways], None] = lambda _ways: None
        self._own, self._endpoints, self._peers, self._device = own, endpoints, peers, device
        self._again, self._everything = asyncio.Event(), False
        self._known: dict[str, Sequence[Place]] = {}  # what was read last, for when it cannot be read
        self._threads = ThreadPoolExecutor(_RESOLVERS, "resolver")  # of their own: nobody else's work waits behind them
        self._resolved: dict[str, frozenset[Address]] = {}

    async def read(self, *, everything: bool = True) -> Ground:
        """The ground as it is now; the etcds as they were, if not `everything` is looked at. What cannot be read is as
        it was, and that is logged."""
        local = {"this machine's addresses": self._read_local, "the resolvers": _read_resolvers}
        etcds = {"the own etcd": self._read_own_etcd, "the connected clusters": self._read_etcds_of_peers}
        read = local | etcds if everything else local
        await asyncio.gather(*(self._read_or_keep(what, how) for what, how in read.items()))
        return Ground([*chain(*self._known.values()), *api_server_places(os.environ)])

    async def keep(self, stand_on: Callable[[Ground], None], told: Ground) -> None:
        """Tell `stand_on` of every ground that differs from the last, `told`. Never returns."""
        with closing(_listen()) as heard:
            loop = asyncio.get_running_loop()
            loop.add_reader(heard, self._hear, heard)
            due = loop.time() + _PERIOD
            try:
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(due):
                            await self._again.wait()
                    self._again.clear()
                    if everything := self._everything or loop.time() >= due:
                        self._everything, due = False, loop.time() + _PERIOD
                    ground = await self.read(everything=everything)
                    if ground.places != told.places:
                        stand_on(ground)
                        told = ground
                    await asyncio.sleep(_PAUSE)
            finally:
                loop.remove_reader(heard)

    def tell_ways(self, on_ways: Callable[[Ways], None]) -> None:
        """`on_ways` is told how this machine is connected, now and each time that differs."""
        self._on_ways = on_ways
        on_ways(self._ways)

    def look_again(self) -> None:
        """Something is not as it was: a cluster has come, or is elsewhere."""
        self._everything = True
        self._again.set()

    def _hear(self, heard: socket.socket) -> None:
        self._again.set()
        with suppress(OSError):  # empty; or more was said than it holds, which is news enough
            while heard.recv(65536):
                pass

    async def _read_or_keep(self, what: str, read: Callable[[], Awaitable[Sequence[Place]]]) -> None:
        try:
            self._known[what] = await read()
        except Exception as e:  # whatever a peer's file or the kernel brings: the rest of the ground stands
            _log.warning("%s cannot be read: %r", what, e)

    async def _read_local(self) -> list[Place]:
        gateways, defaults = await asyncio.to_thread(_read_routes)
        async with netlink.connect("list addresses") as ip:
            names = {message["index"]: message.get("ifname") async for message in await ip.link("dump")}
            messages = [message async for message in await ip.addr("dump")]
        networks = [network for message in messages if (network := _network(message, names)) is not None]
        ways = Ways(defaults, frozenset((each.device, each.address) for each in networks))
        if ways != self._ways:
            self._ways = ways
            self._on_ways(ways)
        return local_places([each for each in networks if each.device != self._device], gateways)

    async def _read_own_etcd(self) -> list[Place]:
        return await self._resolve_all([(self._own, etcd_endpoint.parse(each), ()) for each in self._endpoints])

    async def _read_etcds_of_peers(self) -> list[Place]:
        return await self._resolve_all(
            [
                (name, endpoint, file.host_aliases.get(endpoint.host.lower(), ()))
                for name, file in (await asyncio.to_thread(self._peers)).items()
                for endpoint in map(etcd_endpoint.parse, file.endpoints)
            ]
        )

    async def _resolve_all(self, asked: Sequence[tuple[str, Endpoint, Iterable[str]]]) -> list[Place]:
        found = await asyncio.gather(*(self._resolve(etcd.host, aliases) for _, etcd, aliases in asked))
        return [
            Place(single(address), f"the etcd of {name}", lifeline=True, cluster=name, ports=(etcd.port,))
            for (name, etcd, _), addresses in zip(asked, found, strict=True)
            for address in addresses
        ]

    async def _resolve(self, host: str, aliases: Iterable[str]) -> frozenset[Address]:
        """A name server that is down moves no etcd."""
        if found := frozenset(_parsed([*aliases, host])):
            return found
        try:
            async with asyncio.timeout(_RESOLVING):
                answers = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._resolved[host] = frozenset(_parsed(str(answer[4][0]) for answer in answers))
        except (OSError, UnicodeError) as e:
            _log.debug("%s cannot be resolved: %s", host, e)
        return self._resolved.get(host, frozenset())


def local_places(networks: Iterable[Network], gateways: Iterable[Gateway]) -> list[Place]:
    """No peer has pods in a network of this machine, or a node at one of its addresses; nothing is routed over a
    gateway, or over the addresses of the interface that leads to one: this machine is known by them."""
    gateways = [each for each in gateways if not _is_link_local(each.address)]
    ways_out = {each.device for each in gateways}
    places = [Place(single(each.address), "a gateway of this machine", lifeline=True) for each in gateways]
    for device, address, length in networks:
        if _is_link_local(address):
            continue
        alone = single(address)
        places.append(Place(alone, f"this machine's address on {device}", lifeline=device in ways_out, ports=()))
        if length < alone.length:
            places.append(Place(Prefix(masked(address, length), length), f"the network on {device}"))
    return places


def parse_gateways(ipv4: str, ipv6: str) -> list[Gateway]:
    """The next hops in /proc/net/route and /proc/net/ipv6_route: netlink takes seconds for the ten thousand routes that
    the mesh makes, these do not. Of several next hops of one IPv4 route only the first is in there."""
    found: dict[Gateway, None] = {}
    for line in ipv4.splitlines()[1:]:
        device, _, hop, *_ = line.split()
        if hop != "00000000":
            found[Gateway(parse(socket.inet_ntoa(int(hop, 16).to_bytes(4, sys.byteorder))), device)] = None
    for line in ipv6.splitlines():
        fields = line.split()
        if fields[4].strip("0"):
            found[Gateway(Address(bytes.fromhex(fields[4])), fields[-1])] = None
    return list(found)


def parse_defaults(ipv4: str, ipv6: str) -> frozenset[str]:
    """The devices of the default routes in the same two files; that of IPv6 where there is none is on lo."""
    found = set[str]()
    for line in ipv4.splitlines()[1:]:
        device, to, _, _, _, _, _, mask, *_ = line.split()
        if to == mask == "00000000":
            found.add(device)
    for line in ipv6.splitlines():
        to, length, *_, device = line.split()
        if length == "00" and not to.strip("0"):
            found.add(device)
    return frozenset(found - {LOOPBACK})


def resolver_places(resolv_conf: str) -> list[Place]:
    """The name servers of resolv.conf(5)."""
    lines = (line.split() for line in resolv_conf.splitlines())
    named = _parsed(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver")
    return [Place(single(address), "a resolver of this machine") for address in named]


def api_server_places(environment: Mapping[str, str]) -> list[Place]:
    """Where Kubernetes tells its pods that its API server is."""
    named = _parsed([environment.get("KUBERNETES_SERVICE_HOST", "")])
    return [Place(single(address), "the Kubernetes API server") for address in named]


def _look_up(host: str) -> list[Any]:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


async def _read_resolvers() -> list[Place]:
    return resolver_places(await asyncio.to_thread(Path("/etc/resolv.conf").read_text))


def _read_routes() -> tuple[list[Gateway], frozenset[str]]:
    proc = Path("/proc/self/net")
    ipv6 = proc / "ipv6_route"  # absent where IPv6 is switched off
    tables = (proc / "route").read_text(), ipv6.read_text() if ipv6.exists() else ""
    return parse_gateways(*tables), parse_defaults(*tables)


def _network(message: Any, names: Mapping[int, str]) -> Network | None:
    spelled = message.get("local") or message.get("address")
    if not spelled:
        return None
    address = parse(spelled)
    family = 96 if is_ipv4(address) else 0
    return Network(names.get(message["index"], ""), address, message["prefixlen"] + family)


def _is_link_local(address: Address) -> bool:
    return any(contains(each, address) for each in LINK_LOCAL)


def _parsed(spelled: Iterable[str]) -> Iterator[Address]:
    """Those that are addresses; a zone says by which device, which does not matter here."""
    for each in spelled:
        with suppress(Invalid):
            yield parse(each.partition("%")[0])


def _listen() -> socket.socket:
    """A socket that can be read when an address or a route of this network namespace has changed."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    heard.bind((0, _GROUPS))
    return heard
