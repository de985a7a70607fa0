"""What is pinned stays pinned: a bpf filesystem that somebody unmounts is mounted again, with all that was in it."""

from __future__ import annotations

import asyncio
import logging
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

    def __init__(self, path: Path, bpffs: Path) -> None:
        self.error = ""
        self._path, self._bpffs = path, bpffs

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
                if error and error != self.error:
                    _log.error("%s", error)
                self.error = error
                await asyncio.sleep(_PERIOD)
        finally:
            if folder is not None:
                folder.close()

    def _open(self) -> PinFolder:
        from agent.bpf.pin_folder import PinFolder  # not at the start

        return PinFolder(self._path, self._bpffs)
