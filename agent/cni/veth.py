"""One pod's veth pair and routes in the kernel: made, taken away, looked at. Idempotent; knows no files."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any, Final, Protocol

from pyroute2 import AsyncIPRoute, NetlinkError

from agent import netlink
from clustermesh.errors import ClusterMeshError, Unavailable

POD_PROTOCOL: Final = 178  # of the routes to local pods; apart from the tunnel's, which are pruned as a whole
_MAIN_TABLE: Final = 254
_SCOPE_LINK: Final = 253
_PERMANENT: Final = 0x80  # NUD_PERMANENT, linux/neighbour.h
_ONLINK: Final = 4  # RTNH_F_ONLINK, linux/rtnetlink.h


class Pod(Protocol):
    """What attaching needs to know of a pod."""

    @property
    def ifname(self) -> str: ...
    @property
    def netns(self) -> str: ...
    @property
    def ip(self) -> str: ...
    @property
    def gateway(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def host_ifname(self) -> str: ...
    @property
    def host_mac(self) -> str: ...
    @property
    def mtu(self) -> int: ...


async def attach(pod: Pod) -> None:
    """Make the pair and route the pod's address to it. Raises Unavailable or Refused; the caller then detaches."""
    what = f"attach {pod.ip} as {pod.ifname} of {pod.netns}"
    async with netlink.connect(what) as ip:
        await _make_pair(ip, pod)
        link = await netlink.lookup(ip, pod.host_ifname)
        if link is None:
            raise Unavailable(f"{what}: the device {pod.host_ifname} is gone again")
        netlink.set_rp_filter(pod.host_ifname)
        await _set_up_pod(what, pod)
        await ip.link("set", index=link.ifindex, state="up")
        await _set_neighbour(ip, link.ifindex, pod.ip, pod.mac)
        await ip.route("replace", dst=f"{pod.ip}/32", oif=link.ifindex, scope=_SCOPE_LINK, proto=POD_PROTOCOL)


async def _make_pair(ip: AsyncIPRoute, pod: Pod) -> None:
    netns = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": pod.ifname, "net_ns_fd": netns, "address": pod.mac, "mtu": pod.mtu}
        await ip.link("add", ifname=pod.host_ifname, kind="veth", address=pod.host_mac, mtu=pod.mtu, peer=peer)
    finally:
        os.close(netns)


async def _set_up_pod(what: str, pod: Pod) -> None:
    async with netlink.connect(what, Path(pod.netns)) as ip:
        await ip.link("set", index=1, state="up")  # lo, the first device of every network namespace
        link = await netlink.lookup(ip, pod.ifname)
        if link is None:
            raise Unavailable(f"{what}: the pod has no {pod.ifname}")
        await ip.link("set", index=link.ifindex, state="up")
        await ip.addr("replace", index=link.ifindex, address=pod.ip, prefixlen=32)
        await _set_neighbour(ip, link.ifindex, pod.gateway, pod.host_mac)
        await ip.route("replace", dst=f"{pod.gateway}/32", oif=link.ifindex, scope=_SCOPE_LINK)
        await ip.route("replace", dst="0.0.0.0/0", gateway=pod.gateway, oif=link.ifindex, flags=_ONLINK)


async def _set_neighbour(ip: AsyncIPRoute, ifindex: int, address: str, mac: str) -> None:
    await ip.neigh("replace", ifindex=ifindex, dst=address, lladdr=mac, state=_PERMANENT)


async def detach(host_ifname: str) -> None:
    """Take the pair away, and with it the pod's interface, routes and neighbours. Absent is success."""
    await netlink.delete_link(host_ifname)


async def is_attached(host_ifname: str) -> bool:
    """Whether the host's end is there."""
    return await netlink.find_link(host_ifname) is not None


async def find_fault(pod: Pod) -> str:
    """What is not as `attach` left it, in a sentence, or ""."""
    try:
        if not await is_attached(pod.host_ifname):
            return f"the node has no device {pod.host_ifname}"
        if pod.ip not in await routed_addresses():
            return f"the node has no route to {pod.ip}"
        return await _find_pod_fault(pod)
    except ClusterMeshError as e:
        return str(e)


async def _find_pod_fault(pod: Pod) -> str:
    async with netlink.connect(f"look at {pod.netns}", Path(pod.netns)) as ip:
        link = await netlink.lookup(ip, pod.ifname)
        if link is None or not link.up:
            return f"the pod has no {pod.ifname}, or it is down"
        if link.mac != pod.mac:
            return f"the pod's {pod.ifname} has MAC {link.mac} instead of {pod.mac}"
        addresses = [message.get("local") async for message in await ip.addr("dump", index=link.ifindex)]
        if pod.ip not in addresses:
            return f"the pod's {pod.ifname} does not have {pod.ip}"
        if not await _has_default_route(ip, pod.gateway):
            return f"the pod has no default route by {pod.gateway}"
    return ""


async def _has_default_route(ip: AsyncIPRoute, gateway: str) -> bool:
    try:
        routes = await _routes(ip)
    except NetlinkError as e:
        if e.code == errno.ENOENT:
            return False
        raise
    return any(route["dst_len"] == 0 and route.get("gateway") == gateway for route in routes)


async def routed_addresses() -> set[str]:
    """Every address the node routes to a local pod."""
    async with netlink.connect("list routes to pods") as ip:
        return {route.get("dst") for route in await _routes(ip) if route["proto"] == POD_PROTOCOL}


async def _routes(ip: AsyncIPRoute) -> list[Any]:
    return [message async for message in await ip.route("dump", family=socket.AF_INET, table=_MAIN_TABLE)]
