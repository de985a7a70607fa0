"""The one shape of a WireGuard device, and the choice of who provides it: the kernel, else wireguard-go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, Protocol

from agent.wireguard import kernel
from agent.wireguard.peer import Peer, PeerState
from agent.wireguard.userspace import BINARY, SOCKETS, UserspaceDevice

NAME: Final = "cm-wg0"
LISTEN_PORT: Final = 51871  # Cilium's
FWMARK: Final = 0xE00  # Cilium's: "this packet is encrypted already"
IPV6_MIN_MTU: Final = 1280  # RFC 8200, section 5: the kernel has no IPv6 on a device with less
OVERHEAD: Final = 80  # bytes: outer IPv6 40, UDP 8, WireGuard 32; with an outer IPv4 header it is 60


class Device(Protocol):
    """A WireGuard device. No address ever sits on it: addresses and routes have to outlive it."""

    name: str
    kind: str
    why: str

    @property
    def silent_since(self) -> float | None: ...  # Unix time of the first question of late that got no answer in time

    @property
    def unlogged(self) -> str: ...  # why what serves it has no log, "" where it has or needs none

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        """Make it be there, be set and be up; True if it is new, so that its peers have to be set again."""
        ...

    async def peers(self) -> dict[str, PeerState]: ...
    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        """Add or change peers. The `extended` keep the allowed IPs they have, which are among the wanted ones: all
        others' are replaced as a whole, and for a moment their packets are dropped."""
        ...

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None: ...  # of peers that are there; none is made
    async def remove_peers(self, keys: Collection[str]) -> None: ...  # absent is success
    async def died(self) -> None: ...  # returns when `ensure` is due again


def tunnel_mtu(underlay_mtu: int) -> int:
    """The device's MTU in bytes. One byte more is fragmented on the underlay without anybody being told."""
    return underlay_mtu - OVERHEAD


async def open_device(
    name: str = NAME, *, log: Path, sockets: Path = SOCKETS, binary: str = BINARY, starter: Path | None = None
) -> Device:
    """The best device this machine can provide; `kind` and `why` go into the agent's status. Creates nothing yet.

    `log` is where a wireguard-go process writes, `starter` a pipe whose reader starts it.
    """
    lack = await kernel.find_lack()
    if lack is None:
        return kernel.KernelDevice(name, "the kernel has WireGuard")
    return UserspaceDevice(name, lack, log=log, sockets=sockets, binary=binary, starter=starter)
