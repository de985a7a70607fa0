"""Packets of flows, made and read: every checksum is computed when one is made, and again when one is read."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field, replace
from typing import Final, Self

from bpf_packets import ETH_IPV4, ETH_IPV6

TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
MACS: Final = b"\x02" * 6 + b"\x04" * 6
_CHECK_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
_FRAGMENT: Final = 44


def ones_sum(data: bytes) -> int:
    """A ones' complement sum of 16 bits."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def is_ipv6(address: str) -> bool:
    return ":" in address


def _raw(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if is_ipv6(address) else socket.AF_INET, address)


def _text(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)


@dataclass(frozen=True)
class Packet:
    """What a packet says. An ICMP error has its quoted packet in `about`; of a fragment, which `more` or `offset` (in
    bytes) make of it, `payload` is all behind the network header."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int = TCP
    flags: int = SYN
    seq: int = 1000
    ack: int = 0
    payload: bytes = b""
    icmp: tuple[int, int, int] = (0, 0, 0)
    about: Packet | None = None
    options: bytes = b""
    is_checked: bool = True
    more: bool = False
    offset: int = 0
    ident: int = 0
    whole: bool = field(default=True, compare=False)
    hops: int = field(default=64, compare=False)

    def __post_init__(self) -> None:
        if self.protocol != TCP or self.is_fragment:
            for name in ("flags", "seq", "ack"):
                object.__setattr__(self, name, 0)

    @property
    def is_fragment(self) -> bool:
        return self.more or self.offset > 0

    def fragments(self, at: int, ident: int) -> tuple[Self, Self]:
        """The two that this becomes where it is cut `at` bytes behind the network header."""
        raw = self._transport()
        bare = self.to(source_port=0, destination_port=0, ident=ident)
        return bare.to(more=True, payload=raw[:at]), bare.to(offset=at, payload=raw[at:])

    def to(self, **changes: object) -> Self:
        return replace(self, **changes)  # type: ignore[arg-type]

    def back(self) -> Self:
        return self.to(
            source=self.destination,
            source_port=self.destination_port,
            destination=self.source,
            destination_port=self.source_port,
        )

    # --- made

    def frame(self, size: int = 0) -> bytes:
        """`size` where it is filled up to that."""
        kind = ETH_IPV6 if is_ipv6(self.source) else ETH_IPV4
        made = MACS + struct.pack("!H", kind) + self.network()
        return made + b"\xee" * max(0, size - len(made))

    def network(self) -> bytes:
        inner = self._transport()
        return self._ipv6(inner) if is_ipv6(self.source) else self._ipv4(inner)

    def _ipv4(self, inner: bytes) -> bytes:
        fragment = 0x2000 * self.more | self.offset // 8 | 0x4000 * (self.whole and not self.is_fragment)
        size = 20 + len(self.options)
        head = struct.pack(
            "!BBHHHBB", 0x40 | size // 4, 0, size + len(inner), self.ident, fragment, self.hops, self.protocol
        )
        ends = _raw(self.source) + _raw(self.destination) + self.options
        return head + struct.pack("!H", 0xFFFF - ones_sum(head + ends)) + ends + inner

    def _ipv6(self, inner: bytes) -> bytes:
        following = self.protocol
        extra = self.options
        if extra:
            extra, following = bytes([following, len(extra) // 8 - 1]) + extra[2:], 60
        if self.more or self.offset:
            extra = struct.pack("!BBHI", following, 0, self.offset | self.more, self.ident) + extra
            following = _FRAGMENT
        head = struct.pack("!IHBB", 6 << 28, len(extra + inner), following, self.hops)
        return head + _raw(self.source) + _raw(self.destination) + extra + inner

    def _pseudo(self, length: int) -> bytes:
        return _raw(self.source) + _raw(self.destination) + struct.pack("!II", length, self.protocol)

    def _transport(self) -> bytes:
        if self.is_fragment:
            return self.payload
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        if self.protocol == TCP:
            made = ports + struct.pack("!IIBBHHH", self.seq, self.ack, 5 << 4, self.flags, 65535, 0, 0) + self.payload
        elif self.protocol == UDP:
            made = ports + struct.pack("!HH", 8 + len(self.payload), 0) + self.payload
        elif self.protocol == SCTP:
            made = ports + struct.pack("!II", 7, 0) + self.payload
            return made[:8] + struct.pack("<I", crc32c(made)) + made[12:]
        elif self.protocol in (ICMP, ICMP6):
            quoted = self.about.network()[: len(self.payload) or None] if self.about else self.payload
            made = struct.pack("!BBHI", self.icmp[0], self.icmp[1], 0, self.icmp[2]) + quoted
        else:
            return self.payload
        if not self.is_checked:
            return made
        at = _CHECK_AT[self.protocol]
        pseudo = b"" if self.protocol == ICMP else self._pseudo(len(made))
        check = 0xFFFF - ones_sum(pseudo + made)
        if self.protocol == UDP:
            check = check or 0xFFFF
        return made[:at] + struct.pack("!H", check) + made[at + 2 :]


# --- read


def read(frame: bytes) -> Packet:
    """Assertions fail where a length or a checksum is wrong."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    assert kind in (ETH_IPV4, ETH_IPV6), f"{kind:#x}"
    return _read_network(frame[14:])


def _read_network(data: bytes, *, is_quoted: bool = False) -> Packet:
    return _read_ipv4(data, is_quoted) if data[0] >> 4 == 4 else _read_ipv6(data, is_quoted)


def _read_ipv4(data: bytes, is_quoted: bool) -> Packet:
    size = (data[0] & 15) * 4
    length, ident, fragment, hops, protocol = struct.unpack_from("!HHHBB", data, 2)
    assert ones_sum(data[:size]) == 0xFFFF, "the header's checksum is wrong"
    assert is_quoted or length <= len(data), "the packet is shorter than it says"
    bare = Packet(
        _text(data[12:16]),
        0,
        _text(data[16:20]),
        0,
        protocol,
        options=data[20:size],
        more=bool(fragment & 0x2000),
        offset=(fragment & 0x1FFF) * 8,
        ident=ident,
        whole=bool(fragment & 0x4000),
        hops=hops,
    )
    return _read_transport(bare, data[size:length], is_quoted)


def _read_ipv6(data: bytes, is_quoted: bool) -> Packet:
    length, following, hops = struct.unpack_from("!HBB", data, 4)
    assert is_quoted or 40 + length <= len(data), "the packet is shorter than it says"
    bare = Packet(_text(data[8:24]), 0, _text(data[24:40]), 0, hops=hops)
    at = 40
    if following == _FRAGMENT:
        following, _, fragment, ident = struct.unpack_from("!BBHI", data, at)
        bare = bare.to(more=bool(fragment & 1), offset=fragment & 0xFFF8, ident=ident)
        at += 8
    if following == 60 and not bare.offset:
        size = (data[at + 1] + 1) * 8
        following, bare = data[at], bare.to(options=bytes(2) + data[at + 2 : at + size])
        at += size
    return _read_transport(bare.to(protocol=following), data[at : 40 + length], is_quoted)


def join(first: Packet, rest: Packet) -> Packet:
    """What two fragments are together."""
    assert (first.source, first.destination, first.ident) == (rest.source, rest.destination, rest.ident)
    return _read_transport(first.to(more=False, ident=0, payload=b""), first.payload + rest.payload, False)


def _read_transport(bare: Packet, data: bytes, is_quoted: bool) -> Packet:
    if bare.is_fragment or bare.protocol not in (TCP, UDP, SCTP, ICMP, ICMP6):
        return bare.to(payload=data)
    if bare.protocol in (ICMP, ICMP6):
        return _read_icmp(bare, data)
    source_port, destination_port = struct.unpack_from("!HH", data)
    made = bare.to(source_port=source_port, destination_port=destination_port)
    if is_quoted:
        return made
    if bare.protocol == SCTP:
        assert struct.unpack_from("<I", data, 8)[0] == crc32c(data[:8] + bytes(4) + data[12:]), "the CRC is wrong"
        return made.to(payload=data[12:])
    check = struct.unpack_from("!H", data, _CHECK_AT[bare.protocol])[0]
    if bare.protocol == TCP or check:
        assert ones_sum(bare._pseudo(len(data)) + data) == 0xFFFF, "the transport's checksum is wrong"
    if bare.protocol == UDP:
        assert struct.unpack_from("!H", data, 4)[0] == len(data)
        return made.to(payload=data[8:], is_checked=bool(check))
    seq, ack, size, flags = struct.unpack_from("!IIBB", data, 4)
    return made.to(seq=seq, ack=ack, flags=flags, payload=data[(size >> 4) * 4 :])


def _read_icmp(bare: Packet, data: bytes) -> Packet:
    pseudo = b"" if bare.protocol == ICMP else bare._pseudo(len(data))
    assert ones_sum(pseudo + data) == 0xFFFF, "the checksum of ICMP is wrong"
    kind, code, _, rest = struct.unpack_from("!BBHI", data)
    made = bare.to(icmp=(kind, code, rest))
    is_error = kind in (3, 11, 12) if bare.protocol == ICMP else kind < 128
    return made.to(about=_read_network(data[8:], is_quoted=True)) if is_error else made.to(payload=data[8:])
