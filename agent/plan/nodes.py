"""Nodes -> WireGuard peers, routes and the CIDRs of the ipcache; endpoints -> its single addresses. Pure.

Every other node with a WireGuard key is a peer whose allowed-ips are its pod CIDRs, of the families that this node's
pods have. For each of them there is a route to the WireGuard device and, under it, a blackhole: a packet for a pod
elsewhere leaves encrypted or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from agent.bpf.layouts import NO_ADDRESS, CidrKey, IpcacheValue
from agent.plan.routes import Route, RouteKey, blackhole_routes, tunnel_routes
from agent.targets.wireguard import drop_overlaps
from agent.wireguard.peer import Peer, check_peer, sort_allowed_ips
from clustermesh.address import BITS, Address, Prefix, is_ipv4, nth
from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Ground
from clustermesh.model import Endpoint, Node

WORLD = 2  # reserved identity: an address nobody has named more precisely
NO_GROUND = Ground()
ENCRYPT = 255  # key of an endpoint whose traffic goes through WireGuard
_UNDERLAY: Final = ("InternalIP", "ExternalIP")


class PodPool(NamedTuple):
    """A CIDR whose addresses this node gives to pods, and the node's own address that is their gateway."""

    cidr: Prefix
    router: Address


class NodePlan(Struct, kw_only=True):
    """What this node's kernel must hold because of the mesh's nodes. `problems` maps "cluster/node" to a sentence."""

    own: Node | None = None
    peers: dict[str, Peer] = field(default_factory=dict)
    routes: dict[RouteKey, Route] = field(default_factory=dict)
    cidrs: dict[CidrKey, IpcacheValue] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def plan_nodes(
    nodes: Iterable[Node], own_cluster: str, own_name: str, device: str, port: int, ground: Ground = NO_GROUND
) -> NodePlan:
    """The plan for node `own_name` of `own_cluster`; its WireGuard device is called `device`, all listen on `port`.

    What would cover a lifeline of `ground` is left out, and said of its node.
    """
    plan = NodePlan()
    everyone = list(nodes)
    for node in everyone:
        if (node.cluster, node.name) == (own_cluster, own_name):
            plan.own = node
    for node in everyone:
        routable, cut = ground.split(node.pod_cidrs)
        within = replace(node, pod_cidrs=routable) if cut else node
        _plan_cidrs(plan, within)
        if node is not plan.own:
            _plan_peer(plan, within, device, port)
        if cut:
            plan.problems[f"{node.cluster}/{node.name}"] = cut
    plan.peers, lost = drop_overlaps(plan.peers)
    plan.problems |= lost
    return plan


def pod_pools(own: Node) -> tuple[PodPool, ...]:
    """The CIDR of each family that this node's pods get their addresses from: the first one allotted."""
    firsts = {is_ipv4(cidr.address): cidr for cidr in reversed(own.pod_cidrs)}
    families = [family for family in (True, False) if family in firsts]
    return tuple(PodPool(firsts[family], _router(own, firsts[family])) for family in families)


def _router(own: Node, cidr: Prefix) -> Address:
    """The CiliumInternalIP, which may lie anywhere, else the first address of the CIDR."""
    first = nth(cidr, 1) if cidr.length < BITS else cidr.address  # too small for pods: Ipam says so
    return own.address("CiliumInternalIP", ipv4=is_ipv4(cidr.address)) or first


def tunnel_end(node: Node, own: Node | None) -> Address | None:
    """Where a tunnel from `own` to `node` ends: an address of a family that `own` has too, if there is one."""
    families = [family for family in (True, False) if own is None or own.address(*_UNDERLAY, ipv4=family)]
    found = [node.address(kind, ipv4=family) for kind in _UNDERLAY for family in families]
    return next((address for address in found if address), node.underlay)


def plan_endpoint(endpoint: Endpoint) -> IpcacheValue:
    """The ipcache entry for one pod."""
    return IpcacheValue(endpoint.identity, endpoint.host_ip or NO_ADDRESS, ENCRYPT)


def _plan_cidrs(plan: NodePlan, node: Node) -> None:
    for cidr in node.pod_cidrs:
        plan.cidrs[CidrKey.of(cidr)] = IpcacheValue(WORLD, node.underlay or NO_ADDRESS, ENCRYPT)


def _plan_peer(plan: NodePlan, node: Node, device: str, port: int) -> None:
    name = f"{node.cluster}/{node.name}"
    own = plan.own
    routers = [] if own is None else [pool.router for pool in pod_pools(own)]
    families = set(map(is_ipv4, routers)) or {True, False}
    cidrs = [cidr for cidr in node.pod_cidrs if is_ipv4(cidr.address) in families]
    peer = Peer(endpoint=tunnel_end(node, own), port=port, allowed_ips=sort_allowed_ips(cidrs))
    if why := _unusable(plan, node, peer):
        plan.problems[name] = why
        plan.routes |= blackhole_routes(cidrs)
        return
    plan.peers[node.wireguard_public_key] = peer
    plan.routes |= tunnel_routes(cidrs, device, routers)


def _unusable(plan: NodePlan, node: Node, peer: Peer) -> str:
    """Why there can be no tunnel to `node`, or "". What the device would refuse is found here, before it is asked."""
    key = node.wireguard_public_key
    if not key:
        return "has no WireGuard key yet: its agent has not registered, or its cluster does not encrypt"
    if key in plan.peers:
        return "has the WireGuard key of another node and is left out"
    if plan.own is not None and key == plan.own.wireguard_public_key:
        return "has this node's own WireGuard key and is left out"
    if peer.endpoint is None:
        return "has no InternalIP or ExternalIP"
    try:
        check_peer(key, peer)
    except Invalid as e:
        return str(e)
    return ""
