"""The services of a comparison: each has a virtual IP and ten backends, the ten pods at a port of its own.

So no backend is in two services: 10,000 of them have 100,000 backends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from clustermesh.address import from_int, parse, text, to_int
from tests.bench.datapath._load import FIRST_PORT, Target
from tests.bench.datapath._network import BACKENDS

PORT: Final = 80
_FIRST_VIP: Final = to_int(parse("10.96.0.0"))


class Made(NamedTuple):
    """One service."""

    name: str
    vip: str
    backends: tuple[Target, ...]


def services(count: int) -> Iterator[Made]:
    for number in range(count):
        vip = text(from_int(_FIRST_VIP + number))
        yield Made(f"s{number}", vip, tuple((address, FIRST_PORT + number) for address in BACKENDS))
