"""What a mirror has to say of itself: what it waits for, what is not copied and why, and its figures."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Final

from clustermesh.apiserver.problems import ProblemLog
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mirror.cache import CacheWriter
from clustermesh.mirror.copies import KINDS
from clustermesh.mirror.following import Following
from clustermesh.mirror.health import CopyHealth, MirrorHealth
from clustermesh.mirror.readiness import Progress, Readiness
from clustermesh.mirror.sink import MirrorSink
from clustermesh.own_cluster import Settings
from clustermesh.store.election import Election
from clustermesh.wire.mirror_report import MirrorReport

_LOG: Final = logging.getLogger(__name__)
_SAID: Final = 10  # refusals of a cluster that are named for each reason


class Report:
    """Of the mirror that is made of these."""

    def __init__(
        self,
        settings: Settings,
        election: Election,
        peers: Peers,
        sink: MirrorSink,
        writer: CacheWriter,
        following: Following,
        readiness: Readiness,
    ) -> None:
        self._settings, self._election, self._peers, self._sink = settings, election, peers, sink
        self._writer, self._following, self._readiness = writer, following, readiness
        self._began = time.monotonic()
        self.problems = ProblemLog(self._list_problems, _LOG)

    def _list_problems(self) -> Iterator[str]:
        yield from (f"peers folder: {problem}" for problem in self._peers.problems)
        for name, reader in sorted(self._peers.readers.items()):
            yield from (f"cluster {name}: {what}" for what in self._problems_of(name, reader))

    def _problems_of(self, name: str, reader: ClusterReader) -> Iterator[str]:
        if reader.session.state in (State.STALE, State.EVICTED) and reader.session.error:
            yield reader.session.error
        if reader.brain.withdrawn:
            yield "its etcd does not answer, and its services are withdrawn"
        for refused in self._sink.state.refusals(name).first(_SAID).values():
            yield from (f"{what} is not copied: {why}" for what, why in refused.items())

    def told(self) -> MirrorReport:
        """What stands in etcd of it."""
        behind = dict[str, str]()
        for name, reader in self._peers.readers.items():
            if (session := reader.session).state in (State.CONNECTING, State.STALE, State.EVICTED):
                behind[name] = f"{session.state}: {session.error}" if session.error else session.state.value
        return MirrorReport({name: self._sink.weight(name) for name in self._sink.clusters}, behind)

    def waiting(self) -> list[str]:
        """What readiness waits for."""
        waiting = sorted({f"etcd: {reason}" for reason in self._following.interrupted.values()})
        if not self._following.listed.is_set():
            return [*waiting, f"etcd at {', '.join(self._settings.endpoints)} has not been read yet"]
        if why := self._election.waiting:
            return [*waiting, why]
        peers = self._progress() if self._peers.synced_once else None
        return waiting + self._readiness.waiting(peers, time.monotonic() - self._began)

    def _progress(self) -> dict[str, Progress]:
        return {
            name: Progress(
                answered=bool(self._sink.complete(name)) or reader.session.state is State.SYNCING,
                missing={kind: reader.brain.behind.get(kind, "") for kind in KINDS if not self._is_copied(name, kind)},
                error=reader.session.error,
            )
            for name, reader in self._peers.readers.items()
            if name in self._peers.files
        }

    def _is_copied(self, cluster: str, kind: str) -> bool:
        """Who stands by has to know what it would copy."""
        known = self._election.leading.is_set() or kind in self._sink.complete(cluster)
        return known and self._writer.written(cluster, kind)

    def health(self) -> MirrorHealth:
        """Now; for the HTTP server, which asks for it in the event loop."""
        sections = self._writer.cache.sections
        return MirrorHealth(
            cluster=self._settings.cluster.name,
            leading=self._election.leading.is_set(),
            waiting=tuple(self.waiting()),
            problems=self.problems.found,
            clusters={name: self._copy_health(name, reader) for name, reader in self._peers.readers.items()},
            pending={name: section.tracker.pending_size for name, section in sections.items()},
            drift={name: section.tracker.drift for name, section in sections.items()},
            errors={name: section.tracker.failures for name, section in sections.items()},
            leases=len(frozenset().union(*(section.target.keeper.leases for section in sections.values()))),
        )

    def _copy_health(self, name: str, reader: ClusterReader) -> CopyHealth:
        session, copied = reader.session, {kind: self._is_copied(name, kind) for kind in KINDS}
        return CopyHealth(
            ready=session.state is State.FRESH and all(copied.values()),
            copied=copied,
            failures=session.failures,
            last_failure=session.last_failure,
            withdrawals=reader.brain.withdrawals,
            entries=self._sink.counts(name),
            bytes=self._sink.weight(name),
            most_bytes=self._sink.limits_of(name).copied_bytes,
            refused={reason.value: number for reason, number in self._sink.state.refusals(name).counts.items()},
        )
