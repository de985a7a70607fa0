"""Reads one cluster's etcd for ever, into a `Sink`: the shell around `ReaderBrain`, which has the rules.

Everything that is heard stands in one queue, in parts, and is taken in by one task: what a part asks for is done before
the next is heard. What Cilium's readers keep silent about is said by the brain: a missing config, canary or heartbeat,
a refused permission, an id taken twice. The same reader serves the own cluster.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence, Set
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Final, Protocol

from clustermesh.errors import ClusterMeshError, Invalid, first_of
from clustermesh.logs import about
from clustermesh.mesh import messages
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.brain import Phase, ReaderBrain
from clustermesh.mesh.messages import Command, Event, Terms
from clustermesh.mesh.pace import Budget, Pace
from clustermesh.mesh.session import Session
from clustermesh.mesh.tables import Table
from clustermesh.mesh.view import KINDS
from clustermesh.model import ClusterConfig
from clustermesh.store.backoff import Reconnect
from clustermesh.store.client import EtcdClient
from clustermesh.store.digest import read_digests
from clustermesh.store.follow import ALONE, QUIET, Changed, Follower, Interrupted, Listed, Newest, Nothing, Put, follow
from clustermesh.store.follower import MAX_HELD, HoldLimit
from clustermesh.store.lease_ends import find_lease_ends, find_renewals
from clustermesh.store.operations import DigestOf, KeyValue, Renewals
from clustermesh.wire import cluster_config, keys

_log = logging.getLogger(__name__)

_PART: Final = 64  # events taken in at once, some 2 ms
_PART_BYTES: Final = 1 << 16  # of values; one may be larger
_TURN: Final = 0.003  # seconds; after that others have a turn
_ALONE: Final = 900.0  # seconds; an idle watch is told every ten minutes by etcd that there is nothing to tell
_SHOWN: Final = 200  # characters of an error of ours


class Sink(Protocol):
    """Where a cluster's entries go. `revision` is that of the change, 0 when it comes from a full list."""

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int) -> None: ...
    def remove(self, cluster: str, kind: str, name: Any, revision: int) -> None: ...
    def refuse(self, cluster: str, what: str, why: str) -> None: ...
    def accept(self, cluster: str, what: str) -> None: ...
    def count_unnamed(self, cluster: str, kind: str, number: int) -> None: ...
    def listed(self, cluster: str, kind: str, *, whole: bool = True) -> None: ...
    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None: ...
    def names(self, cluster: str, kind: str) -> Set[Any]: ...


