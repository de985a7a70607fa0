"""Nodes -> WireGuard peers, routes and the CIDRs of the ipcache; endpoints -> its single addresses. Pure.

Every other node with a WireGuard key is a peer whose allowed-ips are its pod CIDRs, of the families that this node's
pods have. For each of them there is a route to the WireGuard device and, under it, a blackhole: a packet for a pod
elsewhere leaves encrypted or not at all.

Rules
- One node that changes costs one node, however many there are. Only where this node itself changes in what the others'
  plans depend on (its router addresses, the families it has) all of them are planned again.
- A key or a CIDR is one node's: the mesh state sees to that (clustermesh.mesh.admission). One that moves from a node to
  another may be planned with either first: what is wanted for it goes with the node that had it last.
- A CIDR that holds what this node must reach outside of the mesh is left out: no route, no blackhole, no entry. Where
  another cluster says that it has its etcd, that is that cluster's problem.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from agent.bpf.layouts import NO_ADDRESS, IpcacheValue, pack, pack_cidr
from agent.plan.routes import BLACKHOLE_METRIC, Route, RouteKey, best_metric, blackhole_routes, tunnel_routes
from agent.wireguard.peer import Peer, PeerKey, check_peer, sort_allowed_ips
from clustermesh.address import BITS, Address, Prefix, is_ipv4, nth
from clustermesh.errors import Invalid
from clustermesh.model import Endpoint, Node

WORLD = 2  # reserved identity: an address nobody has named more precisely
_UNDERLAY: Final = ("InternalIP", "ExternalIP")
_NO_KEY: Final = "has no WireGuard key yet: its agent has not registered, or its cluster does not encrypt"

Name = tuple[str, str]  # (cluster, node)


class PodPool(NamedTuple):
    """A CIDR whose addresses this node gives to pods, and the node's own address that is their gateway."""

    cidr: Prefix
    router: Address


class ThisEnd(NamedTuple):
    """This node's end of all its tunnels."""

    name: Name
    public_key: str
    device: str
    port: int


class Wanted(Protocol):
    """Where plans go: a tracker. What is not there is removed already."""

    def set(self, key: Any, value: Any) -> None: ...
    def remove(self, key: Any) -> None: ...


class _Placed(NamedTuple):
    """What is wanted because of one node."""

    peers: Mapping[PeerKey, Peer] = {}
    routes: Mapping[RouteKey, Route] = {}
    cidrs: Mapping[bytes, bytes] = {}


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
        end: ThisEnd,
        *,
        peers: Wanted,
        routes: Wanted,
        cidrs: Wanted,
        split: Callable[[Iterable[Prefix]], tuple[tuple[Prefix, ...], str]] = lambda cidrs: (tuple(cidrs), ""),
    ) -> None:
        self.own: Node | None = None
        self.problems: dict[str, str] = {}
        self._end, self._split = end, split
        self._peers, self._routes, self._cidrs = peers, routes, cidrs
        self._stance = _Stance()
        self._had: dict[Name, tuple[Prefix, ...]] = {}  # the pod CIDRs of each node, as it was planned
        self._holders: dict[Prefix, Name] = {}  # and the one of whom each was planned last

    @property
    def names(self) -> Collection[Name]:
        return self._had.keys()

    def update(self, name: Name, node: Node | None) -> bool:
        """Make `node` what is known of `name` (None: nothing). True where every node is to be planned again."""
        everyone = name == self._end.name and self._take_own(node)
        had, has = self._had.pop(name, ()), () if node is None else node.pod_cidrs
        if node is not None:
            self._had[name] = has
        self._holders |= dict.fromkeys(has, name)
        placed, problem = (_Placed(), "") if node is None else self._plan(name, node)
        self._note_problem("/".join(name), problem)
        _place(self._peers, PeerKey(*name), placed.peers)
        for cidr in (cidr for cidr in {*had, *has} if self._holders.get(cidr) == name):
            self._place_cidr(cidr, placed)
            if cidr not in has:
                del self._holders[cidr]
        return everyone

    def _take_own(self, node: Node | None) -> bool:
        stance, self.own = _stance(node), node
        changed, self._stance = stance != self._stance, stance
        return changed

    def _place_cidr(self, cidr: Prefix, placed: _Placed) -> None:
        _place(self._cidrs, pack_cidr(cidr), placed.cidrs)
        for metric in (BLACKHOLE_METRIC, best_metric(cidr)):
            _place(self._routes, RouteKey(cidr, metric), placed.routes)

    def _plan(self, name: Name, node: Node) -> tuple[_Placed, str]:
        """What is wanted because of a node, and what is wrong with it."""
        free, cut = self._split(dict.fromkeys(node.pod_cidrs))
        entries = plan_cidrs(node, free)
        if name == self._end.name:
            return _Placed(cidrs=entries), ""
        cidrs = [cidr for cidr in free if is_ipv4(cidr.address) in self._stance.pods]
        peer = self._peer(node, cidrs)
        if fault := self._find_fault(peer):
            return _Placed(routes=blackhole_routes(cidrs), cidrs=entries), fault
        routes = tunnel_routes(cidrs, self._end.device, self._stance.routers)
        return _Placed({PeerKey(*name): peer}, routes, entries), cut

    def _peer(self, node: Node, cidrs: Iterable[Prefix]) -> Peer:
        return Peer(
            public_key=node.wireguard_public_key,
            endpoint=_tunnel_end(node, self._stance.underlay),
            port=self._end.port,
            allowed_ips=sort_allowed_ips(cidrs),
        )

    def _find_fault(self, peer: Peer) -> str:
        """Why there can be no tunnel, or "". What the device would refuse, or ignore, is found before it is asked."""
        if not peer.public_key:
            return _NO_KEY
        if peer.public_key == self._end.public_key:
            return "has this node's own WireGuard key and is left out"
        if peer.endpoint is None:
            return "has no InternalIP or ExternalIP"
        try:
            check_peer(peer.public_key, peer)
        except Invalid as e:
            return str(e)
        return ""

    def _note_problem(self, name: str, problem: str) -> None:
        if problem:
            self.problems[name] = problem
        else:
            self.problems.pop(name, None)


def _place(table: Wanted, key: Any, placed: Mapping[Any, Any]) -> None:
    if (value := placed.get(key)) is None:
        table.remove(key)
    else:
        table.set(key, value)


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


def plan_endpoint(endpoint: Endpoint) -> bytes:
    """The ipcache entry for one pod, or for all in a CIDR."""
    return _entry(endpoint.identity, endpoint.host_ip or NO_ADDRESS, endpoint.key)


@lru_cache(4096)  # the pods of one kind on one node share theirs
def _entry(identity: int, host: Address, key: int) -> bytes:
    return pack(IpcacheValue(identity, host, key))


def plan_cidrs(node: Node, cidrs: Iterable[Prefix]) -> dict[bytes, bytes]:
    """The ipcache entries for what is in a node's pod CIDRs and has no entry of its own."""
    value = _entry(WORLD, node.underlay or NO_ADDRESS, node.encryption_key)
    return {pack_cidr(cidr): value for cidr in cidrs}
