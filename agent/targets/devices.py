"""Programs on devices as a reconciled resource: device -> its index and what runs there."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping
from typing import Final

from agent.bpf.device_hooks import DeviceHooks
from agent.bpf.hooks import PROGRAMS, Attached, Kind
from agent.bpf.layouts import Number, pack
from agent.bpf.syscalls import map_lookup
from agent.plan.devices import KINDS
from agent.targets.thread import OwnThread
from clustermesh.errors import ApplyError, ClusterMeshError, Unavailable

_PROGRAMS: Final = {program.name: program for program in PROGRAMS}
_SOURCE_SIZE: Final = 32


class DeviceTarget:
    """Implements clustermesh.reconcile.Target[str, Attached], in a thread: to attach one program waits for all CPUs.

    A pod's programs are attached only where `sources`, the map pod_sources, knows the pod: all it sends were dropped.
    """

    def __init__(self, hooks: DeviceHooks, sources: int) -> None:
        self._hooks, self._sources = hooks, sources
        self._thread = OwnThread("devices")

    async def dump(self) -> dict[str, Attached]:
        return await self._thread.do(self._hooks.running, KINDS)

    async def upsert(self, entries: Mapping[str, Attached]) -> None:
        """Raises ApplyError for devices that are gone, or that the kernel attaches nothing to."""
        failed: dict[Hashable, str] = {}
        for device, wanted in entries.items():
            try:
                await self._thread.do(self._attach, device, wanted)
            except ClusterMeshError as e:
                failed[device] = str(e)
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[str]) -> None:
        programs = [program for program in PROGRAMS if program.kind in KINDS]
        for device in keys:
            await self._thread.do(self._hooks.detach, device, programs)

    def _attach(self, device: str, wanted: Attached) -> None:
        programs = [_PROGRAMS[name] for name in wanted.programs]
        if any(program.kind is Kind.POD for program in programs):
            try:
                known = map_lookup(self._sources, pack(Number(wanted.ifindex)), _SOURCE_SIZE)
            except OSError as e:
                raise Unavailable(f"cannot read the map pod_sources: {os.strerror(e.errno or 0)}") from e
            if known is None:
                raise Unavailable(f"the map pod_sources does not know the pod of {device}")
        self._hooks.attach(device, programs, index=wanted.ifindex)
        others = [each for each in _PROGRAMS.values() if each.kind in KINDS and each not in programs]
        self._hooks.detach(device, others)
