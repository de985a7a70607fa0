"""What counts as WireGuard, and as clear text, in a frame."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.capture import Counter, is_wireguard

PORT = 51871


def frame(payload: bytes, *, source: int = 40000, target: int = PORT, protocol: int = 17, options: int = 0) -> bytes:
    """Ethernet, IPv4 with `options` words of options, UDP."""
    ethernet = bytes(12) + b"\x08\x00"
    ip = bytes([0x45 + options]) + bytes(8) + bytes([protocol]) + bytes(10) + bytes(4 * options)
    return ethernet + ip + struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def frame6(payload: bytes, *, source: int = 40000, target: int = PORT, protocol: int = 17) -> bytes:
    """Ethernet, IPv6, UDP."""
    ip = bytes([0x60]) + bytes(5) + bytes([protocol, 64]) + bytes(32)
    return bytes(12) + b"\x86\xdd" + ip + struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_each_message_type_counts_in_both_directions(kind: int) -> None:
    message = bytes([kind, 0, 0, 0]) + bytes(28)
    assert is_wireguard(frame(message), PORT)
    assert is_wireguard(frame(message, source=PORT, target=40000), PORT)
    assert is_wireguard(frame(message, options=3), PORT)
    assert is_wireguard(frame6(message), PORT)
    assert is_wireguard(frame6(message, source=PORT, target=40000), PORT)


@pytest.mark.parametrize(
    "other",
    [
        frame(bytes([5, 0, 0, 0])),
        frame(bytes([0, 0, 0, 0])),
        frame(bytes([4, 0, 0, 1])),
        frame(bytes([4, 0, 0, 0]), target=PORT + 1),
        frame(bytes([4, 0, 0, 0]), protocol=6),
        frame(b""),
        frame6(bytes([5, 0, 0, 0])),
        frame6(bytes([4, 0, 0, 0]), target=PORT + 1),
        frame6(bytes([4, 0, 0, 0]), protocol=6),
        frame6(b""),
        b"",
    ],
)
def test_anything_else_does_not(other: bytes) -> None:
    assert not is_wireguard(other, PORT)


def test_a_marker_counts_wherever_it_is_also_inside_wireguard() -> None:
    counter = Counter(b"marker", b"try", PORT)
    counter.see(frame(bytes([4, 0, 0, 0]) + b"a marker b"))
    counter.see(frame(b"a try b", target=9))
    counter.see(frame6(b"a try b", target=9))
    counter.see(frame(b"nothing", target=9))
    assert counter.counts == {
        "frames": 4,
        "clear_on_wire": 1,
        "wireguard_packets": 1,
        "self_test": 2,
        "self_test_ipv6": 1,
        "dropped": 0,
    }


@given(st.binary(max_size=200))
def test_garbage_is_counted_and_nothing_breaks(garbage: bytes) -> None:
    counter = Counter(b"marker", b"try", PORT)
    counter.see(garbage)
    assert counter.counts["frames"] == 1
