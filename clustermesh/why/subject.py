"""What is asked about: a service, an address, an identity by its number or by labels. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from clustermesh.address import Address, parse
from clustermesh.address import text as address_text
from clustermesh.errors import Invalid
from clustermesh.wire.keys import check_name

_RULE = "must be NAMESPACE/NAME, an address, the number of an identity, or labels as app=web,k8s:tier=db"
_MOST = 0xFFFF_FFFF


class OfService(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"Service {self.namespace}/{self.name}"


class OfAddress(NamedTuple):
    address: Address

    def __str__(self) -> str:
        return f"address {address_text(self.address)}"


class OfIdentity(NamedTuple):
    number: int

    def __str__(self) -> str:
        return f"identity {self.number}"


class OfLabels(NamedTuple):
    """Every identity that has all of these: "key=value", or "source:key=value"."""

    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"identities with {', '.join(self.labels)}"


Subject: TypeAlias = OfService | OfAddress | OfIdentity | OfLabels


def parse_subject(given: str) -> Subject:
    """Raises Invalid, with what was probably meant."""
    if "=" in given:
        return OfLabels(tuple(label for label in given.replace(";", ",").split(",") if label))
    if given.isascii() and given.isdigit() and int(given) <= _MOST:
        return OfIdentity(int(given))
    if given.count(":") > 1 or given.replace(".", "").isdigit():
        return OfAddress(_address(given))
    namespace, slash, name = given.partition("/")
    if not slash:
        raise Invalid("subject", given, f"{_RULE}{_meant(given)}")
    if (head := namespace.rsplit(":", 1)[0]).replace(".", "").isdigit() and "." in head:
        raise Invalid("subject", given, f"{_RULE}; did you mean the address {head}?")
    return OfService(check_name(namespace, "namespace"), check_name(name, "name of the service"))


def _address(given: str) -> Address:
    try:
        return parse(given, "subject")
    except Invalid as e:
        raise Invalid("subject", given, _RULE) from e


def _meant(given: str) -> str:
    host, colon, port = given.strip("[]").rpartition(":")
    if colon and port.isdigit():
        return f"; did you mean the address {host.strip('[]')}?"
    name, at, namespace = given.partition("@")
    if not at:
        name, at, namespace = given.partition(".")
    return (
        f"; did you mean {namespace.split('.')[0]}/{name}?"
        if at and name and namespace
        else f"; did you mean default/{given}?"
    )
