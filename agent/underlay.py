"""What a node needs before it can have tunnels: WireGuard device, forwarding, router addresses, strict mode."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgspec import Struct

from agent import netlink
from agent.bpf.hooks import UNDERLAY_PROGRAMS
from agent.bpf.loader import Datapath
from agent.cni.ipam import Ipam
from agent.plan.nodes import PodPool, pod_pools
from agent.wireguard.device import FWMARK, IPV6_MIN_MTU, Device, tunnel_mtu
from clustermesh.address import Address, is_ipv4, text
from clustermesh.errors import Refused, Unavailable
from clustermesh.model import Node

_log = logging.getLogger(__name__)


class Underlay(Struct, frozen=True, kw_only=True):
    """The interface that carries the tunnels, and what was made beside it. `mtu` is the pods' and the device's."""

    interface: str
    mtu: int
    strict: str


class UnderlaySetup:
    """Makes the underlay as `own` wants it; repeating it repairs and changes nothing else.

    `on_found` is called when this machine has turned out to be the Node's."""

    def __init__(self, datapath: Datapath, device: Device, private_key: bytes, port: int) -> None:
        self.current: Underlay | None = None
        self.on_found: Callable[[], None] = lambda: None
        self._datapath, self._device, self._private_key, self._port = datapath, device, private_key, port

    async def apply(self, own: Node) -> bool:
        """True when the device is, or may be, new: its peers and the routes through it must be set again.

        Raises Unavailable, Refused or Invalid with the reason; what was made before that stays.
        """
        pools = _check_pools(own)
        link = await _find_link(own)
        self.on_found()
        hooks = await asyncio.to_thread(self._datapath.devices.attach, link.name, UNDERLAY_PROGRAMS)
        mtu = tunnel_mtu(link.mtu)
        routers = tuple(pool.router for pool in pools)
        _check_mtu(link, mtu, routers)
        await netlink.prepare_node(routers)
        new = await self._device.ensure(self._private_key, self._port, FWMARK, mtu) or self.current is None
        self.current = Underlay(interface=link.name, mtu=mtu, strict=str(hooks[0].mechanism))
        return new


def _check_pools(own: Node) -> tuple[PodPool, ...]:
    """A node without room for pods cannot attach any; Unavailable and Invalid say what its Node lacks."""
    pools = pod_pools(own)
    if not pools:
        raise Unavailable(f"Node {own.name} has no pod CIDR yet")
    for pool in pools:
        Ipam(pool.cidr, pool.router)
    return pools


async def _find_link(own: Node) -> netlink.Link:
    if own.underlay is None:
        raise Unavailable(f"Node {own.name} has no InternalIP or ExternalIP yet")
    link = await netlink.find_link_by_address(own.underlay)
    if link is None:
        address = text(own.underlay)
        raise Unavailable(f"no interface has this node's address {address}: is Node {own.name} the right one?")
    return link


def _check_mtu(link: netlink.Link, mtu: int, routers: Sequence[Address]) -> None:
    if mtu < IPV6_MIN_MTU and not all(map(is_ipv4, routers)):
        raise Refused(
            f"{link.name} has an MTU of {link.mtu}, which leaves {mtu} for pods, and IPv6 needs {IPV6_MIN_MTU}: "
            "raise it, or give the Node no IPv6 pod CIDR"
        )
