"""Reads one cluster's etcd for ever: its configuration, heartbeat and canaries, then every resource, into a `Sink`.

The order is Cilium's reader's (cluster config first; a resource's watch starts when its canary is there). What Cilium's
readers keep silent about is said here: a missing config, canary or heartbeat, a refused permission, an id taken twice.
The same reader serves the own cluster, with the resources of this project's own prefix added.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, Protocol
from zlib import crc32

from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable, first_of
from clustermesh.mesh.session import Event, Session, State, advance
from clustermesh.mesh.state import KINDS
from clustermesh.mesh.tables import Table
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follow import Changed, Deleted, Interrupted, Listed, Put, follow
from clustermesh.wire import cluster_config, keys

_log = logging.getLogger(__name__)

HEARTBEAT_TIMEOUT = 120.0  # seconds; a writer beats every 60 (wire format of the heartbeat key)
_RECHECK = 30.0
_BACKOFF = (0.2, 15.0)
_SHOWN = 200  # characters of a refused key: it may have a million, and goes into status


class Sink(Protocol):
    """Where a cluster's entries go. `revision` is that of the change, 0 when it comes from a full list."""

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None: ...
    def remove(self, cluster: str, kind: str, name: Any, revision: int) -> None: ...
    def refuse(self, cluster: str, what: str, why: str) -> None: ...
    def accept(self, cluster: str, what: str) -> None: ...
    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None: ...
    def names(self, cluster: str, kind: str) -> Set[Any]: ...


class _Changed(Exception):
    """The cluster's configuration or history is not what it was: read everything again, from the configuration on.

    Until its canaries say that it is whole again, nothing that is held is given up for it.
    """


