"""Entries of the maps ct and ct_direct as bytes, by the thousand: whose pair each is, what state it is in. Pure.

A connection is two entries, one for each direction; the pair of one is found at the ends that it gives, swapped.
"""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import Final

from agent.bpf.layouts import CtFlag

KEY: Final = Struct("=12s4x16x4xB3x")  # struct ct_key: which family, the protocol
VALUE: Final = Struct("=44xI12xH26x")  # struct ct_entry: when it expires, its flags
DIRECT: Final = Struct("=I4xH2x")  # struct ct_direct: the same
_MAPPED: Final = bytes(10) + b"\xff\xff"
_TICK: Final = 30  # ct_entry.expires is in 2^30 ns
_PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
_OVER: Final = CtFlag.FIN | CtFlag.FIN_OTHER


class Phase(StrEnum):
    """How far a connection is, in this direction."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"
    EXPIRED = "expired"


def ticks(now_ns: int) -> int:
    """CLOCK_MONOTONIC as entries have it."""
    return now_ns >> _TICK


def seconds_left(expires: int, now_ns: int) -> float:
    return max(((expires << _TICK) - now_ns) / 1e9, 0.0)


def phase_of(expires: int, flags: int, now: int) -> Phase:
    """`now` is in ticks."""
    if expires < now:  # by a tick more than the programs have it: their clock is a little late
        return Phase.EXPIRED
    if flags & CtFlag.RESET or flags & _OVER == _OVER:
        return Phase.CLOSING
    return Phase.ESTABLISHED if flags & CtFlag.ESTABLISHED else Phase.OPENING


def pair_of(key: bytes, value: bytes) -> bytes | None:
    """The key of the other direction's entry, None where there is none: what goes to no service."""
    if len(value) == DIRECT.size:
        return None
    return value[16:32] + value[:16] + value[34:36] + value[32:34] + key[36:40]


def family_of(prefix: bytes) -> str:
    return "ipv4" if prefix == _MAPPED else "ipv6"


def protocol_name(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))
