"""What a node needs before it can have tunnels: WireGuard device, forwarding, router address, strict mode."""

from __future__ import annotations

import logging

from msgspec import Struct

from agent import netlink
from agent.bpf.loader import Datapath
from agent.cni.ipam import Ipam
from agent.plan.nodes import pod_cidrs_of, router_address, underlay_of
from agent.wireguard.device import FWMARK, Device, tunnel_mtu
from clustermesh.errors import Unavailable
from clustermesh.model import Node

_log = logging.getLogger(__name__)


class Underlay(Struct, frozen=True, kw_only=True):
    """The interface that carries the tunnels, and what was made beside it. `mtu` is the pods' and the device's."""

    interface: str
    mtu: int
    strict: str
    router: str


class UnderlaySetup:
    """Makes the underlay as `own` wants it; repeating it repairs and changes nothing else."""

    def __init__(self, datapath: Datapath, device: Device, private_key: bytes, port: int) -> None:
        self.current: Underlay | None = None
        self._datapath, self._device, self._private_key, self._port = datapath, device, private_key, port

    async def apply(self, own: Node) -> bool:
        """True when the device is, or may be, new: its peers and the routes through it must be set again.

        Raises Unavailable, Refused or Invalid with the reason; what was made before that stays.
        """
        _check_pod_cidr(own)
        link = await netlink.find_link_by_address(underlay_of(own))
        if link is None:
            raise Unavailable(
                f"no interface has this node's address {underlay_of(own)}: is Node {own.name} the right one?"
            )
        ingress, _ = self._datapath.attach_strict(link.name)
        mtu = tunnel_mtu(link.mtu)
        router = router_address(own)
        await netlink.prepare_node(router)
        new = await self._device.ensure(self._private_key, self._port, FWMARK, mtu) or self.current is None
        self.current = Underlay(interface=link.name, mtu=mtu, strict=str(ingress.mechanism), router=router)
        return new


def _check_pod_cidr(own: Node) -> None:
    """A node without room for pods cannot attach any; Unavailable and Invalid say what its Node lacks."""
    cidrs = pod_cidrs_of(own)
    if not cidrs:
        raise Unavailable(f"Node {own.name} has no IPv4 pod CIDR yet")
    Ipam(cidrs[0])
