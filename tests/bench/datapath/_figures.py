"""The names of the figures that compare variants: KIND_VARIANT_SERVICES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, Self

from tests.bench.datapath._load import Cell, Mode


class Kind(NamedTuple):
    """A figure's kind: what is read off a cell of one mode, and its unit."""

    mode: Mode
    value: Callable[[Cell], float]
    unit: str


_MANY_NEW, _ONE_NEW, _MANY_KEPT = Mode("new", 32, True), Mode("new", 1, False), Mode("keep", 32, True)
KINDS: Final[Mapping[str, Kind]] = {
    "cps": Kind(_MANY_NEW, lambda cell: cell.rate, "connections/s"),
    "p99": Kind(_ONE_NEW, lambda cell: cell.p99_us, "us"),
    "cpu": Kind(_MANY_NEW, lambda cell: cell.cpu_us, "us"),
    "keepalive": Kind(_MANY_KEPT, lambda cell: cell.rate, "requests/s"),
}
SIZES: Final = (10, 1_000, 10_000)
VARIANTS: Final = ("direct", "socket", "tc", "tc_redirect", "iptables", "iptables_nft", "nftables")


class Figure(NamedTuple):
    """As its name says."""

    kind: str
    variant: str
    services: int

    @classmethod
    def of(cls, name: str) -> Self | None:
        """None where it is the name of something else."""
        kind, _, rest = name.partition("_")
        variant, _, services = rest.rpartition("_")
        if kind not in KINDS or variant not in VARIANTS or not services.isdecimal():
            return None
        return cls(kind, variant, int(services))


def names(services: int) -> Iterator[str]:
    """Of all figures with so many services."""
    return (f"{kind}_{variant}_{services}" for kind in KINDS for variant in VARIANTS)
