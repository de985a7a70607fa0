"""Nodes -> WireGuard peers, routes and the CIDRs of the ipcache; endpoints -> its single addresses. Pure.

Every other node with a WireGuard key is a peer whose allowed-ips are its pod CIDRs. For each of them there is a route
to the WireGuard device and, under it, a blackhole: a packet for a pod elsewhere leaves encrypted or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from msgspec import Struct, field
from msgspec.structs import replace

from agent.bpf.layouts import CidrKey, IpcacheValue, ipv4
from agent.targets.routes import Route, RouteKey, blackhole_routes, tunnel_routes
from agent.targets.wireguard import drop_overlaps
from agent.wireguard.peer import Peer, check_peer, sort_allowed_ips
from clustermesh.address import is_ipv4, prefix_text, text
from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Ground
from clustermesh.model import Endpoint, Node

WORLD = 2  # reserved identity: an address nobody has named more precisely
NO_GROUND = Ground()
ENCRYPT = 255  # key of an endpoint whose traffic goes through WireGuard


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


def router_address(own: Node) -> str:
    """The gateway of this node's pods: the CiliumInternalIP, else the first address of the pod CIDR, else ""."""
    if named := own.address("CiliumInternalIP", ipv4=True):
        return text(named)
    cidrs = pod_cidrs_of(own)
    return str(IPv4Network(cidrs[0]).network_address + 1) if cidrs else ""


def pod_cidrs_of(node: Node) -> tuple[str, ...]:
    """Every IPv4 CIDR `node` hands out to pods, the first one allotted first."""
    return tuple(prefix_text(cidr) for cidr in node.pod_cidrs if is_ipv4(cidr.address))


def underlay_of(node: Node) -> str:
    """Where tunnels to `node` end over IPv4, or ""."""
    address = node.address("InternalIP", "ExternalIP", ipv4=True)
    return "" if address is None else text(address)


def plan_endpoint(endpoint: Endpoint) -> IpcacheValue:
    """The ipcache entry for one pod."""
    host = endpoint.host_ip
    return IpcacheValue(endpoint.identity, ipv4(text(host)) if host and is_ipv4(host) else 0, ENCRYPT)


def _plan_cidrs(plan: NodePlan, node: Node) -> None:
    address = underlay_of(node)
    tunnel = ipv4(address) if address else 0
    for cidr in pod_cidrs_of(node):
        plan.cidrs[CidrKey.parse(cidr)] = IpcacheValue(WORLD, tunnel, ENCRYPT)


def _plan_peer(plan: NodePlan, node: Node, device: str, port: int) -> None:
    name = f"{node.cluster}/{node.name}"
    source = "" if plan.own is None else router_address(plan.own)
    peer = Peer(endpoint=underlay_of(node), port=port, allowed_ips=sort_allowed_ips(pod_cidrs_of(node)))
    if why := _unusable(plan, node, peer):
        plan.problems[name] = why
        plan.routes |= blackhole_routes(pod_cidrs_of(node))
        return
    plan.peers[node.wireguard_public_key] = peer
    plan.routes |= tunnel_routes(pod_cidrs_of(node), device, source)


def _unusable(plan: NodePlan, node: Node, peer: Peer) -> str:
    """Why there can be no tunnel to `node`, or "". What the device would refuse is found here, before it is asked."""
    key = node.wireguard_public_key
    if not key:
        return "has no WireGuard key yet: its agent has not registered, or its cluster does not encrypt"
    if key in plan.peers:
        return "has the WireGuard key of another node and is left out"
    if plan.own is not None and key == plan.own.wireguard_public_key:
        return "has this node's own WireGuard key and is left out"
    if not underlay_of(node):
        return "has no InternalIP or ExternalIP of IPv4"
    try:
        check_peer(key, peer)
    except Invalid as e:
        return str(e)
    return ""
