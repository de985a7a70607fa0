"""The mirror's wiring: a reader for each peer, the own etcd, and what stands between them.

Of all mirrors of one etcd one leads (store/election.py) and writes. Another one does all else: it reads the peers,
decides, and follows what the leader writes, so that it has next to nothing to write when it takes over. Stopping
revokes nothing but the lead: the copies live on until their leases end, and whoever comes next takes them over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from clustermesh.apiserver.collector import few_collections
from clustermesh.apiserver.report import keep_reported
from clustermesh.apiserver.terms import own_name, serve_terms, time_text
from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.logs import about
from clustermesh.mesh.authority import Authority, Limits
from clustermesh.mesh.messages import SETTLE
from clustermesh.mesh.peer_files import PeerFile, read_peers
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import Table, own_tables
from clustermesh.mirror.agent_files import AgentAccess, keep_agent_files
from clustermesh.mirror.cache import CacheWriter, adopt, in_turns, make_cache
from clustermesh.mirror.copies import copied_tables
from clustermesh.mirror.departures import WAIT, Departures, is_gone
from clustermesh.mirror.following import Following
from clustermesh.mirror.health import MirrorHealth, health_server
from clustermesh.mirror.propagation import Propagation
from clustermesh.mirror.readiness import OVERALL, UNCONNECTED, Readiness
from clustermesh.mirror.report import Report
from clustermesh.mirror.sink import CONFIGS, MirrorSink
from clustermesh.model import Cluster, ClusterConfig, check_cluster_id
from clustermesh.own_cluster import Settings
from clustermesh.store import election
from clustermesh.store.client import EtcdClient
from clustermesh.store.election import Election, Owner
from clustermesh.store.lease import DEFAULT_TTL, LeaseKeeper
from clustermesh.store.operations import KeyValue
from clustermesh.wire import cluster_config, keys, mirror_report
from clustermesh.wire.kinds import NODES, SERVICES

_LOG: Final = logging.getLogger(__name__)
BEAT: Final = 60.0
"""Seconds between two beats."""
_LOOK: Final = 1.0  # seconds between two looks at which clusters are connected
_NOWHERE: Final = Path("/proc/nothing")  # what was known of a cluster is in the cache


class Timing(Struct, frozen=True, kw_only=True):
    """Seconds. `own` is how long the own cluster's nodes are waited for, `wait` how long copies of a cluster stay that
    was disconnected. `heartbeat` is how often to beat, where no API server does; 0 for never. `settle` is as in
    the readers' Terms, and so is `cache_ttl`. /readyz waits for `ready` at most, and `answered` for a cluster that does
    not answer."""

    lease_ttl: int = DEFAULT_TTL
    audit: float = 300.0
    own: float = 30.0
    wait: float = WAIT
    election: int = election.TTL
    heartbeat: float = 0.0
    settle: float = SETTLE
    cache_ttl: float = 0.0
    ready: float = OVERALL
    answered: float = UNCONNECTED


_DEFAULT_TIMING: Final = Timing()


async def run(
    settings: Settings,
    folder: Path,
    http: Sequence[str],
    timing: Timing = _DEFAULT_TIMING,
    access: AgentAccess | None = None,
) -> None:
    """Copy the clusters of `folder` until SIGTERM or SIGINT, or until cancelled. Health is served everywhere in `http`.

    Agents find their files where `access` says, if it is given.
    """
    async with settings.client() as client, settings.client(timing.election) as voting:
        with few_collections() as settle:

            def make() -> Mirror:
                election = stand(client, voting, settings.ownership(client), timing)
                return Mirror(settings, folder, client, election, timing, access, settle)

            await serve_terms(make, partial(_show, http))
    _LOG.info("stopped; the copies stay until their leases end")


@contextmanager
def _show(addresses: Sequence[str], current: Callable[[], Mirror]) -> Iterator[None]:
    def health() -> MirrorHealth:
        return current().report.health()  # of whoever is current by then

    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(health_server(address, health))
        yield


def stand(client: EtcdClient, voting: EtcdClient, owner: Owner, timing: Timing) -> Election:
    """For the one place of mirrors: `client` may write once that is ours. `voting` is for the election alone."""
    return Election(voting, client, owner, keys.KVSTOREMESH_LOCK + b"/", own_name(), timing.election)


class Mirror:
    """What the tasks of one mirror share. `election` is that of `client`; somebody runs it."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        client: EtcdClient,
        election: Election,
        timing: Timing,
        access: AgentAccess | None,
        settle: Callable[[], None],
    ) -> None:
        self._access, self._settle = access, settle
        self.settings, self.client, self.timing, self._folder = settings, client, timing, folder
        own = settings.cluster.name
        self.keeper = LeaseKeeper(client, timing.lease_ttl)
        self.brief = LeaseKeeper(client, max(timing.lease_ttl // 3, 1))
        self.cache = make_cache(own, client, self.keeper, self.brief)
        self.sink = MirrorSink(own, self._want)
        self.writer = CacheWriter(self.cache, self.sink, time_text, timing.audit)
        self.peers = Peers(
            folder, settings.cluster, self.sink, client_of, self._tables, _NOWHERE, self.sink.state.authorize
        )
        self.peers.terms = replace(self.peers.terms, settle=timing.settle, cache_ttl=timing.cache_ttl)
        self.peers.check_entry = self._refuse_own
        self.peers.on_files = self._keep_agent_files
        self.peers.id_of = lambda file: file.cluster_id or self._copied_id(file.name)
        self.sink.is_connected, self.sink.config_of = self._is_connected, self._config_of
        self.sink.limits_of = self._limits_of
        self.sink.on_listed = self.writer.wake
        propagation = Propagation()
        self.sink.on_change, self.sink.on_stamps = propagation.heard, propagation.stamped
        self.cache[SERVICES].target.on_written = propagation.copied
        self.sink.state.on_dirty.append(self.writer.wake)
        for keeper in (self.keeper, self.brief):
            keeper.on_lost = self._lose_leases
        self.election, self._before_us = election, election.on_lead
        election.on_lead = self._on_lead
        self._adopted, self._ready, self._departures = asyncio.Event(), asyncio.Event(), Departures(timing.wait)
        self._following = Following(client, self.cache)
        self._following.on_news, self._following.on_resumed = self.writer.wake, self.writer.hurry
        readiness = Readiness(timing.ready, timing.answered)
        self.report = Report(settings, election, self.peers, self.sink, self.writer, self._following, readiness)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Everything that has to run."""
        return [self.election.run(), *self.work()]

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """All of it but the election."""
        return [self._read(), self._lead(), *self._following.tasks()]

    async def _read(self) -> None:
        """All that decides what stands, in office or not."""
        await self._following.listed.wait()
        await self._adopt(authorize=True)
        self._adopted.set()
        async with asyncio.TaskGroup() as tasks:
            for each in (self.writer, self.peers):
                tasks.create_task(each.run())
            for work in (self._read_own(), self._look()):
                tasks.create_task(work)

    async def _lead(self) -> None:
        """All that writes."""
        await self.election.leading.wait()
        await self._adopted.wait()
        self.cache.lead()
        for keeper in (self.keeper, self.brief):  # canaries last: they are to end first
            await keeper.take_over()
        await self._adopt()
        self.writer.lead()
        async with asyncio.TaskGroup() as tasks:
            for work in (self.keeper.run(), self.brief.run(), self._beat(), self._report()):
                tasks.create_task(work)

    def _on_lead(self) -> None:
        self._before_us()
        self.writer.hurry()

    async def _adopt(self, *, authorize: bool = False) -> None:
        """Take what is in the cache for what stands."""
        try:
            files, _ = await asyncio.to_thread(read_peers, self._folder, self.settings.cluster.name)
        except Unavailable:  # which is said by who reads the peers
            files = {}
        if authorize:
            for file in files.values():
                self._authorize(file)
        await in_turns(adopt(self.sink, self.cache, files.keys()))

    def _authorize(self, file: PeerFile) -> None:
        """What the nodes of a cluster may want is known before they are heard of."""
        held = self.cache[CONFIGS].held(keys.cluster_config_key(file.name))
        with suppress(Invalid):
            if held is not None:
                number, most = cluster_config.decode(held).id, self.settings.cluster.max_clusters
                owner = Cluster(name=file.name, id=check_cluster_id(number, most), max_clusters=most)
                self.sink.state.authorize(Authority.of(owner, file.allowed, file.limits))

    # -- the own etcd --------------------------------------------------------------------------------------------------

    def _want(self, section: str, key: bytes, value: bytes | None) -> None:
        self.cache[section].want(key, value)
        self.writer.wake()

    def _lose_leases(self, lost: frozenset[bytes]) -> None:
        _LOG.warning("a lease was lost: %d keys are written again", len(lost))
        self.cache.lose_leases(lost)
        self.writer.wake()

    async def _read_own(self) -> None:
        """No peer gets what one of our own nodes has. Whoever waits for them waits for a while only."""
        reader = ClusterReader(self.settings.cluster.name, self.sink, self._own_client, _own_nodes, _admit_anyone)
        reader.on_complete = self._know_own
        asyncio.get_running_loop().call_later(self.timing.own, self._know_own)
        await reader.run()

    @asynccontextmanager
    async def _own_client(self) -> AsyncIterator[EtcdClient]:
        yield self.client

    def _know_own(self) -> None:
        self.sink.know_own()
        self.writer.wake()

    async def _beat(self) -> None:
        """In place of an API server, where there is none."""
        while self.timing.heartbeat:
            try:
                await self.client.put(keys.HEARTBEAT, time_text(), await self.keeper.lease_for(keys.HEARTBEAT))
            except ClusterMeshError as e:
                _LOG.debug("heartbeat: %s", e)
            await asyncio.sleep(self.timing.heartbeat)

    async def _report(self) -> None:
        """Not before all is there: after a restart it is what stands there."""
        await self._ready.wait()
        await keep_reported(
            self.client,
            keys.MIRROR,
            lambda: mirror_report.encode(self.report.told()),
            self.keeper.lease_for,
        )

    # -- peers ---------------------------------------------------------------------------------------------------------

    def _tables(self, cluster: str, config: ClusterConfig) -> Sequence[Table]:
        """Asked for when an attempt begins: the cluster may be read."""
        self.sink.configure(cluster, config)
        return copied_tables(cluster, config)

    async def _refuse_own(self, entry: KeyValue) -> None:
        """Else what was copied would be its own source. A lease is numbered at random: no two etcds have it there."""
        if entry.lease and await self.client.get(entry.key) == entry:
            where = ", ".join(self.settings.endpoints)
            raise Refused(f"its file's endpoints lead to this cluster's own etcd ({where}): name its own ones there")

    def _keep_agent_files(self) -> None:
        if self._access is not None:
            keep_agent_files(self.peers.files.values(), self._access)

    def _is_connected(self, cluster: str) -> bool:
        return cluster in self.peers.files

    def _limits_of(self, cluster: str) -> Limits:
        file = self.peers.files.get(cluster)
        return Limits() if file is None else file.limits

    def _copied_id(self, cluster: str) -> int | None:
        """The id under which what is in the cache was copied."""
        with suppress(Invalid):
            if (value := self.sink.configs.get(cluster)) is not None:
                return cluster_config.decode(value).id
        return None

    def _config_of(self, cluster: str) -> ClusterConfig | None:
        return self.peers.readers[cluster].config

    async def _look(self) -> None:
        """Take back what was copied of clusters that are not connected any more."""
        await self.peers.looked.wait()
        while True:
            # While the folder could not be read nobody knows who is connected.
            held = self.sink.clusters if self.peers.synced_once else frozenset[str]()
            connected = {name for name in held if self._is_connected(name) or not is_gone(self._folder / name)}
            leaving = self._departures.look(held, connected, time.monotonic())
            for cluster in leaving.retract:
                _LOG.info(
                    "cluster %s: disconnected, its copies go in %g s", cluster, self.timing.wait, extra=about(cluster)
                )
                self.sink.retract(cluster)
            for cluster in leaving.forget:
                _LOG.info("cluster %s: its copies go", cluster, extra=about(cluster))
                self.sink.forget(cluster)
            self.report.problems.look()
            if not self.report.waiting():
                self._ready.set()
                self._settle()
            await asyncio.sleep(_LOOK)


def _own_nodes(cluster: str, config: ClusterConfig) -> list[Table]:
    return [table for table in own_tables(cluster, config) if table.kind == NODES]


def _admit_anyone(_name: str, _config: ClusterConfig) -> None:
    pass
