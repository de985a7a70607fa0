"""One reader for each cluster named in the peers folder: started when its file appears, drained when it goes.

The folder is Cilium's clustermesh-config directory. It may be a Secret volume, whose files are links into a folder that
is swapped, so it is looked at every second, at each file in it every ten: read where one may have changed, and compared
by digest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from clustermesh.errors import Invalid, Unavailable
from clustermesh.logs import about
from clustermesh.mesh import last_good
from clustermesh.mesh.authority import Authority
from clustermesh.mesh.file_marks import FileMarks
from clustermesh.mesh.messages import AUDIT_SHARE, Terms
from clustermesh.mesh.pace import Budget, Pace
from clustermesh.mesh.peer_files import PeerFile, PeerProblem, read_peers
from clustermesh.mesh.reader import ClusterReader, Sink
from clustermesh.mesh.shared_clients import SharedClients
from clustermesh.mesh.tables import Table
from clustermesh.mesh.view import KINDS
from clustermesh.model import MAX_CLUSTERS, Cluster, ClusterConfig, check_cluster_id
from clustermesh.store.client import EtcdClient
from clustermesh.store.operations import KeyValue

_log = logging.getLogger(__name__)
_POLL = 1.0
_SWAPPED = "..data"  # through which the files of a Secret volume lead
_TURN = 200  # entries of the last good state between two turns of the event loop
DRAIN_SECONDS = (
    5.0  # every node of both clusters has read its folder by then, and stopped choosing the other's backends
)


class Peers:
    """The readers of all connected clusters, by cluster name. `problems` are files that could not be used."""

    def __init__(
        self,
        folder: Path,
        own: Cluster,
        sink: Sink,
        connect: Callable[[PeerFile], EtcdClient],
        tables: Callable[[str, ClusterConfig], Sequence[Table]],
        keep: Path,
        authorize: Callable[[Authority], None] = lambda _authority: None,
    ) -> None:
        self.readers: dict[str, ClusterReader] = {}
        self.problems: list[str] = []
        self.synced_once = False  # the folder was read at least once
        self.looked = asyncio.Event()  # and what was kept of its clusters is restored, or cannot be
        self.lost: set[str] = set()  # clusters that were known, by a file that cannot be read or is not to be
        self.newcomers: set[str] = set()  # clusters of which nothing was known when their reader was started
        self._folder, self._own, self._sink, self._keep = folder, own, sink, keep
        self._clients, self._tables, self._authorize = SharedClients(connect), tables, authorize
        self._pace, self._marks = Pace(), FileMarks()
        self.terms = Terms(max_clusters=own.max_clusters)  # of every reader, but for the limits of its file
        self.files: dict[str, PeerFile] = {}  # as they were read last
        self.id_of: Callable[[PeerFile], int | None] = lambda file: file.cluster_id  # where nothing was heard of it yet
        self.check_entry: Callable[[KeyValue], Awaitable[None]] | None = None  # as in the readers
        self.on_files: Callable[[], None] = lambda: None  # called when they are others
        self.on_complete: Callable[[], None] = lambda: None  # when one of the clusters is, or which they are is known
        self._ids: dict[str, int] = {}  # as admitted: what two readers ask at once, both hear of a moment later
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, float] = {}  # disconnected clusters, and when they are to be forgotten

    @property
    def lost_files(self) -> list[Path]:
        known = {self._own.name, *self.readers}
        return [last_good.path_of(self._keep, name) for name in sorted(self.lost & known)]

    async def run(self) -> None:
        """Never returns; cancel it to stop. Stopping drains nothing."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                if self._marks.changed(self._folder, self._folder / _SWAPPED):
                    await self.sync(tasks)
                self.looked.set()
                self._forget_drained()
                await asyncio.sleep(_POLL)

    async def sync(self, tasks: asyncio.TaskGroup) -> None:
        """Make the readers match the folder."""
        noted = self._note_marks()
        try:
            files, problems = await asyncio.to_thread(read_peers, self._folder, self._own.name)
        except Unavailable as e:
            self._report([PeerProblem("", e)])  # a folder that cannot be read now is not an empty one
            return
        if not noted.issuperset(path for file in files.values() for path in file.credentials):
            self._marks.note(())  # of some it is not known how they were when they were read
        self._report(problems)
        await self._match(tasks, files, {problem.name for problem in problems})

    def _note_marks(self) -> set[Path]:
        """Everything that makes the readers what they are, as far as it is known."""
        paths = {
            self._folder,
            self._folder / _SWAPPED,
            *(path for file in self.files.values() for path in file.credentials),
        }
        with suppress(OSError):
            paths.update(self._folder / name for name in os.listdir(self._folder))
        self._marks.note(paths)
        return paths

    async def _match(self, tasks: asyncio.TaskGroup, files: Mapping[str, PeerFile], unclear: Set[str]) -> None:
        """A file that cannot be read now (`unclear`) is not a file that is gone."""
        if not self.synced_once:
            last_good.forget_others(self._keep, files.keys() | unclear | {self._own.name})
        before = dict(self.files)
        for name in sorted(self.files.keys() - files.keys() - unclear):
            self._leave(name)
        for name, file in sorted(files.items()):
            if name not in self.files or file.digest != self.files[name].digest:
                await self._start(tasks, file)
        self._space_audits()
        self.synced_once = True
        self.on_complete()
        if self.files != before:
            self.on_files()

    def _space_audits(self) -> None:
        """However many clusters one etcd has, as behind kvstoremesh: thousands of agents ask it for their digests."""
        together = Counter(file.endpoints for file in self.files.values())
        for name, file in self.files.items():
            brain = self.readers[name].brain
            brain.terms = replace(brain.terms, audit=max(self.terms.audit, AUDIT_SHARE * together[file.endpoints]))

    def _forget_drained(self) -> None:
        for name in [name for name, due in self._leaving.items() if time.monotonic() >= due]:
            self._forget(name)

    def admit(self, name: str, config: ClusterConfig) -> None:
        """Whether cluster `name` may join with `config`. Raises Invalid with the reason."""
        self._ids.pop(name, None)
        check_cluster_id(config.id, self._own.max_clusters)
        if config.id == self._own.id:
            raise Invalid(f"cluster id of {name}", config.id, f"is this cluster's own id ({self._own.name})")
        for other in self.readers.values():
            if other.name != name and config.id in (other.config and other.config.id, self._ids.get(other.name)):
                raise Invalid(f"cluster id of {name}", config.id, f"is already used by cluster {other.name}")
        for file in self.files.values():  # one that was not heard of yet keeps the id it was connected with
            if file.name != name and self.id_of(file) == config.id and self.readers[file.name].config is None:
                raise Invalid(f"cluster id of {name}", config.id, f"is that of cluster {file.name}")
        # Cilium's own rule lets the side with 511 refuse; here both do: each numbers identities in its own way, and
        # what one of them takes for its own is another's to the other.
        if (theirs := config.max_connected_clusters or MAX_CLUSTERS) != self._own.max_clusters:
            raise Invalid(
                f"maxConnectedClusters of {name}", theirs, f"must be {self._own.max_clusters} as in this cluster"
            )
        if name in self.files:
            self._ids[name] = config.id
            self._grant(self.files[name], config)

    def _grant(self, file: PeerFile, config: ClusterConfig) -> None:
        """Say what a cluster may say, before it says anything."""
        if config.id <= self._own.max_clusters:
            cluster = Cluster(name=file.name, id=config.id, max_clusters=self._own.max_clusters)
            self._authorize(Authority.of(cluster, file.allowed, file.limits))

    async def _start(self, tasks: asyncio.TaskGroup, file: PeerFile) -> None:
        previous = self.readers.get(file.name)
        if file.name in self.files:
            self._stop(file.name)
        self._leaving.pop(file.name, None)
        reader = ClusterReader(
            file.name,
            self._sink,
            lambda: self._clients.client(file),
            self._tables,
            self.admit,
            replace(self.terms, limits=file.limits),
            pace=self._pace,
        )
        reader.budget = Budget()
        reader.check_entry = self.check_entry
        reader.on_complete = lambda: self.on_complete()  # noqa: PLW0108  # whoever that is by then
        if previous is not None and previous.config is not None:
            self._grant(file, previous.config)
            reader.restored(previous.config)  # new credentials: what was learned stays
        elif previous is None and (kept := await self.kept_of(file.name)) is not None:
            self._grant(file, kept.config)
            await restore(self._sink, file.name, kept)
            reader.restored(kept.config)
        elif file.name not in self.lost:
            self.newcomers.add(file.name)
        self.files[file.name] = file
        self.readers[file.name] = reader
        self._tasks[file.name] = tasks.create_task(self._read(reader), name=f"cluster {file.name}")

    async def kept_of(self, name: str) -> last_good.LastGood | None:
        """What is to be restored of a cluster; one that something is kept of which cannot be is `lost`."""
        if name in self.lost:
            return None
        kept = await asyncio.to_thread(last_good.load, self._keep, name)
        if kept is None and await asyncio.to_thread(last_good.is_lost, self._keep, name):
            self.lost.add(name)
        return kept

    async def _read(self, reader: ClusterReader) -> None:
        """Once all that was kept is restored: what was refused, and so not kept, must not stand before what it was
        refused for."""
        await self.looked.wait()
        async with self._pace.turn:  # one after the other: hundreds that begin in one step would hold up everybody
            await asyncio.sleep(0)
        await reader.run()

    def _leave(self, name: str) -> None:
        """Begin to take a cluster out: no new connection goes there, those under way still find their way."""
        self._stop(name)
        self.readers[name].removed()
        self._sink.drain(name, ["services"])
        self._leaving[name] = time.monotonic() + DRAIN_SECONDS
        _log.info("cluster %s: disconnected, draining for %g s", name, DRAIN_SECONDS, extra=about(name))

    def _forget(self, name: str) -> None:
        del self._leaving[name], self.readers[name]
        self._ids.pop(name, None)
        self._sink.drain(name)
        last_good.forget(self._keep, name)
        _log.info("cluster %s: drained", name, extra=about(name))

    def _stop(self, name: str) -> None:
        self._tasks.pop(name).cancel()
        del self.files[name]

    def _report(self, problems: Sequence[PeerProblem]) -> None:
        said = [str(problem) for problem in problems]
        for problem in said:
            if problem not in self.problems:
                _log.warning("peers folder: %s", problem)
        self.problems = said


async def restore(sink: Sink, cluster: str, kept: last_good.LastGood) -> int:
    """Put what was kept into `sink`, in turns. What cannot be taken in is left out, to be read anew: how many."""
    dropped = 0
    for kind in KINDS:
        for number, (name, value) in enumerate(kept.view.table(kind).items()):
            try:
                sink.put(cluster, kind, name, value, 0)
            except Exception:  # whatever a former agent has kept must not end this one
                dropped += 1
                fields = about(cluster, kind, name)
                _log.exception(
                    "cluster %s: %s %s of the last good state is left out", cluster, kind, name, extra=fields
                )
            if number % _TURN == _TURN - 1:
                await asyncio.sleep(0)
    return dropped