class ClusterReader:
    """One cluster's reader and what is known of its session. `run` never returns; cancel it to stop.

    `keep_when_silent`: while the cluster's API server does not beat, what disappears was not its decision (its leases
    ended) and is kept. So the own cluster's services outlive its API server, as they outlive its etcd.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        connect: Callable[[], AbstractAsyncContextManager[EtcdClient]],
        resources: Callable[[str, ClusterConfig], Sequence[Table]],
        admit: Callable[[str, ClusterConfig], None],
        *,
        keep_when_silent: bool = False,
    ) -> None:
        self.name = name
        self.session = Session(since=time.time())
        self.config: ClusterConfig | None = None
        self.behind: dict[str, str] = {}  # resource -> why it is not followed now
        self._sink, self._connect, self._resources, self._admit = sink, connect, resources, admit
        self._last_heartbeat = 0.0
        self._keep_when_silent, self._withheld = keep_when_silent, False

    def restored(self, config: ClusterConfig) -> None:
        """The sink was filled from the last good state on disk."""
        self.config = config
        self._advance(Event.RESTORED)

    def removed(self) -> None:
        """The operator took the cluster out; `run` was cancelled."""
        self.behind = {}
        self._advance(Event.REMOVED)

    async def run(self) -> None:
        delay = _BACKOFF[0]
        while True:
            # In a task of its own: one whose TaskGroup fails while it is cancelled forgets that it was, and one whose
            # TaskGroup has failed before looks cancelled ever after (Python 3.11). Here neither is so.
            at_once = await asyncio.create_task(self._attempt(), name=f"reading {self.name}")
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError
            delay = _BACKOFF[0] if at_once else delay
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACKOFF[1])

    async def _attempt(self) -> bool:
        """Read until something fails; True where it is to be read again at once."""
        at_once = False
        try:
            async with self._connect() as client:
                await self._read(client)
        except* _Changed:
            at_once = True
        except* ClusterMeshError as group:
            self._lost(str(first_of(group)))
        except* Exception as group:  # a bug of ours that this cluster has found must not end the others' readers
            _log.exception("cluster %s: reading it failed", self.name)
            self._lost(f"internal error, see the log: {first_of(group)!r}"[:_SHOWN])
        return at_once

    async def _read(self, client: EtcdClient) -> None:
        config = await self._configure(client)
        cluster = Cluster(name=self.name, id=config.id, max_clusters=config.max_connected_clusters or 255)
        resources = self._resources(self.name, config)
        self.behind = {r.kind: "waiting for its list" for r in resources if r.required}
        canaries = [r.canary for r in resources if r.canary is not None] if config.synced_canaries else []
        seen = {canary: asyncio.Event() for canary in canaries}
        self._last_heartbeat, self._withheld = time.monotonic(), False
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeat(client))
            tasks.create_task(self._recheck(client, config))
            for prefix in {_parent(canary) for canary in seen}:
                tasks.create_task(self._canaries(client, prefix, seen))
            for resource in resources:
                gate = seen.get(resource.canary or b"")
                tasks.create_task(self._resource(client, resource, cluster, gate))

    async def _configure(self, client: EtcdClient) -> ClusterConfig:
        config = await self._fetch_config(client)
        if self.config is not None and config.id != self.config.id:
            self._sink.drain(self.name)
            self._advance(Event.REFUSED, f"its id was {self.config.id} and is {config.id} now: all is read anew")
        try:
            self._admit(self.name, config)
        except Invalid as e:
            self._sink.drain(self.name)
            self.config = None
            self._advance(Event.REFUSED, str(e))
            raise Refused(str(e)) from e
        self.config = config
        self._advance(Event.CONFIGURED)
        return config

    async def _fetch_config(self, client: EtcdClient) -> ClusterConfig:
        entry = await client.get(keys.cluster_config_key(self.name))
        if entry is None:
            raise Unavailable(
                f"cluster {self.name} has no key cilium/cluster-config/{self.name}: is its API server up?"
            )
        return cluster_config.decode(entry.value)

    async def _recheck(self, client: EtcdClient, config: ClusterConfig) -> None:
        """The configuration is not watched (a reader may be granted that one key only): read it again now and then."""
        while True:
            await asyncio.sleep(_RECHECK)
            try:
                current = await self._fetch_config(client)
            except ClusterMeshError:
                continue  # whatever is wrong with the connection, the streams report
            if current != config:
                self._lost("its configuration changed: everything is read again")
                raise _Changed

    async def _heartbeat(self, client: EtcdClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_heartbeat(client))
            while True:
                await asyncio.sleep(_RECHECK / 2)
                if self._is_silent():
                    why = f"no heartbeat for more than {HEARTBEAT_TIMEOUT:g} s: its API server does not write"
                    self._fall_behind("heartbeat", why)

    async def _watch_heartbeat(self, client: EtcdClient) -> None:
        async with aclosing(follow(client, keys.HEARTBEAT)) as items:
            async for item in items:
                if isinstance(item, Interrupted) or not any(isinstance(event, Put) for event in item.events):
                    continue
                self._last_heartbeat = time.monotonic()
                self._caught_up("heartbeat")
                if self._withheld:
                    raise _Changed

    def _is_silent(self) -> bool:
        return time.monotonic() - self._last_heartbeat > HEARTBEAT_TIMEOUT

    async def _canaries(self, client: EtcdClient, prefix: bytes, seen: dict[bytes, asyncio.Event]) -> None:
        async with aclosing(follow(client, prefix)) as items:
            async for item in items:
                for event in () if isinstance(item, Interrupted) else item.events:
                    if isinstance(event, Put) and (canary := seen.get(event.kv.key)):
                        canary.set()

    async def _resource(
        self, client: EtcdClient, resource: Table, cluster: Cluster, gate: asyncio.Event | None
    ) -> None:
        if gate is not None and not gate.is_set():
            if resource.required:
                self.behind[resource.kind] = f"waiting for its canary {resource.canary!r}"
            await gate.wait()
        whole = False  # until the first list is in, what the sink holds may be from before this reader
        async with aclosing(follow(client, resource.prefix)) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    if resource.required:
                        self._fall_behind(resource.kind, str(item.error))
                    if isinstance(item.error, Compacted | Replaced):
                        raise _Changed  # the list that follows may be that of an etcd which is being filled
                    continue
                self._take(resource, cluster, item)
                if not whole:
                    self._forget_unlisted(resource, item)
                    whole = True
                self._caught_up(resource.kind)

    def _take(self, resource: Table, cluster: Cluster, item: Listed | Changed) -> None:
        revision = item.revision if isinstance(item, Changed) else 0
        for event in () if self.session.state is State.REMOVED else item.events:
            if isinstance(event, Deleted):
                self._remove(resource, event.key, revision)
                continue
            key = event.kv.key
            try:
                name, value = resource.name_of(key), resource.decode(key, event.kv.value, cluster)
                self._sink.put(self.name, resource.kind, name, value, event.kv.mod_revision if revision else 0)
                self._sink.accept(self.name, _shown(key))
            except Invalid as e:
                self._sink.refuse(self.name, _shown(key), str(e)[: 5 * _SHOWN])

    def _remove(self, resource: Table, key: bytes, revision: int) -> None:
        if self._keep_when_silent and self._is_silent():
            self._withheld = True
            return
        self._sink.accept(self.name, _shown(key))
        with suppress(Invalid):
            self._sink.remove(self.name, resource.kind, resource.name_of(key), revision)

    def _forget_unlisted(self, resource: Table, first: Listed | Changed) -> None:
        """The first list is the whole table: what is held beside it is gone."""
        listed, shown = set(), set()
        for event in first.events:
            if isinstance(event, Put):
                shown.add(_shown(event.kv.key))
                with suppress(Invalid):
                    listed.add(resource.name_of(event.kv.key))
        for name in self._sink.names(self.name, resource.kind) - listed:
            self._sink.remove(self.name, resource.kind, name, 0)
        for what in self._sink.names(self.name, "refused") - shown:
            if what.startswith(resource.prefix.decode()):
                self._sink.accept(self.name, what)

    def _fall_behind(self, resource: str, why: str) -> None:
        if self.behind.get(resource) == why and self.session.error:
            return  # still: each of its tables fails at each attempt
        self.behind[resource] = why
        self._lost(f"{resource}: {why}")

    def _caught_up(self, resource: str) -> None:
        self.behind.pop(resource, None)
        if not self.behind and self.session.state is not State.FRESH:
            self._advance(Event.LISTED)

    def _lost(self, error: str) -> None:
        if error != self.session.error or self.session.state is State.FRESH:
            _log.warning("cluster %s: %s", self.name, error)
            self._advance(Event.LOST, error)

    def _advance(self, event: Event, error: str = "") -> None:
        before = self.session.state
        if before is State.REMOVED:
            return  # what a reader that is being cancelled still finds does not matter any more
        self.session = advance(self.session, event, time.time(), error)
        if self.session.state is not before:
            _log.info("cluster %s: %s -> %s %s", self.name, before, self.session.state, error)


def _parent(canary: bytes) -> bytes:
    """The prefix under which a canary is watched: cilium/synced/<cluster>/ or this project's own."""
    parts = canary.split(b"/")
    return b"/".join(parts[:3]) + b"/"


def _shown(key: bytes) -> str:
    """How a refused key is called in status."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({crc32(key):08x})"
