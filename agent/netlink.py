"""The few netlink and sysctl verbs a node needs. Every verb is idempotent; foreign errors become ours here.

A socket lives for one `connect()` block: opening one costs about 0.2 ms, and nothing is shared between tasks or loops.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agent.pyroute import AsyncIPRoute, NetlinkError
from clustermesh.address import Address, family_length, is_ipv4, parse, single, text
from clustermesh.errors import ClusterMeshError, Refused, Unavailable

T = TypeVar("T")
MAIN_TABLE: Final = 254
SCOPE_LINK: Final = 253
ADDRESS_PROTOCOL: Final = 177  # IFA_PROTO of router addresses, as of our routes
_NODAD: Final = 2  # IFA_F_NODAD, linux/if_addr.h: the address is ours alone, and usable at once
_NO_LINK_LOCAL: Final = 1  # addr_gen_mode
_IPV6: Final = Path("/proc/sys/net/ipv6/conf")
_CLONE_NEWNET: Final = 0x40000000
GONE: Final = {errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.ENXIO, errno.EADDRNOTAVAIL}
_FOR_GOOD: Final = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.EEXIST, errno.EAFNOSUPPORT}


class Link(NamedTuple):
    """A network device as the kernel reports it. `kind` is "" for hardware, else veth, tun, wireguard ..."""

    ifindex: int
    name: str
    mtu: int
    up: bool
    mac: str
    kind: str


def translate(what: str, error: NetlinkError | OSError) -> ClusterMeshError:
    """A kernel's refusal as Refused (it takes a person) or Unavailable (it may pass)."""
    code = getattr(error, "code", None) or error.errno or 0
    sentence = f"{what}: {os.strerror(code) if code else error}"
    return Refused(sentence) if code in _FOR_GOOD else Unavailable(sentence)


def is_gone(error: NetlinkError) -> bool:
    """True where a delete failed only because there is nothing to delete."""
    return error.code in GONE


@asynccontextmanager
async def connect(what: str, netns: Path | None = None) -> AsyncIterator[AsyncIPRoute]:
    """A netlink socket for the length of the block, in the network namespace at `netns` if given.

    A NetlinkError or OSError that leaves the block becomes "`what`: reason" of our own kind.
    """
    try:
        fd = None if netns is None else in_netns(netns, _netlink_socket)
        async with AsyncIPRoute(fileno=fd) as ip:
            ip.fileno()  # it takes the descriptor over at its first use, and a block may have none
            yield ip
    except (NetlinkError, OSError) as e:
        raise translate(what, e) from e


def _netlink_socket() -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE).detach()


