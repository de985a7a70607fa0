"""Nodes -> WireGuard peers, routes and the CIDRs of the ipcache; endpoints -> its single addresses. Pure.

Every other node with a WireGuard key is a peer whose allowed-ips are its pod CIDRs, of the families that this node's
pods have. For each of them there is a route to the WireGuard device and, under it, a blackhole: a packet for a pod
elsewhere leaves encrypted or not at all.

Rules
- One node that changes costs one node, however many there are. Only where this node itself changes in what the others'
  plans depend on (its router addresses, the families it has) all of them are planned again.
- A key or a CIDR that several nodes have is the first one's: this node's, then its cluster's, then by name. Clusters
  cannot meet in one, the mesh state sees to that; two Nodes of one cluster can.
- A CIDR that holds what this node must reach outside of the mesh is left out: no route, no blackhole, no entry. Where
  another cluster says that it has its etcd, that is that cluster's problem.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from msgspec import Struct

from agent.bpf.layouts import NO_ADDRESS, CidrKey, IpcacheValue
from agent.plan.routes import Route, RouteKey, blackhole_routes, tunnel_routes
from agent.plan.shares import Shares
from agent.wireguard.peer import Peer, PeerKey, check_peer, sort_allowed_ips
from clustermesh.address import BITS, Address, Prefix, is_ipv4, nth, prefix_text
from clustermesh.errors import Invalid
from clustermesh.model import Endpoint, Node

WORLD = 2  # reserved identity: an address nobody has named more precisely
_UNDERLAY: Final = ("InternalIP", "ExternalIP")
_NO_KEY: Final = "has no WireGuard key yet: its agent has not registered, or its cluster does not encrypt"

Name = tuple[str, str]  # (cluster, node)
_Who = tuple[bool, bool, str, str]  # a Name, in the order in which nodes come first


class PodPool(NamedTuple):
    """A CIDR whose addresses this node gives to pods, and the node's own address that is their gateway."""

    cidr: Prefix
    router: Address


class Wanted(Protocol):
    """Where plans go: a tracker."""

    def set(self, key: Any, value: Any) -> None: ...
    def remove(self, key: Any) -> None: ...


class _Placed(Struct, frozen=True):
    """What is wanted because of one node."""

    peers: Mapping[PeerKey, Peer] = {}
    routes: Mapping[RouteKey, Route] = {}
    cidrs: Mapping[CidrKey, IpcacheValue] = {}


class _Stance(NamedTuple):
    """What other nodes' plans take from this node."""

    routers: tuple[Address, ...] = ()
    pods: frozenset[bool] = frozenset({True, False})  # whether IPv4: the families of its pods, and of its underlay
    underlay: tuple[bool, ...] = (True, False)


class NodePlanner:
    """Keeps peers, routes and CIDRs in step with the nodes it is told of. `problems`: "cluster/node" -> a sentence.

    `split` leaves out the CIDRs for which no route may be made, and says why.
    """

    def __init__(
        self,
        own: Name,
        device: str,
        port: int,
        *,
        peers: Wanted,
        routes: Wanted,
        cidrs: Wanted,
        split: Callable[[Iterable[Prefix]], tuple[tuple[Prefix, ...], str]] = lambda cidrs: (tuple(cidrs), ""),
    ) -> None:
        self.own: Node | None = None
        self.problems: dict[str, str] = {}
        self._own_name, self._device, self._port, self._split = own, device, port, split
        self._wanted = (peers, routes, cidrs)
        self._stance = _Stance()
        self._nodes: dict[Name, Node] = {}
        self._placed: dict[Name, _Placed] = {}
        self._cidrs, self._keys = Shares[_Who, Prefix](), Shares[_Who, str]()

    @property
    def names(self) -> Collection[Name]:
        return self._nodes.keys()

    def update(self, name: Name, node: Node | None) -> bool:
        """Make `node` what is known of `name` (None: nothing). True where every node is to be planned again."""
        everyone = name == self._own_name and self._take_own(node)
        before, who = self._nodes.get(name), self._who(name)
        (had_cidrs, had_keys), (cidrs, keys) = _wants(before), _wants(node)
        touched = {name} | self._holders(had_cidrs | cidrs, had_keys | keys)
        self._cidrs.leave(who, had_cidrs - cidrs)
        self._cidrs.want(who, cidrs - had_cidrs)
        self._keys.leave(who, had_keys - keys)
        self._keys.want(who, keys - had_keys)
        if node is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        self._place(touched | self._holders(had_cidrs | cidrs, had_keys | keys))
        return everyone

    def _take_own(self, node: Node | None) -> bool:
        stance, self.own = _stance(node), node
        changed, self._stance = stance != self._stance, stance
        return changed

    def _who(self, name: Name) -> _Who:
        return name != self._own_name, name[0] != self._own_name[0], *name

    def _holders(self, cidrs: Iterable[Prefix], keys: Iterable[str]) -> set[Name]:
        found = [*map(self._cidrs.holder, cidrs), *map(self._keys.holder, keys)]
        return {who[2:] for who in found if who is not None}

    def _place(self, names: Collection[Name]) -> None:
        """Bring what is wanted because of these nodes up to date: what goes first, since another may have it now."""
        before = {name: self._placed.get(name, _Placed()) for name in names}
        for name in names:
            node = self._nodes.get(name)
            if node is None:
                self._placed.pop(name, None)
                self.problems.pop("/".join(name), None)
            else:
                self._placed[name] = self._plan(name, node)
        for name in names:
            after = self._placed.get(name, _Placed())
            for table, had, has in zip(self._wanted, _tables(before[name]), _tables(after), strict=True):
                for key in had.keys() - has.keys():
                    table.remove(key)
        for name in names:
            after = self._placed.get(name, _Placed())
            for table, had, has in zip(self._wanted, _tables(before[name]), _tables(after), strict=True):
                for key, value in has.items():
                    if had.get(key) != value:
                        table.set(key, value)

    def _plan(self, name: Name, node: Node) -> _Placed:
        who = self._who(name)
        held = [cidr for cidr in dict.fromkeys(node.pod_cidrs) if self._cidrs.holder(cidr) == who]
        free, cut = self._split(held)
        entries = plan_cidrs(node, free)
        if name == self._own_name:
            return _Placed(cidrs=entries)
        cidrs = [cidr for cidr in free if is_ipv4(cidr.address) in self._stance.pods]
        peer = self._peer(node, cidrs)
        fault = self._find_fault(who, node, peer)
        self._note_problem(name, fault or cut or _shortened(node, held))
        if fault:
            return _Placed(routes=blackhole_routes(cidrs), cidrs=entries)
        routes = tunnel_routes(cidrs, self._device, self._stance.routers)
        return _Placed(peers={PeerKey(*name): peer}, routes=routes, cidrs=entries)

    def _peer(self, node: Node, cidrs: Iterable[Prefix]) -> Peer:
        return Peer(
            public_key=node.wireguard_public_key,
            endpoint=_tunnel_end(node, self._stance.underlay),
            port=self._port,
            allowed_ips=sort_allowed_ips(cidrs),
        )

    def _find_fault(self, who: _Who, node: Node, peer: Peer) -> str:
        """Why there can be no tunnel to `node`, or "". What the device would refuse is found before it is asked."""
        key = node.wireguard_public_key
        if not key:
            return _NO_KEY
        if (holder := self._keys.holder(key)) != who:
            whose = "this node's own WireGuard key" if holder == self._who(self._own_name) else "another node's key"
            return f"has {whose} and is left out"
        if peer.endpoint is None:
            return "has no InternalIP or ExternalIP"
        try:
            check_peer(key, peer)
        except Invalid as e:
            return str(e)
        return ""

    def _note_problem(self, name: Name, problem: str) -> None:
        if problem:
            self.problems["/".join(name)] = problem
        else:
            self.problems.pop("/".join(name), None)


