"""One pod's veth pair and routes in the kernel: made, taken away, looked at. Idempotent; knows no files."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any, Final

from agent import netlink
from agent.cni.endpoint import EndpointRecord
from agent.cni.ipam import PodAddress
from agent.pyroute import AsyncIPRoute, NetlinkError
from clustermesh.address import Address, is_ipv4, parse, prefix_text, single, text
from clustermesh.errors import ClusterMeshError

POD_PROTOCOL: Final = 178  # of the routes to local pods; apart from the tunnel's, which are pruned as a whole
_PERMANENT: Final = 0x80  # NUD_PERMANENT, linux/neighbour.h
_ONLINK: Final = 4  # RTNH_F_ONLINK, linux/rtnetlink.h
_LOCAL: Final = 2  # RTN_LOCAL, linux/rtnetlink.h
_PATIENCE: Final = 5.0  # seconds
_NO_WAY: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES}  # no route, or one that refuses


async def attach(pod: EndpointRecord) -> None:
    """Make the pair and route the pod's addresses to it. Raises Unavailable or Refused; the caller then detaches."""
    what = f"attach {', '.join(text(address.ip) for address in pod.addresses)} as {pod.ifname} of {pod.netns}"
    async with netlink.connect(what) as ip:
        await _make_pair(ip, pod)
        link = await netlink.get_link(ip, pod.host_ifname)
        netlink.prepare_device(pod.host_ifname)
        await _set_up_pod(what, pod)
        await ip.link("set", index=link.ifindex, state="up")
        for address in pod.addresses:
            await _set_neighbour(ip, link.ifindex, address.ip, pod.mac)
            dst = prefix_text(single(address.ip))
            await ip.route("replace", dst=dst, oif=link.ifindex, scope=netlink.SCOPE_LINK, proto=POD_PROTOCOL)


def _has_ipv6(pod: EndpointRecord) -> bool:
    return any(not is_ipv4(address.ip) for address in pod.addresses)


async def _make_pair(ip: AsyncIPRoute, pod: EndpointRecord) -> None:
    netns = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": pod.ifname, "net_ns_fd": netns, "address": pod.mac, "mtu": pod.mtu}
        await ip.link("add", ifname=pod.host_ifname, kind="veth", address=pod.host_mac, mtu=pod.mtu, peer=peer)
    finally:
        os.close(netns)


async def _set_up_pod(what: str, pod: EndpointRecord) -> None:
    netns = Path(pod.netns)
    if _has_ipv6(pod):
        netlink.in_netns(netns, lambda: _enable_ipv6(pod.ifname))
    async with netlink.connect(what, netns) as ip:
        await ip.link("set", index=1, state="up")  # lo, the first device of every network namespace
        link = await netlink.get_link(ip, pod.ifname)
        await ip.link("set", index=link.ifindex, state="up")
        for address in pod.addresses:
            await _set_up_address(ip, link.ifindex, address, pod.host_mac)
        for address in pod.addresses:
            await _until_received(ip, address.ip)


def _enable_ipv6(ifname: str) -> None:
    """In the pod's namespace, where a container runtime may have disabled it."""
    for device in ("lo", ifname):
        netlink.write_ipv6(device, "disable_ipv6", 0)
    netlink.write_ipv6(ifname, "accept_ra", 0)


async def _set_up_address(ip: AsyncIPRoute, ifindex: int, address: PodAddress, host_mac: str) -> None:
    await netlink.put_address(ip, ifindex, address.ip)
    await _set_neighbour(ip, ifindex, address.gateway, host_mac)
    await ip.route("replace", dst=prefix_text(single(address.gateway)), oif=ifindex, scope=netlink.SCOPE_LINK)
    default = "0.0.0.0/0" if is_ipv4(address.ip) else "::/0"
    await ip.route("replace", dst=default, gateway=text(address.gateway), oif=ifindex, flags=_ONLINK)


async def _until_received(ip: AsyncIPRoute, address: Address) -> None:
    """A kernel that was given an IPv6 address takes packets for it once a worker of it had its turn, which on a busy
    machine is half a second later. Until then they are lost."""
    ends = time.monotonic() + _PATIENCE
    while time.monotonic() < ends:
        if [each["type"] for each in await _ways_to(ip, address)] == [_LOCAL]:
            return
        await asyncio.sleep(0.001)


async def _set_neighbour(ip: AsyncIPRoute, ifindex: int, address: Address, mac: str) -> None:
    await ip.neigh("replace", ifindex=ifindex, dst=text(address), lladdr=mac, state=_PERMANENT)


async def detach(host_ifname: str) -> None:
    """Take the pair away, and with it the pod's interface, routes and neighbours. Absent is success."""
    await netlink.delete_link(host_ifname)


async def is_attached(host_ifname: str) -> bool:
    """Whether the host's end is there."""
    return await netlink.find_link(host_ifname) is not None


async def find_fault(pod: EndpointRecord) -> str:
    """What is not as `attach` left it, in a sentence, or ""."""
    try:
        return await _find_host_fault(pod) or await _find_pod_fault(pod)
    except ClusterMeshError as e:
        return str(e)


async def _find_host_fault(pod: EndpointRecord) -> str:
    async with netlink.connect(f"look at {pod.host_ifname}") as ip:
        link = await netlink.lookup(ip, pod.host_ifname)
        if link is None:
            return f"the node has no device {pod.host_ifname}"
        for address in pod.addresses:
            if not await _leads_to(ip, address.ip, link.ifindex):
                return f"the node has no route to {text(address.ip)}"
    return ""


async def _leads_to(ip: AsyncIPRoute, address: Address, ifindex: int) -> bool:
    """Whether the kernel would send there through that device; asked for one, since the table may have 20,000."""
    return [message.get("oif") for message in await _ways_to(ip, address)] == [ifindex]


async def _ways_to(ip: AsyncIPRoute, address: Address) -> list[Any]:
    """The route that the kernel would take, if any."""
    try:
        return list(await ip.route("get", dst=text(address)))
    except NetlinkError as e:
        if e.code not in _NO_WAY:
            raise
        return []


async def _find_pod_fault(pod: EndpointRecord) -> str:
    async with netlink.connect(f"look at {pod.netns}", Path(pod.netns)) as ip:
        link = await netlink.lookup(ip, pod.ifname)
        if link is None or not link.up:
            return f"the pod has no {pod.ifname}, or it is down"
        if link.mac != pod.mac:
            return f"the pod's {pod.ifname} has MAC {link.mac} instead of {pod.mac}"
        held = {netlink.address_of(message) async for message in await ip.addr("dump", index=link.ifindex)}
        gateways = {route.get("gateway") for route in await netlink.main_routes(ip) if route["dst_len"] == 0}
    for address in pod.addresses:
        if address.ip not in held:
            return f"the pod's {pod.ifname} does not have {text(address.ip)}"
        if text(address.gateway) not in gateways:
            return f"the pod has no default route by {text(address.gateway)}"
    return ""


async def routed_addresses() -> set[Address]:
    """Every address the node routes to a local pod."""
    async with netlink.connect("list routes to pods") as ip:
        return {parse(route.get("dst")) for route in await netlink.main_routes(ip) if route["proto"] == POD_PROTOCOL}
