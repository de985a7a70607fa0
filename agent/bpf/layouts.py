"""Keys and values of the maps, as bpf/layouts.h has them: that header is the source, a test compares every field.

Addresses are ints in host order here (10.0.0.1 is 0x0a000001) and ports are plain ints; `pack` and `unpack` turn them
into network order. `pack` raises struct.error or OverflowError for a number that does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from socket import AF_INET, htonl, htons, inet_pton
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from clustermesh.model import Protocol

LAYOUT_VERSION: Final = "v1"
"""The folder that holds the pinned maps. A change of bpf/layouts.h that old programs could not read raises it."""

PROTOCOL_NUMBERS: Final[Mapping[Protocol, int]] = MappingProxyType(
    {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
)

_SERVICE_KEY: Final = Struct("=IHHB3x")
_SERVICE: Final = Struct("=IHH")
_ID: Final = Struct("=I")
_BACKEND: Final = Struct("=IHBBH2x")
_REVERSE_KEY: Final = Struct("=QIH2x")
_REVERSE: Final = Struct("=IH2x")
_CIDR_KEY: Final = Struct("=II")
_IPCACHE: Final = Struct("=IIB3x")


class BackendState(IntEnum):
    """Only ACTIVE backends are given to new connections."""

    ACTIVE = 0
    TERMINATING = 1
    QUARANTINED = 2
    MAINTENANCE = 3


class Reason(IntEnum):
    """What the programs count: the index into the map `metrics`."""

    CONNECT = 0
    DATAGRAM = 1
    REPLY = 2
    PICK_RETRIED = 3
    REVERSE_LOST = 4
    DROP_NO_BACKEND = 5
    DROP_CLEAR_INGRESS = 6
    DROP_CLEAR_EGRESS = 7

    @property
    def is_drop(self) -> bool:
        return self.name.startswith("DROP_")


class NodeIdentity(IntEnum):
    """Identities of machines. In the ipcache they mark an address that strict mode lets talk in clear."""

    HOST = 1
    REMOTE_NODE = 6
    KUBE_APISERVER = 7


def ipv4(text: str) -> int:
    """ "10.0.0.1" as 0x0a000001; AddressValueError (a ValueError) for anything but a dotted IPv4 address."""
    try:
        return int.from_bytes(inet_pton(AF_INET, text), "big")  # five times as fast as ipaddress
    except OSError as e:
        raise AddressValueError(f"{text!r} is not an IPv4 address") from e


def ipv4_text(address: int) -> str:
    return str(IPv4Address(address))


class ServiceKey(NamedTuple):
    """Key of lb4_services. Slot 0 is the service itself, slots 1 to its count hold a backend each."""

    address: int
    port: int
    slot: int
    protocol: int

    def pack(self) -> bytes:
        return _SERVICE_KEY.pack(htonl(self.address), htons(self.port), self.slot, self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port, slot, protocol = _SERVICE_KEY.unpack(data)
        return cls(htonl(address), htons(port), slot, protocol)


class ServiceValue(NamedTuple):
    """Value of lb4_services. Slot 0 says how many `slots` follow (`count` in C), each of those its backend id."""

    backend_id: int = 0
    slots: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _SERVICE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_SERVICE.unpack(data))


class BackendKey(NamedTuple):
    """Key of lb4_backends."""

    id: int

    def pack(self) -> bytes:
        return _ID.pack(self.id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_ID.unpack(data))


class Backend(NamedTuple):
    """Value of lb4_backends. `cluster_id` says whose it is; `state` is a BackendState."""

    address: int
    port: int
    protocol: int
    state: int = BackendState.ACTIVE
    cluster_id: int = 0

    def pack(self) -> bytes:
        return _BACKEND.pack(htonl(self.address), htons(self.port), self.protocol, self.state, self.cluster_id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port, protocol, state, cluster_id = _BACKEND.unpack(data)
        return cls(htonl(address), htons(port), protocol, state, cluster_id)


class ReverseKey(NamedTuple):
    """Key of lb4_reverse_sk: a socket's cookie and the backend it was sent to."""

    cookie: int
    address: int
    port: int

    def pack(self) -> bytes:
        return _REVERSE_KEY.pack(self.cookie, htonl(self.address), htons(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        cookie, address, port = _REVERSE_KEY.unpack(data)
        return cls(cookie, htonl(address), htons(port))


class ReverseValue(NamedTuple):
    """Value of lb4_reverse_sk: the service the socket meant."""

    address: int
    port: int

    def pack(self) -> bytes:
        return _REVERSE.pack(htonl(self.address), htons(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port = _REVERSE.unpack(data)
        return cls(htonl(address), htons(port))


class AddressKey(NamedTuple):
    """Key of ipcache4."""

    address: int

    def pack(self) -> bytes:
        return _ID.pack(htonl(self.address))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(htonl(*_ID.unpack(data)))


class CidrKey(NamedTuple):
    """Key of ipcache4_cidr. Bits of `address` beyond the prefix are zero: with others, two keys would be one entry."""

    prefix_length: int
    address: int

    @classmethod
    def parse(cls, cidr: str) -> Self:
        """ "10.1.0.0/24"; ValueError for anything else, host bits included."""
        network = IPv4Network(cidr)
        return cls(network.prefixlen, int(network.network_address))

    def pack(self) -> bytes:
        if not 0 <= self.prefix_length <= 32 or self.address & (0xFFFFFFFF >> self.prefix_length):
            raise OverflowError(f"{self} has bits set beyond its prefix, or a prefix beyond 32")
        return _CIDR_KEY.pack(self.prefix_length, htonl(self.address))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        prefix_length, address = _CIDR_KEY.unpack(data)
        return cls(prefix_length, htonl(address))


class IpcacheValue(NamedTuple):
    """Value of ipcache4 and ipcache4_cidr. `tunnel_endpoint` is the node's address, 0 for this node; `key` is 255 where
    traffic is encrypted by WireGuard, else 0."""

    identity: int
    tunnel_endpoint: int = 0
    key: int = 0

    def pack(self) -> bytes:
        return _IPCACHE.pack(self.identity, htonl(self.tunnel_endpoint), self.key)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        identity, tunnel_endpoint, key = _IPCACHE.unpack(data)
        return cls(identity, htonl(tunnel_endpoint), key)
