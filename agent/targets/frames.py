"""The program of frames on devices as a reconciled resource: device -> its index and address."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from agent.bpf.hooks import Accelerated
from agent.bpf.layouts import XdpMode
from agent.bpf.xdp_hooks import XdpHooks
from agent.targets.thread import OwnThread
from clustermesh.errors import ApplyError, ClusterMeshError


class FrameTarget:
    """Implements clustermesh.reconcile.Target[str, Accelerated], in a thread: a driver may set its device up again.

    `modes` are those that are allowed, the first is preferred; where there are none the program is not even loaded.
    """

    def __init__(self, hooks: XdpHooks, modes: Sequence[XdpMode]) -> None:
        self._hooks, self._modes = hooks, modes
        self._thread = OwnThread("frames")

    async def dump(self) -> dict[str, Accelerated]:
        return await self._thread.do(self._hooks.running, self._modes)

    async def upsert(self, entries: Mapping[str, Accelerated]) -> None:
        """Raises ApplyError for devices that are gone, that take no such program or have another one."""
        failed: dict[Hashable, str] = {}
        for device, wanted in entries.items():
            try:
                await self._thread.do(self._hooks.attach, device, wanted, self._modes)
            except ClusterMeshError as e:
                failed[device] = str(e)
        if failed:
            raise ApplyError(failed)

    async def delete(self, keys: Collection[str]) -> None:
        for device in keys:
            await self._thread.do(self._hooks.detach, device)
