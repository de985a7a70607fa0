"""Packets to run programs over."""

from __future__ import annotations

import socket
import struct

ETH_IPV4, ETH_ARP, ETH_IPV6, ETH_VLAN = 0x0800, 0x0806, 0x86DD, 0x8100


def frame(ethertype: int, payload: bytes) -> bytes:
    return b"\x02" * 6 + b"\x04" * 6 + struct.pack("!H", ethertype) + payload


def ipv4(
    source: str, destination: str, protocol: int = socket.IPPROTO_UDP, *, options: bytes = b"", fragment: int = 0
) -> bytes:
    """An IPv4 packet of 32 bytes of payload. `fragment` is the field of flags and offset."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (5 + len(options) // 4),
        0,
        52 + len(options),
        1,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    header += options
    return header[:10] + _checksum(header) + header[12:] + bytes(32)


def _checksum(header: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def ipv4_frame(source: str, destination: str, protocol: int = socket.IPPROTO_UDP) -> bytes:
    return frame(ETH_IPV4, ipv4(source, destination, protocol))


def ipv6(source: str, destination: str, next_header: int = socket.IPPROTO_UDP) -> bytes:
    """An IPv6 packet of 32 bytes of payload."""
    header = struct.pack("!IHBB", 6 << 28, 32, next_header, 64)
    return header + b"".join(socket.inet_pton(socket.AF_INET6, end) for end in (source, destination)) + bytes(32)


def ipv6_frame(source: str, destination: str, next_header: int = socket.IPPROTO_UDP) -> bytes:
    return frame(ETH_IPV6, ipv6(source, destination, next_header))
