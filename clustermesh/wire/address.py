"""Addresses and CIDRs in Cilium's JSON: the address as text, the mask of a CIDR as Go's net.IPMask."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from clustermesh.address import BITS, Address, Prefix, family_length, is_ipv4, masked, parse, text
from clustermesh.errors import Invalid

_ALL: Final = (1 << BITS) - 1


class WireCIDR(Struct, frozen=True, gc=False):
    """Go's net.IPNet: the address as text, the mask as base64 of its 4 or 16 bytes."""

    ip: str = field(name="IP")
    mask: bytes = field(name="Mask")


def mask_of(prefix: Prefix) -> bytes:
    """The mask in the family of `prefix`, 4 or 16 bytes. Invalid for bits set beyond its length."""
    if not 0 <= prefix.length <= BITS or masked(prefix.address, prefix.length) != prefix.address:
        rule = f"must be a network: it has bits set beyond its first {family_length(prefix)}"
        raise Invalid("prefix", text(prefix.address), rule)
    mask = (_ALL << (BITS - prefix.length) & _ALL).to_bytes(16, "big")
    return mask[12:] if is_ipv4(prefix.address) else mask


def length_of(mask: bytes, address: Address) -> int:
    """The bits of 128 that `mask` stands for; Invalid unless it is in the family of `address`, ones and then zeros."""
    if len(mask) != (4 if is_ipv4(address) else 16):
        raise Invalid("mask", mask, f"must be as long as the address {text(address)}")
    zeros = ~int.from_bytes(mask, "big") & ((1 << 8 * len(mask)) - 1)
    if zeros & (zeros + 1):
        raise Invalid("mask", mask, "must be ones, then zeros")
    return BITS - zeros.bit_length()


def read_prefix(address: Address, mask: bytes, where: str) -> Prefix:
    """The network of `address` and `mask`; Invalid where it has bits set beyond the mask."""
    prefix = Prefix(address, length_of(mask, address))
    if masked(address, prefix.length) != address:
        raise Invalid(
            where, text(address), f"must be a network: it has bits set beyond its first {family_length(prefix)}"
        )
    return prefix


def write_cidr(prefix: Prefix) -> WireCIDR:
    """The wire form of `prefix`."""
    return WireCIDR(text(prefix.address), mask_of(prefix))


def read_cidr(wire: WireCIDR, where: str, ipv4: bool) -> Prefix:
    """The network that `wire` holds, of the family asked for; Invalid where it is not."""
    prefix = read_prefix(parse(wire.ip, where), wire.mask, where)
    if is_ipv4(prefix.address) is not ipv4:
        raise Invalid(where, wire.ip, f"must be IPv{4 if ipv4 else 6}")
    return prefix
