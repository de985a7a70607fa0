"""What the domains write to: the tables of this node's kernel, each behind the reconciler's port."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from agent.bpf.hooks import Accelerated, Attached
from agent.bpf.layouts import XdpMode
from agent.bpf.loader import Datapath
from agent.bpf.probe import Feature
from agent.plan.routes import Route, RouteKey
from agent.plan.services import ServiceTrackers
from agent.targets.devices import DeviceTarget
from agent.targets.frames import FrameTarget
from agent.targets.maps import MapTarget
from agent.targets.routes import RouteTarget
from agent.targets.wireguard import WireGuardTarget
from agent.underlay import UnderlaySetup
from agent.wireguard.device import Device
from clustermesh.reconcile import Target


class ThisNode(NamedTuple):
    """What there is on this machine: programs and maps, the WireGuard device and its key, and what the kernel has."""

    datapath: Datapath
    device: Device
    underlay: UnderlaySetup
    public_key: str
    features: Sequence[Feature] = ()


class Targets(NamedTuple):
    """One for each table."""

    ipcache: Target[bytes, bytes]
    cidrs: Target[bytes, bytes]
    peers: WireGuardTarget
    routes: Target[RouteKey, Route]
    backends: Target[bytes, bytes]
    slots: Target[bytes, bytes]
    groups: Target[bytes, bytes]
    maglev: Target[bytes, bytes]
    source_ranges: Target[bytes, bytes]
    services: Target[bytes, bytes]
    clusters: Target[bytes, bytes]
    evicted: Target[bytes, bytes]
    config: Target[bytes, bytes]
    sources: Target[bytes, bytes]
    pods: Target[bytes, bytes]
    devices: Target[str, Attached]
    frames: Target[str, Accelerated]


def open_targets(datapath: Datapath, device: Device, public_key: str, xdp: Sequence[XdpMode] = ()) -> Targets:
    """Those of this machine; the descriptors stay the datapath's. `xdp`: see FrameTarget."""
    return Targets(
        ipcache=open_map(datapath, "ipcache"),
        cidrs=open_map(datapath, "ipcache_cidr"),
        peers=WireGuardTarget(device, public_key),
        routes=RouteTarget(),
        config=open_map(datapath, "node_config"),
        sources=open_map(datapath, "pod_sources"),
        pods=open_map(datapath, "pod_devices"),
        devices=DeviceTarget(datapath.devices, datapath.maps["pod_sources"]),
        frames=FrameTarget(datapath.frames, xdp),
        **{name: open_map(datapath, f"lb_{name}") for name in (*ServiceTrackers._fields, "clusters", "evicted")},
    )


def open_map(datapath: Datapath, name: str) -> MapTarget:
    return MapTarget(name, datapath.maps[name])


def most_of(target: Target[bytes, bytes]) -> int:
    """How many entries `target` takes."""
    return target.max_entries if isinstance(target, MapTarget) else sys.maxsize
