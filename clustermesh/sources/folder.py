"""A folder of manifests as a source that is followed: the shell around `scan`, `table` and `translate`.

A change is noticed by inotify within about 10 ms. A rescan every few seconds finds what inotify did not tell (a network
file system, an overflowed queue, a folder that was replaced).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Set
from functools import partial
from pathlib import Path
from typing import Final

from watchfiles._rust_notify import RustNotify  # documented as the way to start watching before the first look

from clustermesh.model import Cluster
from clustermesh.settling import SETTLED
from clustermesh.sources.objects import Ref
from clustermesh.sources.scan import Reading, Scan, is_manifest, scan_files, scan_folder
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.source import EVERYTHING
from clustermesh.sources.table import ObjectTable, Problem
from clustermesh.sources.translate import Translator

RESCAN: Final = 3.0
"""Seconds between two looks at the whole folder."""
_STEP, _DEBOUNCE = 2, 40
"""Milliseconds without an event after which a change is read, and the most that events are waited for."""
_REPLACED: Final = 0.02
"""Seconds a file may be missing while an editor puts a new one in its place."""


_LOG: Final = logging.getLogger(__name__)


class _Unwatched(Exception):
    """The watch is of no use any more."""


class FolderSource:
    """The objects below `root`. Iterate `updates`, and read `snapshot` and `problems` between two updates."""

    def __init__(self, root: Path, cluster: Cluster, *, rescan: float = RESCAN) -> None:
        self.root, self.rescan = root, rescan
        self._table = ObjectTable()
        self._translator = Translator(cluster, self._table.objects)
        self._known: dict[str, Reading] = {}
        self._held: set[str] = set()  # files that may just be being written
        self._error = ""
        self._seen_whole = False

    @property
    def about(self) -> str:
        return f"folder {self.root}"

    @property
    def has_agents(self) -> bool:
        return True

    @property
    def snapshot(self) -> Snapshot:
        return self._translator.snapshot

    @property
    def doubted(self) -> Set[str]:
        """Nobody knows what a file holds that was never read, or a folder that was never seen."""
        return EVERYTHING if not self._table.complete or (self._error and not self._seen_whole) else frozenset()

    @property
    def exports(self) -> bool | None:
        return bool(self.snapshot.exports) if self._seen_whole and not self.doubted else None

    @property
    def drift(self) -> dict[str, int]:
        return {}

    def problems(self) -> list[Problem]:
        """Everything in the folder that is not acted on."""
        whole = [Problem(str(self.root), 0, self._error)] if self._error else []
        faults = [
            Problem(*self._table.locate(ref), f"{ref}: {sentence}") for ref, sentence in self._translator.faults()
        ]
        return whole + list(self._table.problems()) + faults

    async def updates(self) -> AsyncGenerator[Change, None]:
        """First everything there is, then each change. Close the iterator (aclosing) to end the watch at once.

        A Change without entries tells that only `problems` changed.
        """
        stop = threading.Event()
        try:
            watch, inode = _open_watch(self.root)
            yield await self._look(None) or Change()
            while True:
                try:
                    paths = await self._wait(watch, stop)
                except _Unwatched:
                    inode = -1
                if _inode(self.root) != inode:
                    (watch, inode), paths = _open_watch(self.root), None
                if (change := await self._look(paths)) is not None:
                    yield change
        finally:
            stop.set()

    async def _wait(self, watch: RustNotify | None, stop: threading.Event) -> list[str] | None:
        """The manifests something happened to, or None when the whole folder is to be looked at."""
        if watch is None:
            await asyncio.sleep(self.rescan)
            return None
        patience = min(self.rescan, SETTLED / 1e9) if self._held else self.rescan
        try:
            events = await asyncio.to_thread(watch.watch, _DEBOUNCE, _STEP, int(patience * 1000), stop)
        except (OSError, RuntimeError) as e:  # an overflowed queue, or what else inotify comes up with
            _LOG.warning("%s: the watch failed and is made again: %s", self.root, e)
            await asyncio.sleep(self.rescan)
            raise _Unwatched from e
        if isinstance(events, str):  # "timeout", or "stop" when nobody listens any more
            return sorted(self._held) or None
        prefix = f"{self.root}/"
        paths = {path.removeprefix(prefix) for _, path in events}
        if any(_concerns_folder(path) for path in paths):
            return None
        found = sorted(path for path in paths if is_manifest(path))
        if any(not _exists(self.root / path) for path in found):
            await asyncio.sleep(_REPLACED)
        return sorted({*found, *self._held})

    async def _look(self, paths: list[str] | None) -> Change | None:
        """Read what changed and fold it in; None when nothing did."""
        look = partial(scan_folder, self.root) if paths is None else partial(scan_files, self.root, paths)
        scan = await asyncio.to_thread(look, dict(self._known), time.time_ns())
        error = scan.error if paths is None else self._error
        if not scan.read and not scan.removed and error == self._error:
            return None
        self._error = error
        self._seen_whole |= not error
        return self._translator.apply(self._fold(scan))

    def _fold(self, scan: Scan) -> dict[Ref, int]:
        """The objects that changed, each with the time of its change: of the write, or of noticing the removal."""
        observed: dict[Ref, int] = {}
        for path, reading in scan.read.items():
            self._known[path] = reading
            (self._held.add if reading.held else self._held.discard)(path)
            observed.update(dict.fromkeys(self._table.put(path, reading.manifest), reading.written))
        for path in sorted(scan.removed):
            del self._known[path]
            self._held.discard(path)
            observed.update(dict.fromkeys(self._table.remove(path), time.time_ns()))
        return observed


def _concerns_folder(path: str) -> bool:
    """A folder came or went, or the link by which Kubernetes swaps a mounted ConfigMap; a name with a dot is a file."""
    name = os.path.basename(path)
    return name == "..data" or path == "." or "." not in name


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # unlike Path.exists it raises nothing


def _inode(root: Path) -> int:
    try:
        return root.stat().st_ino
    except OSError:
        return 0


def _open_watch(root: Path) -> tuple[RustNotify | None, int]:
    """A watch that remembers what happens from now on, and the folder it is for; None while there is no folder."""
    inode = _inode(root)
    try:
        return RustNotify([str(root)], False, False, 0, True, True), inode
    except OSError:  # no such folder, or no more inotify watches: the rescan goes on
        return None, 0
