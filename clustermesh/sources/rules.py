"""What Kubernetes demands of names, labels, addresses, ports. A check returns its value or raises Invalid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from clustermesh.address import BITS, LINK_LOCAL, Address, Prefix, is_ipv4, masked, nobodys, parse, parse_prefix, single
from clustermesh.errors import Invalid
from clustermesh.model import Protocol

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN: Final = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SHOWN: Final = 100
"""Characters of a key."""
_PROTOCOLS: Final = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}


def check_dns_label(field: str, name: str) -> str:
    if not (len(name) <= 63 and _DNS_LABEL.fullmatch(name)):
        raise Invalid(field, name, "must be 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit")
    return name


def check_dns_subdomain(field: str, name: str) -> str:
    if not (len(name) <= 253 and _DNS_SUBDOMAIN.fullmatch(name)):
        raise Invalid(field, name, "must be at most 253 of a-z, 0-9, '-' and '.', each part a DNS label")
    return name


def check_key(field: str, key: str) -> str:
    """Of a label, an annotation; appProtocol is spelled so, too."""
    prefix, slash, name = key.rpartition("/")
    if slash:
        check_dns_subdomain(f"{field}[{key[:_SHOWN]}] prefix", prefix)
    if not (len(name) <= 63 and _QUALIFIED.fullmatch(name)):
        raise Invalid(f"{field} key", key, "must be at most 63 letters, digits, '-', '_' or '.' after the prefix")
    return key


def check_labels(field: str, labels: Mapping[str, str]) -> Mapping[str, str]:
    """Strict, because an identity is its labels joined by ";" and "=" with nothing escaped."""
    for key, value in labels.items():
        check_key(field, key)
        if value and not (len(value) <= 63 and _QUALIFIED.fullmatch(value)):
            raise Invalid(
                f"{field}[{key[:_SHOWN]}]", value, "must be empty or at most 63 letters, digits, '-', '_' or '.'"
            )
    return labels


def parse_ip(field: str, text: str) -> Address:
    """The address of one machine or pod."""
    ip = parse(text, field)
    if not _is_usual(ip) and nobodys(single(ip)) not in (None, *LINK_LOCAL):
        raise Invalid(field, text, "must be the address of one machine or pod, not unspecified, loopback or multicast")
    return ip


def _is_usual(ip: Address) -> bool:
    """True where the first byte alone says that it is some machine's: nearly always."""
    return 0x80 <= ip[12] < 0xE0 or 0 < ip[12] < 0x7F if is_ipv4(ip) else 0x20 <= ip[0] < 0xFF


def parse_cidr(field: str, text: str) -> Prefix:
    try:
        return parse_prefix(text, field)
    except Invalid as e:
        raise Invalid(field, text, "must be a CIDR without host bits, as 10.1.0.0/24") from e


def parse_range(field: str, text: str) -> Prefix:
    """As Kubernetes reads the ranges of addresses that may call: bits beyond the length mean nothing."""
    spelled, slash, bits = text.partition("/")
    try:
        address = parse(spelled, field)
        most = 32 if is_ipv4(address) else BITS
        if slash and bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= most:
            length = int(bits) + BITS - most
            return Prefix(masked(address, length), length)
    except Invalid:
        pass
    raise Invalid(field, text, "must be a CIDR, as 192.0.2.0/24; nobody comes in by it")


ALL_PORTS: Final = range(1, 65536)


def check_port(field: str, port: int) -> int:
    if not 1 <= port <= 65535:
        raise Invalid(field, port, "must be 1 to 65535")
    return port


def parse_protocol(field: str, text: str) -> Protocol:
    if text not in _PROTOCOLS:
        raise Invalid(field, text, "must be TCP, UDP or SCTP")
    return _PROTOCOLS[text]
