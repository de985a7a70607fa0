"""Which programs each device of this machine is to have, and what a pod may send from. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from agent.bpf.hooks import PROGRAMS, Attached, Kind
from agent.bpf.layouts import NO_ADDRESS, ConfigFlag, NodeConfig, Number, PodDevice, PodSource, pack
from agent.plan.attached import AttachedPod
from agent.plan.nodes import pod_pools
from clustermesh.address import Address, is_ipv4
from clustermesh.errors import Invalid
from clustermesh.model import USUAL_NODE_PORTS, Node

KINDS: Final = (Kind.POD, Kind.OUTSIDE, Kind.TUNNEL)
"""Of the programs that are planned here; strict mode comes with the underlay, before there are pods."""
LOOPBACK: Final = "lo"
LENT_AT_LEAST: Final = 256  # ports; with fewer, connections that collide would wait for each other
_LENT: Final = (10000, 29999)  # below those of services and, by the kernel's own default, of sockets
_LENT_OF_EPHEMERAL: Final = (61440, 65535)  # where sockets are given nearly all there are


class Ways(NamedTuple):
    """How this machine is connected: the devices of its default routes, and the addresses of its devices."""

    defaults: frozenset[str] = frozenset()
    addresses: frozenset[tuple[str, Address]] = frozenset()


def parse_devices(text: str) -> tuple[str, ...]:
    """`eth0,bond+`: names, of which a last + stands for any end. Raises Invalid."""
    patterns = tuple(text.split(",")) if text else ()
    for each in patterns:
        if each == LOOPBACK:
            raise Invalid("devices", each, "must be a device that leads outside: lo leads to this machine")
        if each != "+" and not _may_be_device(each.removesuffix("+")):
            raise Invalid("devices", each, "must be a device name of 1 to 15 characters, or the beginning of one and +")
    return patterns


def parse_device(text: str) -> str:
    """The mesh's own. Raises Invalid."""
    if text == LOOPBACK:
        raise Invalid("device", text, "must be a device of the mesh's own: lo is this machine's")
    if not _may_be_device(text):
        raise Invalid("device", text, "must be a device name of 1 to 15 characters")
    return text


def _may_be_device(name: str) -> bool:
    """As the kernel has it (dev_valid_name); of a % it would make a number."""
    is_text = name.isprintable() and not set(name) & set(" /:%")
    return is_text and 1 <= len(name.encode()) <= 15 and name not in (".", "..")


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


def choose_kind(*, is_pods: bool, is_tunnel: bool, is_outside: bool, has_frames: bool) -> Kind | None:
    """Of the programs of a device, None for one that has no part in the mesh. What leads outside without link-layer
    headers (a VPN's tun) has the programs for packets without them."""
    if is_pods:
        return Kind.POD
    if is_tunnel or (is_outside and not has_frames):
        return Kind.TUNNEL
    return Kind.OUTSIDE if is_outside else None


def plan_device(index: int, kind: Kind | None) -> Attached | None:
    """What is to run on a device; None for one that is not there, or that has no part in the mesh."""
    programs = tuple(program.name for program in PROGRAMS if program.kind is kind)
    return Attached(index, programs) if index and programs else None


def plan_source(index: int, pod: AttachedPod) -> dict[bytes, bytes]:
    """The entry of pod_sources. A pod has one address of a family."""
    return {pack(Number(index)): pack(PodSource(*_by_family(pod.addresses)))}


def plan_pod(index: int, pod: AttachedPod) -> dict[bytes, bytes]:
    """The entries of pod_devices."""
    return {address: pack(PodDevice(index)) for address in pod.addresses}


def parse_ports(text: str) -> tuple[int, int]:
    """`10000-29999`. Raises Invalid."""
    found = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text, re.ASCII)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (first >= 1024 and last <= 65535 and last - first + 1 >= LENT_AT_LEAST):
        raise Invalid("ports", text, f"must be FIRST-LAST, {LENT_AT_LEAST} ports at least, from 1024 to 65535")
    return first, last


def choose_ports(ephemeral: tuple[int, int]) -> tuple[int, int]:
    """Those to lend where sockets that bind to no port have one of `ephemeral`, first and last: as many as are none of
    these, nor node ports. Where those are fewer (1024 to 65535 is often set), the last 4,096 that there are, to be
    reserved."""
    below = _LENT[0], min(_LENT[1], ephemeral[0] - 1)
    above = max(ephemeral[1] + 1, USUAL_NODE_PORTS.stop), 65535
    return max(below, above, _LENT_OF_EPHEMERAL, key=lambda ports: ports[1] - ports[0])


def are_to_be_reserved(lent: tuple[int, int], ephemeral: tuple[int, int]) -> bool:
    """Whether the kernel would give one that is lent to a socket that binds to none. Raises Invalid where it would have
    too few left."""
    common = min(lent[1], ephemeral[1]) - max(lent[0], ephemeral[0]) + 1
    if 2 * common > ephemeral[1] - ephemeral[0] + 1:
        rule = f"must leave half of net.ipv4.ip_local_port_range, {ephemeral[0]} to {ephemeral[1]}, to sockets"
        raise Invalid("bpf-lb-snat-ports", f"{lent[0]}-{lent[1]}", rule)
    return common > 0


def find_overlaps(lent: tuple[int, int], ephemeral: tuple[int, int]) -> Iterator[str]:
    """Who else has ports that are given to be lent, and what that means, in sentences."""
    if common := _common(lent, (USUAL_NODE_PORTS.start, USUAL_NODE_PORTS.stop - 1)):
        yield (
            f"{common} of them are Kubernetes' usual node ports: what a backend's own address and port sends to such a "
            "node port is taken for a reply; give others"
        )
    if common := _common(lent, ephemeral):
        yield f"{common} of them are in net.ipv4.ip_local_port_range: reserved where half of it is left to sockets"


def _common(some: tuple[int, int], others: tuple[int, int]) -> str:
    """ "" where there is none."""
    first, last = max(some[0], others[0]), min(some[1], others[1])
    return f"{first} to {last}" if first <= last else ""


def plan_config(own: Node, tunnel: int, lent: tuple[int, int], flags: ConfigFlag) -> NodeConfig:
    """The value of node_config. `tunnel` is the index of the mesh's device, 0 where it is not there yet; `lent` are the
    ports that are, first and last."""
    node4, node6 = (own.address("InternalIP", "ExternalIP", ipv4=is_v4) or NO_ADDRESS for is_v4 in (True, False))
    tunnel4, tunnel6 = _by_family(pool.router for pool in pod_pools(own))
    return NodeConfig(node4, node6, tunnel4, tunnel6, tunnel, *lent, flags=flags)


def _by_family(addresses: Iterable[Address]) -> tuple[Address, Address]:
    """The first of IPv4 and the first of IPv6."""
    given = list(addresses)
    ipv4 = next((each for each in given if is_ipv4(each)), NO_ADDRESS)
    return ipv4, next((each for each in given if not is_ipv4(each)), NO_ADDRESS)
