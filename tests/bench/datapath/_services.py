"""The services of a comparison: each has a virtual IP and ten backends of its own, ten pods at one port.

A hundred pods are behind all of them: 10,000 services have 100,000 backends at 1,000 ports, none of them shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from clustermesh.address import from_int, parse, text, to_int
from tests.bench.datapath._load import FIRST_PORT, Target
from tests.bench.datapath._network import BACKENDS

EACH: Final = 10  # backends
PORT: Final = 80
_PODS: Final = len(BACKENDS) // EACH  # services at one port
_FIRST_VIP: Final = to_int(parse("10.96.0.0"))


class Made(NamedTuple):
    """One service."""

    name: str
    vip: str
    backends: tuple[Target, ...]


def services(count: int) -> Iterator[Made]:
    for number in range(count):
        pods = BACKENDS[number % _PODS * EACH :][:EACH]
        port = FIRST_PORT + number // _PODS
        vip = text(from_int(_FIRST_VIP + number))
        yield Made(f"s{number}", vip, tuple((address, port) for address in pods))


def ports(count: int) -> int:
    """How many the backends of so many services listen at, beginning with FIRST_PORT."""
    return -(-count // _PODS)