def _wants(node: Node | None) -> tuple[set[Prefix], set[str]]:
    """The CIDRs and keys that are a node's alone."""
    if node is None:
        return set(), set()
    return set(node.pod_cidrs), {node.wireguard_public_key} - {""}


def _tables(placed: _Placed) -> tuple[Mapping[Any, Any], Mapping[Any, Any], Mapping[Any, Any]]:
    return placed.peers, placed.routes, placed.cidrs


def _shortened(node: Node, held: Collection[Prefix]) -> str:
    """What is wrong with a node whose tunnel works for some of its CIDRs only."""
    lost = [cidr for cidr in node.pod_cidrs if cidr not in held]
    return f"pod CIDR {prefix_text(lost[0])} is another node's, too, and goes there" if lost else ""


def _stance(own: Node | None) -> _Stance:
    if own is None:
        return _Stance()
    routers = tuple(pool.router for pool in pod_pools(own))
    underlay = tuple(family for family in (True, False) if own.address(*_UNDERLAY, ipv4=family))
    return _Stance(routers, frozenset(map(is_ipv4, routers)) or _Stance().pods, underlay)


def pod_pools(own: Node) -> tuple[PodPool, ...]:
    """The CIDR of each family that this node's pods get their addresses from: the first one allotted."""
    firsts = {is_ipv4(cidr.address): cidr for cidr in reversed(own.pod_cidrs)}
    families = [family for family in (True, False) if family in firsts]
    return tuple(PodPool(firsts[family], _router(own, firsts[family])) for family in families)


def _router(own: Node, cidr: Prefix) -> Address:
    """The CiliumInternalIP, which may lie anywhere, else the first address of the CIDR."""
    first = nth(cidr, 1) if cidr.length < BITS else cidr.address  # too small for pods: Ipam says so
    return own.address("CiliumInternalIP", ipv4=is_ipv4(cidr.address)) or first


def _tunnel_end(node: Node, families: Iterable[bool]) -> Address | None:
    """Where a tunnel to `node` ends: an address of one of `families` if there is one."""
    found = [node.address(kind, ipv4=family) for kind in _UNDERLAY for family in families]
    return next((address for address in found if address), node.underlay)


def plan_endpoint(endpoint: Endpoint) -> IpcacheValue:
    """The ipcache entry for one pod, or for all in a CIDR."""
    return _entry(endpoint.identity, endpoint.host_ip or NO_ADDRESS, endpoint.key)


@lru_cache(4096)  # the pods of one kind on one node share theirs
def _entry(identity: int, host: Address, key: int) -> IpcacheValue:
    return IpcacheValue(identity, host, key)


def plan_cidrs(node: Node, cidrs: Iterable[Prefix]) -> dict[CidrKey, IpcacheValue]:
    """The ipcache entries for what is in a node's pod CIDRs and has no entry of its own."""
    value = IpcacheValue(WORLD, node.underlay or NO_ADDRESS, node.encryption_key)
    return {CidrKey.of(cidr): value for cidr in cidrs}
