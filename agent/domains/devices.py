"""The devices domain: programs on this machine's devices, and from which addresses a pod may send.

    CNI, kernel: a device came or went, routes and addresses moved -> plan -> pod_sources, then programs

A pod's device is known from its CNI ADD on, before the pod sends anything. What is found attached when the agent begins
stays until all pods of before are known.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Final

from agent.bpf.hooks import Attached, Kind
from agent.domains.domain import Domain
from agent.domains.tables import Targets
from agent.linkevents import LinkEvents
from agent.plan.attached import AttachedPod, AttachedPods
from agent.plan.devices import Ways, lead_outside, plan_device, plan_source
from clustermesh.address import Address
from clustermesh.model import Node
from clustermesh.reconcile import Reconciler, Tracker

_LOOK: Final = 1.0  # seconds between looks at which devices lead outside


class Devices(Domain[str]):
    """`tunnel` is the mesh's device; `patterns` name those that lead outside, where they are not to be found out."""

    name = "devices"

    def __init__(self, targets: Targets, attached: AttachedPods, tunnel: str, patterns: Sequence[str]) -> None:
        self.sources = Tracker[bytes, bytes]("pod-sources", targets.sources)
        self.programs = Tracker[str, Attached]("devices", targets.devices)
        super().__init__(Reconciler(self.sources, self.programs))
        for reconciler in self.reconcilers:
            reconciler.may_delete = True  # what is wanted is known here, whatever clusters say
        self._attached, self._tunnel, self._patterns = attached, tunnel, patterns
        self._own: frozenset[Address] = frozenset()
        self._ways = Ways()
        self._outside: set[str] = set()
        self._heard = {tunnel}
        self._source_of: dict[str, bytes] = {}  # by device, the key of its entry ...
        self._device_of: dict[bytes, str] = {}  # ... whose it is: an index may be another device's by now
        attached.on_change.append(self.wake)

    def take_own(self, own: Node | None) -> None:
        """This machine is the node `own`."""
        self._own = frozenset(each.ip for each in own.addresses) if own is not None else frozenset()
        self.look_again()

    def take_ways(self, ways: Ways) -> None:
        """This machine is connected by these."""
        self._ways = ways
        self.look_again()

    def look_again(self) -> None:
        """Which devices lead outside may have changed."""
        names = [name for _, name in socket.if_nameindex()] if self._patterns else ()
        outside = lead_outside(self._ways, self._own, self._patterns, names, self._tunnel)
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
        if pod is not None:
            kind: Kind | None = Kind.POD
        else:
            kind = Kind.TUNNEL if item == self._tunnel else Kind.OUTSIDE if item in self._outside else None
        self._plan_source(item, index, pod)
        if (wanted := plan_device(index, kind)) is None:
            self.programs.remove(item)
        else:
            self.programs.set(item, wanted)

    def _plan_source(self, item: str, index: int, pod: AttachedPod | None) -> None:
        before, key = self._source_of.pop(item, None), None
        if pod is not None and index:
            key, value = plan_source(index, pod)
            self._source_of[item], self._device_of[key] = key, item
            self.sources.set(key, value)
        if before is not None and before != key and self._device_of.get(before) == item:
            del self._device_of[before]
            self.sources.remove(before)

    async def run(self) -> None:
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
