"""WireGuard in the kernel, through generic netlink: the first choice wherever the kernel has it.

Support is found by trying: the netlink family may be absent only because its module is not loaded yet, and adding a
link of the kind is what loads it.
"""

from __future__ import annotations

import asyncio
import base64
import errno
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from agent import netlink
from agent.pyroute import AsyncIPRoute, AsyncWireGuard, NetlinkError
from agent.wireguard.keys import clamp, decode_public_key
from agent.wireguard.peer import DeviceState, Peer, PeerState, Settings, check_peer, sort_allowed_ips
from clustermesh.address import parse, parse_prefix, prefix_text, text
from clustermesh.errors import Refused, Unavailable

_PROBE_LINK: Final = "cm-wg-probe"
_WATCH_PERIOD: Final = 5.0  # seconds: a kernel device only goes when somebody deletes it


class _Family(AsyncWireGuard):  # type: ignore[misc]  # pyroute2 has no types
    """Without the library's own error log: an absent family is an answer here."""

    module_err_level = "debug"


@asynccontextmanager
async def _family(what: str) -> AsyncIterator[Any]:
    try:
        async with _Family() as family:
            yield family
    except (NetlinkError, OSError) as e:
        raise netlink.translate(what, e) from e


async def find_lack() -> str | None:
    """None where the kernel can do WireGuard, else a sentence that says what is missing."""
    try:
        async with _Family() as family:
            await family.setup_endpoint()
        return None
    except (NetlinkError, OSError):
        return await _find_link_lack()


async def _find_link_lack() -> str | None:
    try:
        async with AsyncIPRoute() as ip:
            await ip.link("add", ifname=_PROBE_LINK, kind="wireguard")
    except (NetlinkError, OSError) as e:
        code = getattr(e, "code", None) or e.errno
        if code == errno.EOPNOTSUPP:
            return "this kernel has no WireGuard (neither built in nor as a module)"
        if code != errno.EEXIST:
            return f"the kernel's WireGuard cannot be used: {netlink.translate('add a device', e)}"
    await netlink.delete_link(_PROBE_LINK)
    return None


def peer_request(key: str, peer: Peer, *, extends: bool = False) -> dict[str, Any]:
    """A peer in pyroute2's words; one that `extends` keeps its allowed IPs. Raises Invalid."""
    check_peer(key, peer)
    request: dict[str, Any] = {
        "public_key": key,
        "persistent_keepalive": peer.keepalive,
        "replace_allowed_ips": not extends,
        "allowed_ips": [prefix_text(cidr) for cidr in peer.allowed_ips],
    }
    if peer.endpoint is not None:
        request |= {"endpoint_addr": text(peer.endpoint), "endpoint_port": peer.port}
    return request


def parse_device(messages: Iterable[Any]) -> DeviceState:
    """The answer to a device dump. A peer with many allowed IPs comes in several pieces, which are joined here."""
    settings: Settings | None = None
    pieces: dict[str, list[Any]] = {}
    for message in messages:
        raw = message.get_attr("WGDEVICE_A_PRIVATE_KEY")
        if raw is not None:
            settings = Settings(
                private_key=base64.b64decode(raw),
                listen_port=message.get_attr("WGDEVICE_A_LISTEN_PORT") or 0,
                fwmark=message.get_attr("WGDEVICE_A_FWMARK") or 0,
            )
        for piece in message.get_attr("WGDEVICE_A_PEERS") or ():
            key = piece.get_attr("WGPEER_A_PUBLIC_KEY")
            pieces.setdefault(key.decode() if isinstance(key, bytes) else key, []).append(piece)
    return DeviceState(settings=settings, peers={key: _join_pieces(found) for key, found in pieces.items()})


def _join_pieces(pieces: list[Any]) -> PeerState:
    first = pieces[0]  # only the first carries more than the key and allowed IPs
    endpoint = first.get_attr("WGPEER_A_ENDPOINT")
    handshake = first.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or {}
    cidrs = [parse_prefix(ip["addr"]) for piece in pieces for ip in piece.get_attr("WGPEER_A_ALLOWEDIPS") or ()]
    return PeerState(
        endpoint=(parse(endpoint["addr"]), endpoint["port"]) if endpoint else None,
        allowed_ips=sort_allowed_ips(cidrs),
        last_handshake=handshake.get("tv_sec", 0) + handshake.get("tv_nsec", 0) / 1e9,
        rx=first.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx=first.get_attr("WGPEER_A_TX_BYTES") or 0,
        keepalive=first.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
    )


class KernelDevice:
    """A device of the kernel's own WireGuard."""

    kind = "kernel"
    silent_since = None  # the kernel answers
    unlogged = ""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why

    async def ensure(self, private_key: bytes, listen_port: int, fwmark: int, mtu: int) -> bool:
        """Make the device exist with these settings and be up. True if it had to be made."""
        wanted = Settings(private_key=clamp(private_key), listen_port=listen_port, fwmark=fwmark)
        link = await netlink.find_link(self.name)
        if link is not None and link.kind != "wireguard":
            raise Refused(
                f"{self.name} is a device of kind {link.kind or 'hardware'}: remove it (ip link del {self.name})"
            )
        made = link is None
        if made:
            async with netlink.connect(f"add device {self.name}") as ip:
                await ip.link("add", ifname=self.name, kind="wireguard")
        if (await self._read()).settings != wanted:
            key = base64.b64encode(wanted.private_key).decode()
            async with _family(f"set up {self.name}") as family:
                await family.setup_endpoint()
                await family.set(self.name, private_key=key, listen_port=listen_port, fwmark=fwmark)
        netlink.prepare_device(self.name)
        await netlink.set_up(self.name, mtu)
        return made

    async def peers(self) -> dict[str, PeerState]:
        return dict((await self._read()).peers)

    async def set_peers(self, peers: Mapping[str, Peer], extended: Collection[str] = ()) -> None:
        """Add or change peers; nothing is sent if one of them is Invalid."""
        await self._apply([peer_request(key, peer, extends=key in extended) for key, peer in peers.items()])

    async def set_keepalives(self, seconds: Mapping[str, int]) -> None:
        """Change only the keepalive of peers. A peer that is absent stays absent."""
        await self._apply(
            [{"public_key": k, "persistent_keepalive": s, "update_only": True} for k, s in seconds.items()]
        )

    async def remove_peers(self, keys: Collection[str]) -> None:
        for key in keys:
            decode_public_key(key)
        await self._apply([{"public_key": key, "remove": True} for key in keys])

    async def died(self) -> None:
        while await netlink.find_link(self.name) is not None:  # noqa: ASYNC110  # the kernel is no asyncio.Event
            await asyncio.sleep(_WATCH_PERIOD)

    async def _apply(self, requests: list[dict[str, Any]]) -> None:
        async with _family(f"configure {self.name}") as family:
            await family.setup_endpoint()
            for request in requests:
                await family.set(self.name, peer=request)

    async def _read(self) -> DeviceState:
        async with _family(f"read {self.name}") as family:
            await family.setup_endpoint()
            try:
                return parse_device([message async for message in await family.info(self.name)])
            except NetlinkError as e:
                if netlink.is_gone(e):
                    raise Unavailable(f"there is no device {self.name}") from e
                raise
