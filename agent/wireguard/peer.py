"""Peers as they are wanted and as a device reports them: frozen structs and their rules, without I/O.

A public key is base64 text everywhere above the wire; an endpoint is the outer address, allowed IPs the CIDRs behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from msgspec import Struct

from agent.wireguard.keys import decode_public_key
from clustermesh.errors import Invalid

KEEPALIVE: Final = 25  # seconds: under the 30 s of common NATs, and what makes a restarted side shake hands at once
REJECT_AFTER: Final = 180.0  # seconds: WireGuard's REJECT_AFTER_TIME, after which a session carries nothing


class Peer(Struct, frozen=True, gc=False, kw_only=True):
    """A peer as wanted. `endpoint` "" leaves the endpoint to be learnt; `allowed_ips` are canonical and sorted."""

    endpoint: str
    port: int
    allowed_ips: tuple[str, ...]
    keepalive: int = KEEPALIVE


class PeerState(Struct, frozen=True, gc=False, kw_only=True):
    """A peer as a device reports it. `last_handshake`: Unix time in seconds, 0.0 before the first; `rx`, `tx`: bytes.

    A device in user space counts received packets that it then dropped for their inner source in `rx`, too.
    """

    endpoint: tuple[str, int] | None = None
    allowed_ips: tuple[str, ...] = ()
    last_handshake: float = 0.0
    rx: int = 0
    tx: int = 0
    keepalive: int = 0


class Settings(Struct, frozen=True, gc=False, kw_only=True):
    """What a device itself is told. `private_key`: 32 clamped bytes; `fwmark` marks the encrypted packets it sends."""

    private_key: bytes
    listen_port: int
    fwmark: int


class DeviceState(Struct, frozen=True, gc=False, kw_only=True):
    """A whole device as it reports itself; `settings` is None before it has a private key."""

    settings: Settings | None
    peers: Mapping[str, PeerState]


def sort_allowed_ips(cidrs: Iterable[str]) -> tuple[str, ...]:
    """The one order in which wanted and reported allowed IPs are compared: family, address, length. Raises Invalid."""
    try:
        networks = {ip_network(cidr) for cidr in cidrs}
    except ValueError as e:
        raise Invalid("allowed IPs", cidrs, f"must be CIDRs without host bits ({e})") from e
    return tuple(str(n) for n in sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen)))


def check_peer(public_key: str, peer: Peer) -> None:
    """Raise Invalid for whatever a device would refuse: devices apply half of a bad request, so none is sent."""
    decode_public_key(public_key)
    if peer.endpoint:
        _check_endpoint(peer.endpoint, peer.port)
    if not 0 <= peer.keepalive <= 65535:
        raise Invalid("keepalive", peer.keepalive, "must be 0 to 65535 seconds")
    if sort_allowed_ips(peer.allowed_ips) != peer.allowed_ips:
        raise Invalid("allowed IPs", peer.allowed_ips, "must be canonical, sorted and without repetition")


def _check_endpoint(endpoint: str, port: int) -> None:
    try:
        address = ip_address(endpoint)
    except ValueError as e:
        raise Invalid("endpoint", endpoint, "must be an IP address") from e
    if address.is_unspecified or address.is_multicast:
        raise Invalid("endpoint", endpoint, "must be the address of one machine")
    if not 1 <= port <= 65535:
        raise Invalid("endpoint port", port, "must be 1 to 65535")


def is_down(before: PeerState, now: PeerState, time: float) -> bool:
    """True when nothing comes back from a peer: WireGuard itself reports no error for a dead one.

    `before` is the same peer some time ago, `time` Unix time. Down: no session any more; more was sent, none received.
    """
    return time - now.last_handshake > REJECT_AFTER and now.tx > before.tx and now.rx == before.rx
