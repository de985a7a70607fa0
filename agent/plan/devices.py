"""Which programs each device of this machine is to have, and what a pod may send from. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from agent.bpf.hooks import PROGRAMS, Attached, Kind
from agent.bpf.layouts import NO_ADDRESS, Number, PodSource, pack
from agent.plan.attached import AttachedPod
from clustermesh.address import Address, is_ipv4
from clustermesh.errors import Invalid

KINDS: Final = (Kind.POD, Kind.OUTSIDE, Kind.TUNNEL)
"""Of the programs that are planned here; strict mode comes with the underlay, before there are pods."""
LOOPBACK: Final = "lo"


class Ways(NamedTuple):
    """How this machine is connected: the devices of its default routes, and the addresses of its devices."""

    defaults: frozenset[str] = frozenset()
    addresses: frozenset[tuple[str, Address]] = frozenset()


def parse_devices(text: str) -> tuple[str, ...]:
    """`eth0,bond+`: names, of which a last + stands for any end. Raises Invalid."""
    patterns = tuple(text.split(",")) if text else ()
    for each in patterns:
        name = each.removesuffix("+")
        if not each or len(name.encode()) > 15 or "/" in name or not name.isprintable() or " " in name:
            raise Invalid("devices", each, "must be a device name of 1 to 15 characters, or the beginning of one and +")
    return patterns


def lead_outside(
    ways: Ways, own: Collection[Address], patterns: Collection[str], names: Iterable[str], tunnel: str
) -> set[str]:
    """The devices by which others than this cluster's pods are reached: those of `names` that `patterns` name, or,
    where there are none, those with a default route or one of the Node's `own` addresses."""
    if patterns:
        found = {name for name in names if any(matches(pattern, name) for pattern in patterns)}
    else:
        found = {*ways.defaults, *(name for name, address in ways.addresses if address in own)}
    return found - {LOOPBACK, tunnel}


def matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern


def plan_device(index: int, kind: Kind | None) -> Attached | None:
    """What is to run on a device; None for one that is not there, or that has no part in the mesh."""
    programs = tuple(program.name for program in PROGRAMS if program.kind is kind)
    return Attached(index, programs) if index and programs else None


def plan_source(index: int, pod: AttachedPod) -> tuple[bytes, bytes]:
    """The entry of pod_sources. A pod has one address of a family."""
    ipv4 = next((each for each in pod.addresses if is_ipv4(each)), NO_ADDRESS)
    ipv6 = next((each for each in pod.addresses if not is_ipv4(each)), NO_ADDRESS)
    return pack(Number(index)), pack(PodSource(ipv4, ipv6))
