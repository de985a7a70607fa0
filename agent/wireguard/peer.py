"""Peers as they are wanted and as a device reports them: frozen structs and their rules, without I/O.

A public key is base64 text everywhere above the wire; an endpoint is the outer address, allowed IPs the CIDRs behind,
each of either family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from agent.wireguard.keys import decode_public_key
from clustermesh.address import Address, Prefix, contains, is_ipv4, masked, parse, parse_prefix, prefix_text, text
from clustermesh.errors import Invalid

KEEPALIVE: Final = 25  # seconds: under the 30 s of common NATs, and what makes a restarted side shake hands at once
_NOWHERE: Final = (parse("0.0.0.0"), parse("::"))
_MANY: Final = (parse_prefix("224.0.0.0/4"), parse_prefix("ff00::/8"))
REJECT_AFTER: Final = 180.0  # seconds: WireGuard's REJECT_AFTER_TIME, after which a session carries nothing


class PeerKey(NamedTuple):
    """Whose peer it is: the node, and which of its devices. A peer that nobody named is `stranger(public key)`."""

    cluster: str
    node: str
    generation: int = 0


def stranger(public_key: str) -> PeerKey:
    """A peer that a device has and nobody of this process gave it."""
    return PeerKey("", public_key)


class Peer(Struct, frozen=True, gc=False, kw_only=True):
    """A peer as wanted, with the key that its device knows it by. `endpoint` None leaves the endpoint to be learnt;
    `allowed_ips` are sorted."""

    public_key: str = ""
    endpoint: Address | None
    port: int
    allowed_ips: tuple[Prefix, ...]
    keepalive: int = KEEPALIVE


class PeerState(Struct, frozen=True, gc=False, kw_only=True):
    """A peer as a device reports it. `last_handshake`: Unix time in seconds, 0.0 before the first; `rx`, `tx`: bytes.

    A device in user space counts received packets that it then dropped for their inner source in `rx`, too.
    """

    endpoint: tuple[Address, int] | None = None
    allowed_ips: tuple[Prefix, ...] = ()
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


def endpoint_text(address: Address, port: int) -> str:
    """ "192.0.2.1:51871", "[fd00::1]:51871"."""
    return f"{text(address)}:{port}" if is_ipv4(address) else f"[{text(address)}]:{port}"


def sort_allowed_ips(cidrs: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The one order in which wanted and reported allowed IPs are compared."""
    return tuple(sorted(set(cidrs)))


def check_peer(public_key: str, peer: Peer) -> None:
    """Raise Invalid for whatever a device would refuse: devices apply half of a bad request, so none is sent."""
    decode_public_key(public_key)
    if peer.endpoint is not None:
        _check_endpoint(peer.endpoint, peer.port)
    if not 0 <= peer.keepalive <= 65535:
        raise Invalid("keepalive", peer.keepalive, "must be 0 to 65535 seconds")
    for cidr in peer.allowed_ips:
        if masked(cidr.address, cidr.length) != cidr.address:
            raise Invalid("allowed IPs", prefix_text(cidr), "must be a network")
    if sort_allowed_ips(peer.allowed_ips) != peer.allowed_ips:
        raise Invalid("allowed IPs", " ".join(map(prefix_text, peer.allowed_ips)), "must be sorted, each once")


def _check_endpoint(endpoint: Address, port: int) -> None:
    if endpoint in _NOWHERE or any(contains(block, endpoint) for block in _MANY):
        raise Invalid("endpoint", text(endpoint), "must be the address of one machine")
    if not 1 <= port <= 65535:
        raise Invalid("endpoint port", port, "must be 1 to 65535")
