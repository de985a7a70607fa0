"""Keys and values of the maps, as bpf/layouts.h has them: that header is the source, a test compares every field.

Addresses are of either family, 16 bytes as in the maps; ports are plain ints, which `pack` and `unpack` turn into
network order. `pack` raises struct.error or OverflowError for what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from socket import htons
from struct import Struct
from types import MappingProxyType
from typing import Final, NamedTuple, Self

from clustermesh.address import BITS, Address, Prefix, masked
from clustermesh.mesh.resolve import BackendState
from clustermesh.model import Protocol

LAYOUT_VERSION: Final = "v2"
"""The folder that holds the pinned maps. A change of bpf/layouts.h that old programs could not read raises it."""

PROTOCOL_NUMBERS: Final[Mapping[Protocol, int]] = MappingProxyType(
    {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
)

NO_ADDRESS: Final = Address(bytes(16))
"""Where there is none."""

LB_FULL: Final = 65535
LB_CLUSTERS: Final = 512
GROUPS_PER_BLOCK: Final = 8
SLOTS_PER_BLOCK: Final = 16

_SERVICE_KEY: Final = Struct("=16sHBB")
_SERVICE: Final = Struct("=IIIHHBBBx")
_BLOCK_KEY: Final = Struct("=IH2x")
_GROUP: Final = Struct("=IHHB3x")
_SLOTS_KEY: Final = Struct("=IHH")
_SLOTS: Final = Struct(f"={SLOTS_PER_BLOCK}I")
_ID: Final = Struct("=I")
_BACKEND: Final = Struct("=16sHBBHHH2x")
_CLUSTERS: Final = Struct(f"={LB_CLUSTERS}H")
_REVERSE_KEY: Final = Struct("=Q16sH6x")
_REVERSE: Final = Struct("=16sH2x")
_CIDR_KEY: Final = Struct("=I16s")
_IPCACHE: Final = Struct("=I16sBB2x")


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


def _whole(address: Address) -> Address:
    """struct would cut or fill one of another length without a word."""
    if len(address) != 16:
        raise OverflowError(f"{address!r} is no address of 16 bytes")
    return address


class ServiceKey(NamedTuple):
    """Key of lb_services: where a service is called."""

    address: Address
    port: int
    protocol: int
    scope: int = 0

    def pack(self) -> bytes:
        return _SERVICE_KEY.pack(_whole(self.address), htons(self.port), self.protocol, self.scope)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port, protocol, scope = _SERVICE_KEY.unpack(data)
        return cls(address, htons(port), protocol, scope)


class ServiceValue(NamedTuple):
    """Value of lb_services: `groups` is how many there are, `weight` that of all together."""

    service_id: int
    weight: int = 0
    affinity_seconds: int = 0
    groups: int = 0
    flags: int = 0
    kind: int = 0
    algorithm: int = 0
    tiers: int = 0

    def pack(self) -> bytes:
        return _SERVICE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_SERVICE.unpack(data))


class GroupsKey(NamedTuple):
    """Key of lb_groups: groups 8 x block to 8 x block + 7 of the service."""

    service_id: int
    block: int = 0

    def pack(self) -> bytes:
        return _BLOCK_KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_BLOCK_KEY.unpack(data))


class LbGroup(NamedTuple):
    """One group in a value of lb_groups: its weight and those of the groups before it, and how many backends it has."""

    weight_end: int
    cluster_id: int = 0
    slots: int = 0
    tier: int = 0

    def pack(self) -> bytes:
        return _GROUP.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_GROUP.unpack(data))


class GroupsValue(NamedTuple):
    """Value of lb_groups: a whole block, the places nobody has repeating the last weight_end."""

    groups: tuple[LbGroup, ...]

    def pack(self) -> bytes:
        if len(self.groups) != GROUPS_PER_BLOCK:
            raise OverflowError(f"{len(self.groups)} groups are no block")
        return b"".join([_GROUP.pack(*group) for group in self.groups])

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(tuple(LbGroup(*group) for group in _GROUP.iter_unpack(data)))


class SlotsKey(NamedTuple):
    """Key of lb_slots: slots 16 x block to 16 x block + 15 of the group."""

    service_id: int
    group: int = 0
    block: int = 0

    def pack(self) -> bytes:
        return _SLOTS_KEY.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_SLOTS_KEY.unpack(data))


class SlotsValue(NamedTuple):
    """Value of lb_slots: ids of backends, a whole block of them."""

    backend_ids: tuple[int, ...]

    def pack(self) -> bytes:
        return _SLOTS.pack(*self.backend_ids)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(_SLOTS.unpack(data))


class BackendKey(NamedTuple):
    """Key of lb_backends."""

    id: int

    def pack(self) -> bytes:
        return _ID.pack(self.id)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_ID.unpack(data))


class BackendValue(NamedTuple):
    """Value of lb_backends. `cluster_id` says whose it is; `state` is a BackendState."""

    address: Address
    port: int
    protocol: int
    state: int = BackendState.ACTIVE
    cluster_id: int = 0
    weight: int = 0
    zone: int = 0

    def pack(self) -> bytes:
        address, port, protocol, state, cluster_id, weight, zone = self
        return _BACKEND.pack(_whole(address), htons(port), protocol, state, cluster_id, weight, zone)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port, protocol, state, cluster_id, weight, zone = _BACKEND.unpack(data)
        return cls(address, htons(port), protocol, state, cluster_id, weight, zone)


class ClustersKey(NamedTuple):
    """Key of lb_clusters, which has one entry."""

    number: int = 0

    def pack(self) -> bytes:
        return _ID.pack(self.number)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_ID.unpack(data))


class ClustersValue(NamedTuple):
    """Value of lb_clusters: what each cluster, by its id, does not get of its share, of LB_FULL."""

    reduced: tuple[int, ...]

    def pack(self) -> bytes:
        return _CLUSTERS.pack(*self.reduced)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(_CLUSTERS.unpack(data))


class ReverseKey(NamedTuple):
    """Key of lb_reverse_sk: a socket's cookie and the backend it was sent to."""

    cookie: int
    address: Address
    port: int

    def pack(self) -> bytes:
        return _REVERSE_KEY.pack(self.cookie, _whole(self.address), htons(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        cookie, address, port = _REVERSE_KEY.unpack(data)
        return cls(cookie, address, htons(port))


class ReverseValue(NamedTuple):
    """Value of lb_reverse_sk: the service the socket meant."""

    address: Address
    port: int

    def pack(self) -> bytes:
        return _REVERSE.pack(_whole(self.address), htons(self.port))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        address, port = _REVERSE.unpack(data)
        return cls(address, htons(port))


class AddressKey(NamedTuple):
    """Key of ipcache."""

    address: Address

    def pack(self) -> bytes:
        return _whole(self.address)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(Address(data))


class CidrKey(NamedTuple):
    """Key of ipcache_cidr. Bits of `address` beyond the prefix are zero: with others, two keys would be one entry."""

    prefix_length: int
    address: Address

    @classmethod
    def of(cls, prefix: Prefix) -> Self:
        return cls(prefix.length, prefix.address)

    def pack(self) -> bytes:
        if not 0 <= self.prefix_length <= BITS or masked(self.address, self.prefix_length) != _whole(self.address):
            raise OverflowError(f"{self} has bits set beyond its prefix, or a prefix beyond {BITS}")
        return _CIDR_KEY.pack(self.prefix_length, self.address)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_CIDR_KEY.unpack(data))


class IpcacheValue(NamedTuple):
    """Value of ipcache and ipcache_cidr. `tunnel_endpoint` is the node's address, NO_ADDRESS for this node; `key` is
    255 where traffic is encrypted by WireGuard, else 0."""

    identity: int
    tunnel_endpoint: Address = NO_ADDRESS
    key: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _IPCACHE.pack(self.identity, _whole(self.tunnel_endpoint), self.key, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_IPCACHE.unpack(data))
