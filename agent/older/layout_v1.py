"""The layout before this one (pinned below v1/), as far as an upgrade or a downgrade needs it: entries turned into ours
and back. It knew IPv4 only, and a service's slots in one map.

An upgrade takes over who is behind an address, for strict mode, and which service a socket meant; services are planned
anew. A downgrade writes everything, since the agent of that version attaches its programs before it knows anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from types import MappingProxyType
from typing import Final

from agent.bpf.libbpf import MapShape
from agent.bpf.pins import Translation
from agent.bpf.syscalls import NO_PREALLOC, MapType
from clustermesh.address import V4

VERSION: Final = "v1"

SHAPES: Final[Mapping[str, MapShape]] = MappingProxyType(
    {
        "lb4_services": MapShape(MapType.HASH, 12, 8, 262144, NO_PREALLOC),
        "lb4_backends": MapShape(MapType.HASH, 4, 12, 131072, NO_PREALLOC),
        "lb4_reverse_sk": MapShape(MapType.LRU_HASH, 16, 8, 65536, 0),
        "ipcache4": MapShape(MapType.HASH, 4, 12, 512000, NO_PREALLOC),
        "ipcache4_cidr": MapShape(MapType.LPM_TRIE, 8, 12, 16384, NO_PREALLOC),
    }
)

SERVICE_KEY: Final = Struct("=4s2sHB3x")
SERVICE: Final = Struct("=IHH")
BACKEND: Final = Struct("=4s2sBBH2x")
_MAPPED: Final = V4.address[:12]
_V4_BITS: Final = 96
_NO_ADDRESS: Final = bytes(16)
_LENGTH: Final = Struct("=I")

Entry = tuple[bytes, bytes]


def is_ipv4(address: bytes) -> bool:
    return address.startswith(_MAPPED)


def reverse_to_v2(key: bytes, value: bytes) -> Entry:
    return key[:8] + _MAPPED + key[8:14] + bytes(6), _MAPPED + value


def reverse_to_v1(key: bytes, value: bytes) -> Entry | None:
    """None, as below, for what that layout did not know."""
    if not (is_ipv4(key[8:]) and is_ipv4(value)):
        return None
    return key[:8] + key[20:26] + bytes(2), value[12:]


def address_to_v2(key: bytes, value: bytes) -> Entry:
    return _MAPPED + key, _entry_to_v2(value)


def address_to_v1(key: bytes, value: bytes) -> Entry | None:
    return (key[12:], _entry_to_v1(value)) if is_ipv4(key) else None


def cidr_to_v2(key: bytes, value: bytes) -> Entry:
    (length,) = _LENGTH.unpack_from(key)
    return _LENGTH.pack(length + _V4_BITS) + _MAPPED + key[4:], _entry_to_v2(value)


def cidr_to_v1(key: bytes, value: bytes) -> Entry | None:
    (length,) = _LENGTH.unpack_from(key)
    if length < _V4_BITS or not is_ipv4(key[4:]):
        return None
    return _LENGTH.pack(length - _V4_BITS) + key[16:], _entry_to_v1(value)


def _entry_to_v2(value: bytes) -> bytes:
    tunnel = value[4:8]
    return value[:4] + (_MAPPED + tunnel if any(tunnel) else _NO_ADDRESS) + value[8:12]


def _entry_to_v1(value: bytes) -> bytes:
    return value[:4] + (value[16:20] if is_ipv4(value[4:20]) else bytes(4)) + value[20:21] + bytes(3)


REVERSE: Final = ("lb4_reverse_sk", "lb_reverse_sk")
"""The map of what sockets meant, there and here."""

TO_V2: Final[Mapping[tuple[str, str], Translation]] = MappingProxyType(
    {("ipcache4", "ipcache"): address_to_v2, ("ipcache4_cidr", "ipcache_cidr"): cidr_to_v2}
)
"""What an upgrade takes over at once, by the names of the maps there and here."""
