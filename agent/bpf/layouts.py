"""Keys and values of the maps, as bpf/layouts.h has them: that header is the source, a test compares every field.

Maps, targets and trackers hold bytes; the tuples here say what these mean. Addresses are of either family, 16 bytes as
in the maps, and are keys by themselves; ports are plain ints, packed in network order. What does not fit raises
struct.error or OverflowError when it is packed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import lru_cache
from itertools import starmap
from socket import htons
from struct import Struct
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from clustermesh.address import Address, Prefix, masked
from clustermesh.mesh.resolve import Backends
from clustermesh.model import BackendState, Protocol

T = TypeVar("T")

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
MAGLEV_PLACES: Final = 1021
MEANT_SETS: Final = 16384
MEANT_WAYS: Final = 4
SWEEP_HEAD: Final = 16
SWEEP_MOST: Final = 64
MOST_GROUPS: Final = 512  # of a service: LB_MAX_BLOCKS of them in bpf/lb.h


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
    EVENT_LOST = 8
    CONNECT_DIRECT = 9
    DROP_SOURCE = 10
    NAT_NEW = 11
    NAT_FORWARD = 12
    NAT_REPLY = 13
    NAT_ERROR = 14
    DROP_NO_CONNECTION = 15
    DROP_NO_PORT = 16
    DROP_SCTP_PORT = 17
    DROP_CT_FULL = 18
    DROP_NO_ADDRESS = 19
    DROP_SOURCE_RANGE = 20
    DROP_NO_ROUTE = 21
    DROP_TOO_LARGE = 22
    DROP_BIND = 23
    MEANT_FULL = 24
    DROP_HOPS = 25
    DROP_BROKEN = 26


class EventType(IntEnum):
    """What an event is."""

    DROP = 0
    LB = 1
    TRACE = 2


class CtFlag(IntFlag):
    """What conntrack knows of a connection, in one direction of it."""

    REPLY = 1
    ESTABLISHED = 2
    FIN = 4
    FIN_OTHER = 8
    RESET = 16
    LENT = 32
    OUTSIDE = 128
    AT_EGRESS = 256
    REFUSED = 512


class Way(IntEnum):
    """How the packets of a tuple go on."""

    STACK = 0
    BACK = 1
    PEER = 2
    NEIGH = 3


class XdpMode(IntEnum):
    """Who runs the program of frames: the driver, or the kernel on what the driver has made of a frame."""

    NATIVE = 1
    GENERIC = 2


class ConfigFlag(IntFlag):
    """What is switched on for packets."""

    REDIRECT = 1


class NodeIdentity(IntEnum):
    """Identities of machines. In the ipcache they mark an address that strict mode lets talk in clear."""

    HOST = 1
    REMOTE_NODE = 6
    KUBE_APISERVER = 7


class Number(NamedTuple):
    """Key of lb_backends (its id), lb_clusters, lb_evicted and lb_maglev (a service's id); each of the ids of backends
    that are a value of lb_slots or lb_maglev."""

    number: int


class AddressKey(NamedTuple):
    """Key of ipcache: the address and nothing else."""

    address: Address


class ServiceKey(NamedTuple):
    """Key of lb_services: where a service is called."""

    address: Address
    port: int
    protocol: int
    scope: int = 0


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


class GroupsKey(NamedTuple):
    """Key of lb_groups: groups 8 x block to 8 x block + 7 of the service."""

    service_id: int
    block: int = 0


class LbGroup(NamedTuple):
    """One of the groups in a value of lb_groups: its weight and those of the groups before it, how many backends it
    has. In places nobody has only the last weight_end is repeated."""

    weight_end: int
    cluster_id: int = 0
    slots: int = 0
    tier: int = 0


class SlotsKey(NamedTuple):
    """Key of lb_slots: slots 16 x block to 16 x block + 15 of the group. The value is as many ids of backends."""

    service_id: int
    group: int = 0
    block: int = 0


class BackendValue(NamedTuple):
    """Value of lb_backends, whose key is an id. `cluster_id` says whose it is; `state` is a BackendState."""

    address: Address
    port: int
    protocol: int
    state: int = BackendState.ACTIVE
    cluster_id: int = 0
    weight: int = 0
    zone: int = 0


class Reduced(NamedTuple):
    """What one cluster does not get of its share, of LB_FULL: a value of lb_clusters has one for each, by its id."""

    part: int


class Evicted(NamedTuple):
    """Whether one cluster's established connections end while it is out (1): a value of lb_evicted has one for each, by
    its id."""

    is_evicted: int


class AffinityKey(NamedTuple):
    """Key of lb_affinity. `client` is an address, or what stands for a network namespace."""

    client: Address
    service_id: int


class AffinityValue(NamedTuple):
    """Value of lb_affinity: when the client last asked, by CLOCK_MONOTONIC; the backend it stays with, and the block of
    slots that was last seen in."""

    used_ns: int
    backend_id: int
    group: int = 0
    block: int = 0


class SourceRangeKey(NamedTuple):
    """Key of lb_source_ranges: see `pack_source_range`."""

    prefix_length: int
    service_id: int
    address: Address


class Allowed(NamedTuple):
    """Value of lb_source_ranges: of which family the range is, 4 or 6."""

    family: int


class MeantValue(NamedTuple):
    """What lb_meant has of a socket: the service it means, the backend it was connected to."""

    address: Address
    backend: Address
    port: int
    backend_port: int
    backend_id: int
    protocol: int


class ReverseKey(NamedTuple):
    """Key of lb_reverse_sk: a socket's cookie and the backend it was sent to."""

    cookie: int
    address: Address
    port: int


class ReverseValue(NamedTuple):
    """Value of lb_reverse_sk: the service the socket meant. `protocol` is that of a connected socket, for which
    lb_meant had no room, 0 of any other."""

    address: Address
    port: int
    protocol: int = 0


class CidrKey(NamedTuple):
    """Key of ipcache_cidr: see `pack_cidr`."""

    prefix_length: int
    address: Address


class IpcacheValue(NamedTuple):
    """Value of ipcache and ipcache_cidr. `tunnel_endpoint` is the node's address, NO_ADDRESS for this node; `key` is
    255 where traffic is encrypted by WireGuard, else 0."""

    identity: int
    tunnel_endpoint: Address = NO_ADDRESS
    key: int = 0
    flags: int = 0


class Event(NamedTuple):
    """A record of the ring buffer `events`. `head` is what there is of the packet, filled up with zeros."""

    time: int
    cookie: int
    source: Address
    destination: Address
    new_source: Address
    new_destination: Address
    source_port: int
    destination_port: int
    new_source_port: int
    new_destination_port: int
    source_identity: int
    destination_identity: int
    ifindex: int
    cpu: int
    reason: int
    type: int
    protocol: int
    head_size: int
    head: bytes


class EventsWanted(NamedTuple):
    """Value of events_wanted: until when, by CLOCK_MONOTONIC in ns, and a bit for each EventType."""

    until: int
    types: int


class PodSource(NamedTuple):
    """Value of pod_sources, whose key is the index of a pod's device: what the pod may send from, NO_ADDRESS for a
    family that it has none of."""

    ipv4: Address = NO_ADDRESS
    ipv6: Address = NO_ADDRESS


class CtKey(NamedTuple):
    """Key of ct: a packet's ends as it comes to a program."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    protocol: int


class CtEntry(NamedTuple):
    """Value of ct: the ends that such packets get instead. `expires` is in 2^30 ns of CLOCK_MONOTONIC, `flags` a
    CtFlag, `way` a Way."""

    source: Address
    destination: Address
    source_port: int
    destination_port: int
    service_id: int = 0
    backend_id: int = 0
    expires: int = 0
    from_device: int = 0
    way_device: int = 0
    identity: int = 0
    flags: int = 0
    way: int = 0
    packets: int = 0
    bytes: int = 0
    mtu: int = 0
    policy: int = 0


class CtDirect(NamedTuple):
    """Value of ct_direct, whose key is that of ct: of packets that go to no service. Fields as in CtEntry."""

    expires: int
    from_device: int = 0
    flags: int = 0


class CtFragmentKey(NamedTuple):
    """Key of ct_fragments: a fragmented packet."""

    source: Address
    destination: Address
    id: int
    protocol: int


class CtFragment(NamedTuple):
    """Value of ct_fragments: the ports that the packet's first fragment had. `expires` as in CtEntry."""

    source_port: int
    destination_port: int
    expires: int


class NodeConfig(NamedTuple):
    """Value of node_config. Addresses are what others see instead of a client: `node` on the underlay and for a pod
    that calls itself, `tunnel` behind the tunnel; NO_ADDRESS where there is none. Ports from `port_first` to
    `port_last` are lent; `mtu` is 0; `flags` is a ConfigFlag."""

    node4: Address
    node6: Address
    tunnel4: Address
    tunnel6: Address
    tunnel_device: int = 0
    port_first: int = 0
    port_last: int = 0
    mtu: int = 0
    flags: int = 0


class PodDevice(NamedTuple):
    """Value of pod_devices, whose key is a local pod's address: the node's end of its veth."""

    ifindex: int
    flags: int = 0


class XdpDevice(NamedTuple):
    """Value of xdp_devices, whose key is the index of a device that runs the program of frames: its Ethernet address in
    two parts, as they are in memory."""

    head: int
    tail: int
    mode: int


def _whole(address: Address) -> Address:
    """struct would cut or fill one of another length without a word."""
    if len(address) != 16:
        raise OverflowError(f"{address!r} is no address of 16 bytes")
    return address


class _Layout:
    """`form` is one of the module struct without arrays, in which A is an address and P a port."""

    def __init__(self, form: str) -> None:
        self.struct = Struct("=" + form.replace("A", "16s").replace("P", "H"))
        fields = [letter for letter in form if letter.isupper()]
        self.ports = [(index, htons) for index, letter in enumerate(fields) if letter == "P"]
        self.checked: list[tuple[int, Callable[[Any], Any]]] = [
            *self.ports,
            *((index, _whole) for index, letter in enumerate(fields) if letter == "A"),
        ]


_LAYOUTS: Final[Mapping[type, _Layout]] = {
    ServiceKey: _Layout("APBB"),
    ServiceValue: _Layout("IIIHHBBBx"),
    GroupsKey: _Layout("IH2x"),
    LbGroup: _Layout("IHHB3x"),
    Number: _Layout("I"),
    AddressKey: _Layout("A"),
    SlotsKey: _Layout("IHH"),
    Reduced: _Layout("H"),
    Evicted: _Layout("B"),
    BackendValue: _Layout("APBBHHH2x"),
    AffinityKey: _Layout("AI4x"),
    AffinityValue: _Layout("QIHH"),
    SourceRangeKey: _Layout("IIA"),
    Allowed: _Layout("B"),
    MeantValue: _Layout("AAPPIB7x"),
    ReverseKey: _Layout("QAP6x"),
    ReverseValue: _Layout("APH"),
    CidrKey: _Layout("IA"),
    IpcacheValue: _Layout("IABB2x"),
    CtKey: _Layout("AAPPB3x"),
    CtEntry: _Layout("AAPPIIIIIIHBxQQII"),
    CtDirect: _Layout("IIH2x"),
    CtFragmentKey: _Layout("AAIB3x"),
    CtFragment: _Layout("PPI"),
    NodeConfig: _Layout("AAAAIHHHH"),
    PodDevice: _Layout("II"),
    XdpDevice: _Layout("IHH"),
    Event: _Layout("QQAAAAPPPPIIIHBBBB6x64s"),
    EventsWanted: _Layout("QI4x"),
    PodSource: _Layout("AA"),
}
MAPS: Final[Mapping[str, tuple[type[Any], type[Any]]]] = {
    "lb_services": (ServiceKey, ServiceValue),
    "lb_groups": (GroupsKey, LbGroup),
    "lb_slots": (SlotsKey, Number),
    "lb_backends": (Number, BackendValue),
    "lb_clusters": (Number, Reduced),
    "lb_evicted": (Number, Evicted),
    "lb_maglev": (Number, Number),
    "lb_affinity": (AffinityKey, AffinityValue),
    "lb_source_ranges": (SourceRangeKey, Allowed),
    "lb_reverse_sk": (ReverseKey, ReverseValue),
    "ipcache": (AddressKey, IpcacheValue),
    "ipcache_cidr": (CidrKey, IpcacheValue),
    "pod_sources": (Number, PodSource),
    "ct": (CtKey, CtEntry),
    "ct_direct": (CtKey, CtDirect),
    "ct_fragments": (CtFragmentKey, CtFragment),
    "node_config": (Number, NodeConfig),
    "pod_devices": (AddressKey, PodDevice),
    "xdp_devices": (Number, XdpDevice),
}
"""What keys are, and what values are or have side by side. lb_meant has none of these: see `meant_sockets`."""

_SERVICE_KEY: Final = _LAYOUTS[ServiceKey].struct
_STATE_AT: Final = 19  # in a value of lb_backends
_SLOTS_SIZE: Final = SLOTS_PER_BLOCK * _LAYOUTS[Number].struct.size


def form_of(kind: type[Any]) -> str:
    """How the module struct reads one of the tuples above, but that ports are left in network order."""
    return _LAYOUTS[kind].struct.format


def pack(entry: tuple[Any, ...]) -> bytes:
    """One of the tuples above as the maps have it."""
    layout = _LAYOUTS[type(entry)]
    fields = list(entry)
    for index, check in layout.checked:
        fields[index] = check(fields[index])
    return layout.struct.pack(*fields)


def unpack(kind: type[T], data: bytes) -> T:
    """The tuple of this kind that `pack` made `data` of."""
    (entry,) = unpack_each(kind, data)
    return entry


def unpack_each(kind: type[T], data: bytes) -> list[T]:
    """Tuples of this kind that stand side by side."""
    layout = _LAYOUTS[kind]
    if not layout.ports:
        return list(starmap(kind, layout.struct.iter_unpack(data)))
    found = []
    for each in layout.struct.iter_unpack(data):
        fields = list(each)
        for index, swap in layout.ports:
            fields[index] = swap(fields[index])
        found.append(kind(*fields))
    return found


def unpack_numbers(keys: Iterable[bytes]) -> Sequence[int]:
    """What each Number is, at a twentieth of the cost."""
    return memoryview(b"".join(keys)).cast("I")


def packer(kind: type[Any]) -> Callable[..., bytes]:
    """`pack` at a fifth of its cost, of all the fields in their order; for tuples without addresses and ports."""
    layout = _LAYOUTS[kind]
    assert not layout.checked
    return layout.struct.pack


def pack_cidr(prefix: Prefix) -> bytes:
    """Key of ipcache_cidr. OverflowError where bits beyond the prefix are set: two keys would be one entry."""
    if masked(prefix.address, prefix.length) != prefix.address:
        raise OverflowError(f"{prefix} has bits set beyond its length")
    return pack(CidrKey(prefix.length, prefix.address))


def pack_source_range(service_id: int, prefix: Prefix) -> bytes:
    """Key of lb_source_ranges. Bits beyond the prefix are ignored, as Kubernetes does."""
    return pack(SourceRangeKey(32 + prefix.length, service_id, masked(prefix.address, prefix.length)))


def pack_service_key(address: Address, port: int, protocol: int, scope: int) -> bytes:
    """`pack` of a ServiceKey at half its cost."""
    return _SERVICE_KEY.pack(_whole(address), htons(port), protocol, scope)


def pack_backends(backends: Iterable[Backends], protocol: int, cluster_id: int) -> list[bytes]:
    """Values of lb_backends, of active ones. There are many, so that to pack each would cost too much."""
    packed = []
    for some in backends:
        rest = _after_address(some.port, protocol, cluster_id)
        packed += [address + rest for address in some.addresses]
    return packed


@lru_cache(1024)
def _after_address(port: int, protocol: int, cluster_id: int) -> bytes:
    """All of an active backend's value but what it begins with."""
    return pack(BackendValue(NO_ADDRESS, port, protocol, BackendState.ACTIVE, cluster_id))[len(NO_ADDRESS) :]


def in_state(backend: bytes, state: BackendState) -> bytes:
    """The value of lb_backends that says all that `backend` does, and this state."""
    return backend[:_STATE_AT] + bytes([state]) + backend[_STATE_AT + 1 :]


def as_active(backend: bytes) -> bytes:
    """As `in_state`: by this two are the same."""
    return in_state(backend, BackendState.ACTIVE) if backend[_STATE_AT] else backend


def pack_slots(ids: Sequence[bytes]) -> list[bytes]:
    """Values of lb_slots. The last is filled up with its first id: no gap where the group is still counted as larger
    than it is."""
    if not ids:
        return []
    missing = -len(ids) % SLOTS_PER_BLOCK
    packed = b"".join(ids) + ids[missing - SLOTS_PER_BLOCK] * missing
    return [packed[at : at + _SLOTS_SIZE] for at in range(0, len(packed), _SLOTS_SIZE)]


def meant_sockets(sets: bytes) -> dict[int, MeantValue]:
    """What sockets mean, by their cookies, in values of lb_meant side by side: of few in many, which costs little."""
    size, found = len(pack(MeantValue(NO_ADDRESS, NO_ADDRESS, 0, 0, 0, 0))), {}
    words = (8 + size) * MEANT_WAYS // 8
    numbers = memoryview(sets).cast("Q")
    for way in range(MEANT_WAYS):
        for at, cookie in enumerate(numbers[way::words].tolist()):
            if cookie:
                begin = at * words * 8 + 8 * MEANT_WAYS + way * size
                found[cookie] = unpack(MeantValue, sets[begin : begin + size])
    return found


def pack_factors(factors: Mapping[int, float]) -> bytes:
    """Value of lb_clusters: the part (0 to 1) that each cluster, by its id, gets of the share its backends have in
    every service; those not named have all of it."""
    reduced = [0] * LB_CLUSTERS
    for cluster_id, factor in factors.items():
        reduced[cluster_id] = LB_FULL - round(factor * LB_FULL)
    return Struct(f"={LB_CLUSTERS}H").pack(*reduced)


def pack_xdp_device(address: bytes, mode: XdpMode) -> bytes:
    """Of a device with this Ethernet address."""
    head, tail = struct.unpack("=IH", address)
    return pack(XdpDevice(head, tail, mode))


def xdp_address(device: XdpDevice) -> bytes:
    return struct.pack("=IH", device.head, device.tail)


def pack_evicted(evicted: Collection[int]) -> bytes:
    """Value of lb_evicted, of the ids of clusters."""
    return bytes(number in evicted for number in range(LB_CLUSTERS))
