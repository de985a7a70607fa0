"""The devices domain: programs on this machine's devices, and from which addresses a pod may send.

    CNI, kernel: a device came or went, routes and addresses moved -> plan -> node_config, pod_sources, pod_devices,
                                                                              then programs

A pod's device is known from its CNI ADD on, before the pod sends anything. What is found attached when the agent begins
stays until all pods of before are known.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from agent.bpf.hooks import Accelerated, Attached, Kind
from agent.bpf.layouts import ConfigFlag, Number, pack
from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.linkevents import LinkEvents
from agent.plan.attached import AttachedPods
from agent.plan.devices import (
    Ways,
    are_to_be_reserved,
    choose_kind,
    choose_ports,
    find_overlaps,
    lead_outside,
    plan_config,
    plan_device,
    plan_pod,
    plan_source,
)
from agent.reserved_ports import ReservedPorts
from clustermesh.model import Node
from clustermesh.reconcile import Reconciler, Tracker

_log = logging.getLogger(__name__)
_CONFIG: Final = pack(Number(0))
_SIOCGIFHWADDR: Final = 0x8927
_ETHERNET: Final = 1  # ARPHRD_ETHER


class PodEntries(NamedTuple):
    """Entries of a map, each of some pod's device. What one device had and another has by now is the other's."""

    tracker: Tracker[bytes, bytes]
    of: dict[str, set[bytes]]  # keys, by device
    owners: dict[bytes, str]

    def replace(self, device: str, entries: Mapping[bytes, bytes]) -> None:
        """`entries` are all that are of `device`."""
        for key, value in entries.items():
            self.owners[key] = device
            self.tracker.set(key, value)
        for key in self.of.pop(device, set()) - entries.keys():
            if self.owners.get(key) == device:
                del self.owners[key]
                self.tracker.remove(key)
        if entries:
            self.of[device] = {*entries}


class LentPorts(NamedTuple):
    """`given` are the first and last of those that are lent, None: to be chosen. `reserved` keeps sockets off them."""

    given: tuple[int, int] | None
    reserved: ReservedPorts


class Devices(Domain[str]):
    """`tunnel` is the mesh's device; `patterns` name those that lead outside, where they are not to be found out. With
    `accelerates` those have the program of frames, too. `lent` says which ports are."""

    name = "devices"

    def __init__(
        self,
        targets: Targets,
        attached: AttachedPods,
        lent: LentPorts,
        tunnel: str,
        patterns: Sequence[str],
        flags: ConfigFlag = ConfigFlag.REDIRECT,
        *,
        accelerates: bool = False,
    ) -> None:
        self.sources = PodEntries(Tracker("pod-sources", targets.sources), {}, {})
        self.pods = PodEntries(Tracker("pod-devices", targets.pods), {}, {})
        self.config = Tracker[bytes, bytes]("node-config", targets.config)
        self.programs = Tracker[str, Attached]("devices", targets.devices)
        self.frames = Tracker[str, Accelerated]("frames", targets.frames)
        super().__init__(Reconciler(self.config, self.sources.tracker, self.pods.tracker, self.programs, self.frames))
        for reconciler in self.reconcilers:
            reconciler.may_delete = True  # what is wanted is known here, whatever clusters say
        self._attached, self._tunnel, self._patterns, self._flags = attached, tunnel, patterns, flags
        self._accelerates, self._lent = accelerates, lent
        self._own: Node | None = None
        self._ways = Ways()
        self._outside: set[str] = set()
        self._heard = {tunnel}
        self.on_outside: Callable[[], None] = lambda: None  # called when a device that leads outside is there anew
        attached.on_change.append(self.wake)

    def take_own(self, own: Node | None) -> None:
        """This machine is the node `own`; while it has none, it is what it was."""
        self._own = own or self._own
        self._hear({self._tunnel})
        self.look_again()

    def take_ways(self, ways: Ways) -> None:
        """This machine is connected by these."""
        self._ways = ways
        self.look_again()

    def look_again(self) -> None:
        """Which devices lead outside may have changed."""
        names = [name for _, name in socket.if_nameindex()] if self._patterns else ()
        own = () if self._own is None else [each.ip for each in self._own.addresses]
        outside = lead_outside(self._ways, own, self._patterns, names, self._tunnel)
        self._hear(outside ^ self._outside)
        self._outside = outside

    def _hear(self, devices: Collection[str]) -> None:
        if devices:
            self._heard.update(devices)
            self.wake()

    def take(self) -> Collection[str]:
        taken, self._heard = self._heard, set()
        return taken | self._attached.take_devices()

    def plan(self, item: str) -> None:
        index, pod = _index_of(item), self._attached.on(item)
        if not index and item in self._outside and self._has_other_name(item):
            return  # what it is called now leads outside, or not: this machine's ways will say
        kind = choose_kind(
            is_pods=pod is not None,
            is_tunnel=item == self._tunnel,
            is_outside=item in self._outside,
            has_frames=_has_frames(item),
        )
        self.sources.replace(item, plan_source(index, pod) if pod is not None and index else {})
        self.pods.replace(item, plan_pod(index, pod) if pod is not None and index else {})
        if item == self._tunnel and self._own is not None:  # until then, what an agent before knew
            lent = self._lent.given or choose_ports(_ephemeral_ports())
            self.config.set(_CONFIG, pack(plan_config(self._own, index, lent, self._flags)))
        before = self.programs.desired.get(item)
        wanted = plan_device(index, kind)
        if kind is Kind.OUTSIDE and (before is None or before.ifindex != index):
            self.on_outside()
        if wanted is None:
            self.programs.remove(item)
        else:
            self.programs.set(item, wanted)
        if self._accelerates and index and kind is Kind.OUTSIDE:
            self.frames.set(item, Accelerated(index, ethernet_of(item)))
        else:
            self.frames.remove(item)
        if item == self._tunnel and self._own is not None:
            self._reserve_ports()  # last of all: where that is refused, all else is there

    def _has_other_name(self, item: str) -> bool:
        """Whether the device that was called `item` is there, under another name."""
        before = self.programs.desired.get(item)
        return before is not None and before.ifindex in {index for index, _ in socket.if_nameindex()}

    def _reserve_ports(self) -> None:
        ephemeral = _ephemeral_ports()
        lent = self._lent.given or choose_ports(ephemeral)
        self._lent.reserved.hold(range(lent[0], lent[1] + 1) if are_to_be_reserved(lent, ephemeral) else ())

    async def run(self) -> None:
        if self._lent.given is not None:
            for said in find_overlaps(self._lent.given, _ephemeral_ports()):
                _log.warning("--bpf-lb-snat-ports %d-%d: %s", *self._lent.given, said)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().run())
            tasks.create_task(self._listen())

    async def _listen(self) -> None:
        """Never returns."""
        with closing(LinkEvents()) as events:
            while True:
                named = await events.next()
                self._hear(self._known() if named is None else self._known() & named)
                if self._patterns:
                    self.look_again()

    async def audit(self) -> None:
        """A device may have come or gone without anybody having heard."""
        self._hear(self._known())
        await super().audit()

    def _known(self) -> set[str]:
        return {self._tunnel, *self._outside, *self._attached.devices()}


def _index_of(device: str) -> int:
    """0 where there is none of that name."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def _has_frames(device: str) -> bool:
    """Whether its packets have Ethernet headers. A device that is gone has none."""
    return ethernet_of(device) != b""


def ethernet_of(device: str) -> bytes:
    """Its Ethernet address, b"" where it has none or is gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking, suppress(OSError):
        answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, struct.pack("40s", os.fsencode(device)))
        if int.from_bytes(answer[16:18], sys.byteorder) == _ETHERNET:
            return answer[18:24]
    return b""


def _ephemeral_ports() -> tuple[int, int]:
    """Which the kernel gives to sockets of this network namespace that bind to none."""
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(first), int(last)
