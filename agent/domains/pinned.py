"""What is pinned stays pinned: a bpf filesystem that somebody unmounts is mounted again, with all that was in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clustermesh.errors import ClusterMeshError, Refused

if TYPE_CHECKING:
    from agent.bpf.loader import Datapath
    from agent.bpf.pin_folder import PinFolder

_PERIOD: Final = 1.0  # seconds between two looks: an agent that is killed meanwhile takes everything with it

_log = logging.getLogger(__name__)


class Pinned:
    """`error` says what of `datapath` is not pinned at its place, in the bpf filesystem at `bpffs`, and why not.

    `attach` puts the programs of sockets back. Where the folder of links is gone, those of devices are off, too: only a
    new agent attaches all of them."""

    def __init__(self, datapath: Datapath, bpffs: Path, attach: Callable[[], None]) -> None:
        self.error = ""
        self._datapath, self._path, self._bpffs, self._attach = datapath, datapath.pin_dir, bpffs, attach

    async def run(self) -> None:
        """Never returns. Refused where the folder of links is gone."""
        folder: PinFolder | None = None
        try:
            while True:
                try:
                    folder = folder or self._open()
                    if not folder.is_there():
                        count = await asyncio.to_thread(folder.put_back)
                        _log.warning("%s was unmounted or removed: made again, with all its %d pins", self._path, count)
                    error = await self._complete()
                except (ClusterMeshError, OSError) as e:
                    error = f"{self._path} was unmounted or removed, and cannot be made again: {e}"
                if not self._datapath.has_links_folder() and not error:
                    raise Refused(f"{self._path} has no links any more: somebody removed them, and no program runs")
                if error and error != self.error:
                    _log.error("%s", error)
                self.error = error
                await asyncio.sleep(_PERIOD)
        finally:
            if folder is not None:
                folder.close()

    async def _complete(self) -> str:
        """What is wrong with pinning again what somebody has removed from the folder, or ""."""
        if lost := self._datapath.pin_lost():
            _log.warning("maps were pinned no more in %s, and are again: %s", self._path, ", ".join(lost))
        if self._datapath.has_links_folder() and not self._datapath.has_sockets():
            try:
                await asyncio.to_thread(self._attach)
            except ClusterMeshError as e:
                return f"programs of sockets are gone from {self._path}, and cannot be attached again: {e}"
            _log.warning("programs of sockets were gone from %s: attached again", self._path)
        return ""

    def _open(self) -> PinFolder:
        from agent.bpf.pin_folder import PinFolder  # not at the start

        return PinFolder(self._path, self._bpffs)