class ClusterReader:
    """One cluster's reader; its `brain` knows what is known. `run` never returns; cancel it to stop.
    `pace` is shared by readers that begin together. Parts are taken in one after the other, so that whatever else there
    is to do waits for one part only.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        connect: Callable[[], AbstractAsyncContextManager[EtcdClient]],
        tables: Callable[[str, ClusterConfig], Sequence[Table]],
        admit: Callable[[str, ClusterConfig], None],
        terms: Terms | None = None,
        *,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        epoch = time.time() - time.monotonic()
        self.brain = ReaderBrain(name, tables, partial(sink.names, name), terms or Terms(), epoch=epoch)
        self.on_complete: Callable[[], None] = lambda: None  # the session is, or is heard, and all of it is taken in
        self.check_entry: Callable[[KeyValue], Awaitable[None]] | None = None  # raises where not to be read
        self.budget: Budget | None = None  # with one, what costs more waits, in etcd; lists never do
        self.waited = 0.0  # seconds, for that budget
        self.cpu: Callable[[], float] = time.thread_time  # what the loop works; a stopped machine is nobody's fault
        self.clock: Callable[[], float] = time.monotonic  # of the budget
        self.sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._told = 0
        self._sink, self._connect, self._admit = sink, connect, admit
        self._pace = pace or Pace()
        self._spent = 0.0  # seconds that the loop worked on what is being taken in
        self._faults: dict[tuple[str, Any], str] = {}  # entries that the sink could not take, as they are shown

    @property
    def session(self) -> Session:
        return self.brain.session

    @property
    def config(self) -> ClusterConfig | None:
        return self.brain.config

    def restored(self, config: ClusterConfig) -> None:
        """The sink was filled from the last good state on disk."""
        self._hear(messages.Restored(config))
        self._tell()

    def removed(self) -> None:
        """The operator took the cluster out; `run` was cancelled."""
        self._hear(messages.Removed())
        self._tell()

    async def run(self) -> None:
        while True:
            # In a task of its own: one whose TaskGroup fails while it is cancelled forgets that it was, and one whose
            # TaskGroup has failed before looks cancelled ever after (Python 3.11). Here neither is so.
            after = await asyncio.create_task(self._attempt(), name=f"reading {self.name}")
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError
            await asyncio.sleep(after * random.uniform(0.5, 1.0))

    async def _attempt(self) -> float:
        """Read until that is to be begun again; seconds to wait before."""
        try:
            async with self._connect() as client, _following(client, self.brain.terms.limits) as following:
                return await self._read(client, following)
        except* ClusterMeshError as group:
            error = str(first_of(group))
        except* Exception as group:  # a bug of ours that this cluster has found must not end the others' readers
            _log.exception("cluster %s: reading it failed", self.name, extra=about(self.name))
            error = f"internal error, see the log: {first_of(group)!r}"[:_SHOWN]
        rest = await self._take_in(self._hear(messages.Broken(error)))
        return next((each.after for each in rest if isinstance(each, messages.Again)), 0.0)

    async def _read(self, client: EtcdClient, following: _Following) -> float:
        commands, listed = await self._take_in(self._hear(messages.Connected())), None
        try:
            while True:
                for command in commands:
                    match command:
                        case messages.Again(after):
                            return after
                        case messages.Ask():
                            following.start(messages.Ask, self._ask(client))
                        case messages.Attest():
                            following.start(messages.Attest, _attest(client, command))
                        case messages.Audit(wanted):
                            following.start(messages.Audit, _audit(client, wanted))
                        case messages.Follow(prefix, live):
                            listed = listed or await self._pace.begin()
                            following.follow(prefix, live)
                event = await following.next(self.brain.due())
                async with self._pace.turn:
                    commands = await self._take_in(self._hear(event))
                if listed and not self.brain.is_listing:
                    listed()
                    listed = None
                await self._pay(event)
        finally:
            if listed:
                listed()

    async def _pay(self, event: Event) -> None:
        spent, self._spent = self._spent, 0.0
        listed = isinstance(event, messages.Heard) and isinstance(event.item, Listed)
        if self.budget is not None and not listed and (wait := self.budget.spend(spent, self.clock())):
            self.waited += wait
            await self.sleep(wait)

    async def _take_in(self, commands: Sequence[Command]) -> Sequence[Command]:
        """Do what concerns the sink; the rest of `commands`."""
        began = self.cpu()
        rest = []
        for command in commands:
            if not self._apply(command):
                rest.append(command)
            elif (held := self.cpu() - began) > _TURN:
                self._spent += held
                await asyncio.sleep(0)
                began = self.cpu()
        self._spent += self.cpu() - began
        if len(commands) >= _PART // 2:
            await asyncio.sleep(0)
        self._tell()
        return rest

    def _tell(self) -> None:
        known = self.session.complete + self.session.heard
        if known > self._told:
            self._told = known
            self.on_complete()

    def _apply(self, command: Command) -> bool:
        """Whether `command` was for the sink."""
        name, sink = self.name, self._sink
        match command:
            case messages.Put():
                self._put(command)
            case messages.Remove(kind, entry, revision):
                sink.remove(name, kind, entry, revision)
                self._mend(kind, entry)
            case messages.Refuse(what, why):
                sink.refuse(name, what, why)
            case messages.Accept(what):
                sink.accept(name, what)
            case messages.Unnamed(kind, number):
                sink.count_unnamed(name, kind, number)
            case messages.Relisting(kind, whole):
                sink.listed(name, kind, whole=whole)
            case messages.Drain():
                sink.drain(name)
            case messages.Withdraw(kind):
                _log.warning("cluster %s: its etcd does not answer, and its %s are withdrawn", name, kind)
                sink.drain(name, [kind])
            case _:
                return False
        return True

    def _put(self, put: messages.Put) -> None:
        try:
            self._sink.put(self.name, put.kind, put.name, put.value, put.revision)
        except Exception as e:  # one entry that nobody thought of is that entry's problem
            fields = about(self.name, put.kind, put.name)
            _log.exception("cluster %s: %s %s cannot be taken in", self.name, put.kind, put.name, extra=fields)
            what = self._faults[put.kind, put.name] = f"{put.kind}/{put.name}"[:_SHOWN]
            self._sink.refuse(self.name, what, f"internal error: {e!r}"[:_SHOWN])
        else:
            self._mend(put.kind, put.name)

    def _mend(self, kind: str, name: Any) -> None:
        if self._faults and (what := self._faults.pop((kind, name), None)) is not None:
            self._sink.accept(self.name, what)

    async def _ask(self, client: EtcdClient) -> AsyncIterator[Event]:
        try:
            entry = await client.get(keys.cluster_config_key(self.name))
            config = None if entry is None else cluster_config.decode(entry.value)
        except ClusterMeshError as e:
            yield messages.Unread(str(e))
            return
        objection = ""
        try:
            if entry is not None and self.check_entry is not None:
                await self.check_entry(entry)
            accepted = self.brain.phase is Phase.READING and config == self.config  # in this attempt
            if config is not None and not accepted:
                self._admit(self.name, config)
        except Invalid as e:
            objection = str(e)
        except ClusterMeshError as e:
            yield messages.Unread(str(e))
            return
        yield messages.Configured(config, objection)

    def _hear(self, event: Event) -> Sequence[Command]:
        before, drift, fields = self.session, self.brain.drift.total(), about(self.name)
        began = self.cpu()
        commands = self.brain.hear(event, time.monotonic())
        self._spent += self.cpu() - began
        after = self.session
        if self.brain.drift.total() != drift:
            what = dict(self.brain.drift)
            _log.warning("cluster %s: not all was as its watches had told (%s)", self.name, what, extra=fields)
        if after.state is not before.state:
            _log.info("cluster %s: %s -> %s %s", self.name, before.state, after.state, after.error, extra=fields)
        if after.failures != before.failures:
            _log.warning("cluster %s: %s", self.name, after.error, extra=fields)
        return commands


class _Following:
    """The tasks that put what they hear into one queue. Of one that was replaced nothing more is heard."""

    def __init__(self, client: EtcdClient, limits: Limits, tasks: asyncio.TaskGroup) -> None:
        self._client, self._limits, self._tasks = client, limits, tasks
        self._reconnect, self._hold_limit = Reconnect(), HoldLimit(min(MAX_HELD, limits.listing_bytes))
        self._inbox: asyncio.Queue[tuple[object, Hashable, Event]] = asyncio.Queue(1)
        self._running: dict[Hashable, asyncio.Task[None]] = {}

    def follow(self, prefix: bytes, live: bool) -> None:
        self.start(prefix, self._heard(prefix, live))

    def start(self, about: Hashable, events: AsyncIterator[Event]) -> None:
        """Hear `events` from now on, instead of those that were started about the same: a prefix, or a question."""
        if (earlier := self._running.get(about)) is not None:
            earlier.cancel()
        self._running[about] = self._tasks.create_task(self._forward(about, events))

    async def next(self, due: float | None) -> Event:
        """What is heard next; Tick when it is `due`."""
        while due is None or due > time.monotonic():
            try:
                async with asyncio.timeout_at(due):
                    teller, about, event = await self._inbox.get()
            except TimeoutError:
                break
            if self._running[about] is teller:
                return event
        return messages.Tick()

    def stop(self) -> None:
        for task in self._running.values():
            task.cancel()

    async def _forward(self, about: Hashable, events: AsyncIterator[Event]) -> None:
        async with aclosing(events) as heard:  # type: ignore[type-var]
            async for event in heard:
                await self._inbox.put((asyncio.current_task(), about, event))

    async def _heard(self, prefix: bytes, live: bool) -> AsyncIterator[Event]:
        most = self._limits.listing_bytes
        follower = Follower(Nothing() if live else Newest(), self._hold_limit)
        items = follow(
            self._client,
            prefix,
            follower=follower,
            quiet=QUIET if live else math.inf,  # one that asks is enough
            alone=ALONE if live else _ALONE * random.uniform(0.8, 1.0),  # else all ask at once
            most_bytes=most,
            reconnect=self._reconnect,
        )
        try:
            async with aclosing(items):
                async for item in items:
                    for part in parts(item):
                        yield messages.Heard(prefix, part)
        finally:
            follower.drop_held()


async def _attest(client: EtcdClient, wanted: messages.Attest) -> AsyncIterator[Event]:
    ends, renewals = frozenset[int](), Renewals()
    try:
        if wanted.deletions:
            ends = await find_lease_ends(client, wanted.deletions, wanted.living)
        if wanted.leases:
            renewals = await find_renewals(client, wanted.leases)
        revision, created = await client.created(wanted.keys)
    except ClusterMeshError:
        yield messages.Attested(None)
    else:
        yield messages.Attested(created, revision, ends, renewals)


async def _audit(client: EtcdClient, wanted: Sequence[DigestOf]) -> AsyncIterator[Event]:
    try:
        digests = await read_digests(client, wanted)
    except ClusterMeshError:
        yield messages.Audited(None)
    else:
        yield messages.Audited({each.prefix: digest for each, digest in zip(wanted, digests, strict=True)})


@asynccontextmanager
async def _following(client: EtcdClient, limits: Limits) -> AsyncIterator[_Following]:
    async with asyncio.TaskGroup() as tasks:
        following = _Following(client, limits, tasks)
        yield following
        following.stop()


def parts(item: Listed | Changed | Interrupted) -> Iterator[Listed | Changed | Interrupted]:
    """`item`, cut so that taking in a part holds nobody up."""
    if isinstance(item, Interrupted) or not item.events:
        yield item
        return
    part, size, left = list[Any](), 0, len(item.events)
    for event in item.events:
        part.append(event)
        size += len(event.kv.value) if isinstance(event, Put) else 0
        left -= 1
        if left and len(part) < _PART and size < _PART_BYTES:
            continue
        if isinstance(item, Listed):
            yield Listed(part, item.revision, more=item.more or left > 0)
        else:
            yield Changed(part, item.revision, more=left > 0)
        part, size = [], 0
