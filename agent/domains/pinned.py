"""What is pinned stays pinned: a bpf filesystem that somebody unmounts is mounted again, with all that was in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clustermesh.errors import ClusterMeshError, Refused

if TYPE_CHECKING:
    from agent.bpf.pin_folder import PinFolder

_PERIOD: Final = 1.0  # seconds between two looks: an agent that is killed meanwhile takes everything with it

_log = logging.getLogger(__name__)


class Pinned:
    """`error` says that the folder `path`, of the bpf filesystem at `bpffs`, is not at its place, and why not.

    Where it was emptied as well, the programs are off their hooks: only a new agent puts all of them back."""

    def __init__(self, path: Path, bpffs: Path, has_sockets: Callable[[], bool], attach: Callable[[], None]) -> None:
        """`has_sockets` is whether sockets have all their programs, `attach` puts them back: nothing else notices."""
        self.error = ""
        self._path, self._bpffs, self._has_sockets, self._attach = path, bpffs, has_sockets, attach

    async def run(self) -> None:
        """Never returns. Refused where what was pinned is gone."""
        folder: PinFolder | None = None
        try:
            while True:
                count = None
                try:
                    folder, error = folder or self._open(), ""
                    if not folder.is_there():
                        count = await asyncio.to_thread(folder.put_back)
                        _log.warning("%s was unmounted or removed: made again, with all its %d pins", self._path, count)
                except (ClusterMeshError, OSError) as e:
                    error = f"{self._path} was unmounted or removed, and cannot be made again: {e}"
                if count == 0:
                    raise Refused(f"{self._path} was removed with all that was pinned there: nothing of it runs")
                if not error and not self._has_sockets():
                    error = await self._attach_again()
                if error and error != self.error:
                    _log.error("%s", error)
                self.error = error
                await asyncio.sleep(_PERIOD)
        finally:
            if folder is not None:
                folder.close()

    async def _attach_again(self) -> str:
        """What is wrong with it, or ""."""
        try:
            await asyncio.to_thread(self._attach)
        except ClusterMeshError as e:
            return f"programs of sockets are gone from {self._path}, and cannot be attached again: {e}"
        _log.warning("programs of sockets were gone from %s: attached again", self._path)
        return ""

    def _open(self) -> PinFolder:
        from agent.bpf.pin_folder import PinFolder  # not at the start

        return PinFolder(self._path, self._bpffs)
