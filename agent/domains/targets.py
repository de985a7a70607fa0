"""What the domains write to: the tables of this node's kernel, each behind the reconciler's port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.bpf.layouts import (
    AddressKey,
    BackendKey,
    BackendValue,
    CidrKey,
    GroupsKey,
    GroupsValue,
    IpcacheValue,
    ServiceKey,
    ServiceValue,
    SlotsKey,
    SlotsValue,
)
from agent.bpf.loader import Datapath
from agent.bpf.probe import Feature
from agent.plan.routes import Route, RouteKey
from agent.targets import maps
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

    ipcache: Target[AddressKey, IpcacheValue]
    cidrs: Target[CidrKey, IpcacheValue]
    peers: WireGuardTarget
    routes: Target[RouteKey, Route]
    backends: Target[BackendKey, BackendValue]
    slots: Target[SlotsKey, SlotsValue]
    groups: Target[GroupsKey, GroupsValue]
    services: Target[ServiceKey, ServiceValue]


def open_targets(datapath: Datapath, device: Device, public_key: str) -> Targets:
    """Those of this machine; the descriptors stay the datapath's."""
    return Targets(
        ipcache=maps.addresses(datapath),
        cidrs=maps.cidrs(datapath),
        peers=WireGuardTarget(device, public_key),
        routes=RouteTarget(),
        backends=maps.backends(datapath),
        slots=maps.slots(datapath),
        groups=maps.groups(datapath),
        services=maps.services(datapath),
    )