def in_netns(netns: Path, work: Callable[[], T]) -> T:
    """`work()` done inside the network namespace at `netns`. Raises OSError, and what `work` raises.

    A thread of its own enters the namespace and ends there, so no other code can ever find itself inside it.
    """
    outcome: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            _set_netns(netns)
            outcome.append(work())
        except BaseException as e:  # carried to the caller's thread
            errors.append(e)

    thread = threading.Thread(target=enter, name=f"netns {netns.name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _set_netns(netns: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"{netns} cannot be entered")
    finally:
        os.close(fd)


async def find_link(name: str, netns: Path | None = None) -> Link | None:
    """The device called `name`, or None."""
    async with connect(f"look up device {name}", netns) as ip:
        return await lookup(ip, name)


async def lookup(ip: AsyncIPRoute, name: str) -> Link | None:
    """As `find_link`, over a socket that is open already."""
    try:
        return await get_link(ip, name)
    except NetlinkError as e:
        if not is_gone(e):
            raise
    return None


async def get_link(ip: AsyncIPRoute, name: str) -> Link:
    """As `lookup`; a NetlinkError where there is none."""
    for message in await ip.link("get", ifname=name):
        return _link(message)
    raise NetlinkError(errno.ENODEV)


def _link(message: Any) -> Link:
    info = message.get("linkinfo") or {}
    return Link(
        ifindex=message["index"],
        name=message.get("ifname"),
        mtu=message.get("mtu") or 0,
        up=bool(message["flags"] & 1),  # IFF_UP
        mac=message.get("address") or "",
        kind=info.get("kind") or "",
    )


async def find_link_by_address(address: Address) -> Link | None:
    """The device that holds `address` (of this machine), or None: the underlay a node's traffic leaves through."""
    async with connect(f"look up the device of {text(address)}") as ip:
        async for message in await ip.addr("dump"):
            if address_of(message) == address:
                for link in await ip.link("get", index=message["index"]):
                    return _link(link)
    return None


def address_of(message: Any) -> Address | None:
    """The device's own address in an answer of the kernel; None where it has none of the two families."""
    own = message.get("local") or message.get("address")  # IPv6 says `local` only where the other end has an address
    return parse(own) if own else None


async def main_routes(ip: AsyncIPRoute) -> list[Any]:
    """The routes of the main table, both families."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6) if has_ipv6() else (socket.AF_INET,):
        try:
            dump = await ip.route("dump", family=family, table=MAIN_TABLE)
            found += [message async for message in dump if message.get("table") == MAIN_TABLE]
        except NetlinkError as e:
            if e.code != errno.ENOENT:  # the family has no such table yet
                raise
    return found


async def set_up(name: str, mtu: int | None = None) -> None:
    """Give the device `name` an MTU (bytes) and take it up. Raises Unavailable when it is not there."""
    async with connect(f"set up device {name}") as ip:
        link = await get_link(ip, name)
        if mtu is not None and link.mtu != mtu:
            await ip.link("set", index=link.ifindex, mtu=mtu)
        if not link.up:
            await ip.link("set", index=link.ifindex, state="up")


async def delete_link(name: str) -> None:
    """Make the device `name` absent; the other end of a veth pair goes with it."""
    async with connect(f"delete device {name}") as ip:
        link = await lookup(ip, name)
        if link is not None:
            await ignore_gone(ip.link("del", index=link.ifindex))


async def ignore_gone(request: Any) -> None:
    """Await a delete; what is absent already is deleted."""
    try:
        await request
    except NetlinkError as e:
        if not is_gone(e):
            raise


async def add_address(name: str, address: Address) -> None:
    """Give the device `name` an address of its own (/32, /128). A router address is on "lo": it outlives the tunnel."""
    async with connect(f"add {text(address)} to {name}") as ip:
        await put_address(ip, (await get_link(ip, name)).ifindex, address, proto=ADDRESS_PROTOCOL)


async def remove_addresses(name: str) -> list[Address]:
    """Take from the device `name` what `add_address` gave it, and say what that was; nothing on kernels before 5.18,
    which do not remember whose an address is."""
    async with connect(f"take addresses from {name}") as ip:
        ifindex = (await get_link(ip, name)).ifindex
        found = [message async for message in await ip.addr("dump", index=ifindex)]
        ours = [each for each in found if each["index"] == ifindex and each.get("proto") == ADDRESS_PROTOCOL]
        held = [(address, each["prefixlen"]) for each in ours if (address := address_of(each)) is not None]
        for address, length in held:
            await ignore_gone(ip.addr("del", index=ifindex, address=text(address), prefixlen=length))
    return [address for address, _ in held]


async def put_address(ip: AsyncIPRoute, ifindex: int, address: Address, **more: int) -> None:
    """As `add_address`, over a socket that is open already, and nobody's."""
    flags = more if is_ipv4(address) else {"flags": _NODAD} | more
    length = family_length(single(address))
    await ip.addr("replace", index=ifindex, address=text(address), prefixlen=length, **flags)


def has_ipv6(device: str = "all") -> bool:
    """Whether this kernel has IPv6, and for a device: whether it can have it, which takes an MTU of 1280."""
    return (_IPV6 / device).exists()


def write_sysctl(name: str, value: int) -> None:
    """`net.ipv4.ip_forward` style, with "/" for "." inside a device name. Raises Refused or Unavailable."""
    _write(Path("/proc/sys", *name.split(".")), value)


def write_ipv6(device: str, setting: str, value: int) -> None:
    """A setting of net.ipv6.conf of one device, of this thread's network namespace. Raises Refused or Unavailable."""
    _write(_IPV6 / device / setting, value)


def set_rp_filter(device: str, value: int = 0) -> None:
    """The reverse path filter of one device. The kernel uses the greater of this and `all`, so both must be 0."""
    _write(Path("/proc/sys/net/ipv4/conf", device, "rp_filter"), value)


def _write(path: Path, value: int) -> None:
    try:
        if path.read_text().strip() != str(value):  # /proc/sys may be read-only and right already
            path.write_text(f"{value}\n")
    except OSError as e:
        raise translate(f"set {path.relative_to('/proc/sys')}={value}", e) from e


def prepare_device(device: str) -> None:
    """A device between pods and the mesh, before it is up: whatever way a packet came is right, no address of its own,
    and nothing that comes through it is believed of routers and prefixes."""
    set_rp_filter(device)
    if has_ipv6(device):
        for setting, value in (("disable_ipv6", 0), ("accept_ra", 0), ("addr_gen_mode", _NO_LINK_LOCAL)):
            write_ipv6(device, setting, value)


async def prepare_node(routers: Collection[Address]) -> None:
    """What a node needs before its first pod or peer: forwarding of each family that it has a router address of, no
    reverse path filter, its router addresses on lo."""
    await set_up("lo")
    if any(map(is_ipv4, routers)):
        write_sysctl("net.ipv4.ip_forward", 1)
        for device in ("all", "default"):
            set_rp_filter(device)
    if not all(map(is_ipv4, routers)):
        write_ipv6("lo", "disable_ipv6", 0)
        _forward_ipv6()
    for router in routers:
        await add_address("lo", router)


def _forward_ipv6() -> None:
    """A node that forwards no longer listens to router advertisements, and drops the default route it had from one,
    unless the device's accept_ra is 2."""
    if (_IPV6 / "all" / "forwarding").read_text() == "1\n":
        return
    for setting in _IPV6.glob("*/accept_ra"):
        if setting.parent.name not in ("all", "default") and setting.read_text() == "1\n":
            _write(setting, 2)
    write_sysctl("net.ipv6.conf.all.forwarding", 1)
