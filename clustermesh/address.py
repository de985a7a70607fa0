"""One address type for both families: 16 bytes, IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2). Pure.

Text exists at the edges only: etcd's values, YAML, netlink, the command line. Inside, an address is what the kernel
maps hold, and a prefix is counted in bits of 128: 10.1.0.0/24 is Prefix(::ffff:10.1.0.0, 120). Two spellings of one
address are one value, and no code asks which family it has but to choose a wire form or a netlink family.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Final, NamedTuple, NewType

from clustermesh.errors import Invalid

Address = NewType("Address", bytes)
"""16 bytes in network order. Make one by `parse`, `from_int` or a decoder, never from a literal."""

BITS: Final = 128
_V4: Final = b"\0" * 10 + b"\xff\xff"
_V4_BITS: Final = 96
_RULE: Final = "must be an IPv4 or IPv6 address, without a zone and not IPv4-mapped"


class Prefix(NamedTuple):
    """A block of addresses: those that agree with `address` in its first `length` bits of 128; the others are zero."""

    address: Address
    length: int


V4: Final = Prefix(Address(_V4 + b"\0\0\0\0"), _V4_BITS)
"""All of IPv4."""


@lru_cache(1024)  # an entry names its address twice, a node's address stands in all its pods: one object for each
def parse(text: str, where: str = "address") -> Address:
    """The address spelled `text`. Raises Invalid for anything else; a zone or a mapped address is refused."""
    try:
        if ":" not in text:
            return Address(_V4 + socket.inet_pton(socket.AF_INET, text))
        address = Address(socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError) as e:  # ValueError: a NUL inside
        raise Invalid(where, text, _RULE) from e
    if address.startswith(_V4):
        raise Invalid(where, text, _RULE)
    return address


def is_address(text: str) -> bool:
    try:
        parse(text)
    except Invalid:
        return False
    return True


def text(address: Address) -> str:
    """The canonical spelling: "10.0.0.1", "fd00::1" (RFC 5952)."""
    if address.startswith(_V4):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return _ipv6_text(address)


def _ipv6_text(address: Address) -> str:
    # inet_ntop writes the last 32 bits of some addresses dotted (::1.2.3.4), which RFC 5952 keeps for known prefixes.
    spelled = socket.inet_ntop(socket.AF_INET6, address)
    if "." not in spelled:
        return spelled
    high, low = int.from_bytes(address[12:14], "big"), int.from_bytes(address[14:], "big")
    return f"{spelled[: spelled.rindex(':') + 1]}{high:x}:{low:x}"


def is_ipv4(address: Address) -> bool:
    return address.startswith(_V4)


def to_int(address: Address) -> int:
    return int.from_bytes(address, "big")


def from_int(number: int) -> Address:
    """The inverse of `to_int`; OverflowError beyond 128 bits."""
    return Address(number.to_bytes(16, "big"))


def single(address: Address) -> Prefix:
    """The prefix that holds `address` alone."""
    return Prefix(address, BITS)


def parse_prefix(text: str, where: str = "prefix") -> Prefix:
    """The prefix spelled `text` ("10.1.0.0/24", "fd00::/64"). Invalid for anything else, host bits included."""
    spelled, slash, bits = text.partition("/")
    address = parse(spelled, where)
    most = BITS - _V4_BITS if is_ipv4(address) else BITS
    if not (slash and bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= most):
        raise Invalid(where, text, f"must be an address, a slash and a number of bits up to {most}")
    if str(int(bits)) != bits:
        raise Invalid(where, text, "must have its number of bits without leading zeros")
    prefix = Prefix(address, int(bits) + BITS - most)
    if masked(address, prefix.length) != address:
        raise Invalid(where, text, f"must be a network: it has bits set beyond its first {bits}")
    return prefix


def prefix_text(prefix: Prefix) -> str:
    """The canonical spelling, its length in the bits of its own family."""
    return f"{text(prefix.address)}/{family_length(prefix)}"


def family_length(prefix: Prefix) -> int:
    """The length as people and wire formats count it: 24 for 10.1.0.0/24. An IPv6 prefix around all of IPv4 (shorter
    than 96 bits) cannot look like IPv4: its address would have bits set beyond its length."""
    return prefix.length - (_V4_BITS if is_ipv4(prefix.address) else 0)


def masked(address: Address, length: int) -> Address:
    """`address` with all but its first `length` bits of 128 zero."""
    whole, bits = divmod(length, 8)
    if not bits:
        return Address(address[:whole] + bytes(16 - whole))
    return Address(address[:whole] + bytes([address[whole] & (0xFF00 >> bits) & 0xFF]) + bytes(15 - whole))


def contains(prefix: Prefix, address: Address) -> bool:
    return masked(address, prefix.length) == prefix.address


def overlaps(first: Prefix, second: Prefix) -> bool:
    """True where one of the two holds the other."""
    beyond = BITS - min(first.length, second.length)
    return to_int(first.address) >> beyond == to_int(second.address) >> beyond


LINK_LOCAL: Final = (parse_prefix("169.254.0.0/16"), parse_prefix("fe80::/10"))
NOBODYS: Final = (
    *LINK_LOCAL,
    *(parse_prefix(each) for each in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")),
    *(parse_prefix(each) for each in ("::/8", "ff00::/8")),
)
"""What is never another machine's: this network, loopback, link-local, multicast and reserved. IPv4 is not in ::/8."""
_NOBODYS_OF: Final = {
    ipv4: [(each, to_int(each.address)) for each in NOBODYS if is_ipv4(each.address) is ipv4] for ipv4 in (False, True)
}


def nobodys(prefix: Prefix) -> Prefix | None:
    """What of NOBODYS has an address in common with `prefix`, or None."""
    first, length = to_int(prefix.address), prefix.length
    for each, other in _NOBODYS_OF[is_ipv4(prefix.address)]:
        if not (first ^ other) >> BITS - min(length, each.length):  # `overlaps`, each address of ours read once
            return each
    return None


def nth(prefix: Prefix, number: int) -> Address:
    """The address `number` places after the first; Invalid where the prefix ends before."""
    if number >> (BITS - prefix.length):
        raise Invalid("prefix", prefix_text(prefix), f"must have more than {number} addresses")
    return from_int(to_int(prefix.address) + number)
