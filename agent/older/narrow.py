"""Peers without their IPv6 networks, in which the IPv4 ones carry on without a gap.

A peer's allowed IPs are otherwise replaced as a whole, and wireguard-go drops what arrives between the two steps.
"""

from __future__ import annotations

import base64

from agent.wireguard.device import Device
from agent.wireguard.keys import generate
from agent.wireguard.peer import Peer, sort_allowed_ips
from clustermesh.address import is_ipv4


async def keep_ipv4_only(device: Device) -> None:
    """Take every IPv6 network from the peers of `device`: given to a peer made for that, they go with it."""
    held = [cidr for state in (await device.peers()).values() for cidr in state.allowed_ips]
    taken = sort_allowed_ips(cidr for cidr in held if not is_ipv4(cidr.address))
    if taken:
        nobody = base64.b64encode(generate()).decode()
        await device.set_peers({nobody: Peer(public_key=nobody, endpoint=None, port=0, allowed_ips=taken, keepalive=0)})
        await device.remove_peers([nobody])
