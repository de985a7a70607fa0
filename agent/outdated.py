"""Which last good states on disk are older than what the kernel was programmed from, as the next agent is to know.

That is noted beside the maps, in the bpf filesystem: a disk that takes no state takes no word about it either, and a
reboot, after which the kernel holds nothing and an old state is the best there is, empties it, too.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from clustermesh.logs import about

_log = logging.getLogger(__name__)


class Outdated:
    """One link for each cluster in `folder`: a bpf filesystem has no files, and its links may lead nowhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clusters(self) -> set[str]:
        try:
            return {each.name for each in self._folder.iterdir()}
        except FileNotFoundError:
            return set()
        except OSError as e:
            _log.error("which last good states are old cannot be read: %s", e)
            return set()

    def add(self, cluster: str) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                (self._folder / cluster).symlink_to("older-than-the-maps")
        except OSError as e:
            _log.error("that the last good state of %s is old cannot be noted: %s", cluster, e, extra=about(cluster))

    def discard(self, cluster: str) -> None:
        try:
            (self._folder / cluster).unlink(missing_ok=True)
        except OSError as e:
            _log.error("that the last good state of %s is new cannot be noted: %s", cluster, e, extra=about(cluster))
