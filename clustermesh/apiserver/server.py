"""The API server's wiring: etcd on one side, the source on the other, and the tasks in between.

Of all API servers of one etcd one leads (store/election.py); the others list, follow their source, and wait. Order for
who leads: users and roles; what etcd holds is listed, its leases are adopted; cluster config and heartbeat; data;
canaries. Stopping revokes nothing but the lead: keys live on until their leases end, and whoever comes next takes them
over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final

from msgspec import Struct

from clustermesh.apiserver.adopt import adopt_identities, adopt_keys, exported
from clustermesh.apiserver.agents import AgentRecords
from clustermesh.apiserver.collector import few_collections
from clustermesh.apiserver.health import Health, Scope, health_server
from clustermesh.apiserver.heard import HeardSource, heard
from clustermesh.apiserver.identities import GRACE, Allocator
from clustermesh.apiserver.keys_target import WRITES
from clustermesh.apiserver.ledger import Ledger
from clustermesh.apiserver.listening import Listening
from clustermesh.apiserver.problems import ProblemLog, Say
from clustermesh.apiserver.publish import Publisher, Updates
from clustermesh.apiserver.report import keep_reported
from clustermesh.apiserver.resources import (
    ABOUT,
    CANARIES,
    DATA,
    canary_keys,
    config_value,
    make_ledger,
)
from clustermesh.apiserver.terms import own_name, serve_terms, time_text
from clustermesh.apiserver.users import Users
from clustermesh.apiserver.writer import Writer
from clustermesh.own_cluster import Settings, of_folder
from clustermesh.pace import Load
from clustermesh.sources.folder import FolderSource
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.source import Source
from clustermesh.standalone.context import Context
from clustermesh.store import election
from clustermesh.store.client import EtcdClient
from clustermesh.store.election import Election
from clustermesh.store.follow import Changed, Listed
from clustermesh.store.lease import DEFAULT_TTL, LeaseKeeper
from clustermesh.wire import api_server_report, keys
from clustermesh.wire.api_server_report import ApiServerReport
from clustermesh.wire.kinds import IDENTITIES, LOCAL_SERVICES, NODES, SERVICES

_LOG: Final = logging.getLogger(__name__)
_SOON: Final = 2.0  # seconds between two beats at least
_UNHEARD: Final = 10.0  # seconds after which it is said that the source is not heard
_AFTER: Final = 0.5  # seconds from being ready to the collector's look
_AT_ONCE: Final = 250  # services, and as many endpoints, that are encoded before others have their turn: some 10 ms


class Timing(Struct, frozen=True, kw_only=True):
    """Seconds, but for `grace`: nanoseconds that an identity is kept after its last use.

    `records` is how long agents have to say their keys again to an etcd that was found empty, before Nodes without one
    count as complete. `election` is how long a leader that dies or hangs leads on, `writes` how
    many transactions etcd has before it at once, and is asked for in a second.
    """

    lease_ttl: int = DEFAULT_TTL
    heartbeat: float = 60.0
    audit: float = 300.0
    tick: float = 30.0
    grace: int = GRACE
    records: float = 30.0
    election: int = election.TTL
    writes: Load = WRITES


_DEFAULT_TIMING: Final = Timing()
Duty = Callable[[EtcdClient, Say], Coroutine[Any, Any, None]]
"""Something else that one process of a cluster does, for ever: whoever leads. It is given the own etcd, and says what
is wrong."""


async def run_folder(context: Context, http: str, timing: Timing = _DEFAULT_TIMING) -> None:
    """`run` for a cluster that is a folder."""
    await run(of_folder(context), FolderSource(context.manifests, context.cluster), [http], timing)


async def run(
    settings: Settings,
    source: Source,
    http: Sequence[str],
    timing: Timing = _DEFAULT_TIMING,
    duties: Sequence[Duty] = (),
) -> None:
    """Publish what `source` has until SIGTERM or SIGINT, or until cancelled. `http` is where health is served.

    Invalid or Refused for an address that cannot be listened on. All else that is missing is waited for.
    """
    async with settings.client() as client, settings.client(timing.election) as voting, heard(source) as told:
        with few_collections() as settle:
            await serve_terms(
                lambda: ApiServer(settings, told, client, voting, timing, settle, duties),
                lambda current: _serve_health(http, lambda: current().health()),
            )
    _LOG.info("stopped; keys stay until their leases end")


@contextmanager
def _serve_health(addresses: Sequence[str], health: Callable[[], Health]) -> Iterator[None]:
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(health_server(address, health))
        yield


class ApiServer:
    """One cluster's publisher: what its tasks share. `voting` is a client of the same etcd for the election alone."""

    def __init__(
        self,
        settings: Settings,
        told: HeardSource,
        client: EtcdClient,
        voting: EtcdClient,
        timing: Timing,
        settle: Callable[[], None],
        duties: Sequence[Duty] = (),
    ) -> None:
        self._duties = duties
        self._wrong = dict[int, Sequence[str]]()  # what each of these says
        self._settle, self._etcd = settle, ", ".join(settings.endpoints)
        self.settings, self.source, self.client, self.timing = settings, told.source, client, timing
        self._told = told
        told.start_over()
        self.cluster = settings.cluster
        self.keeper = LeaseKeeper(client, timing.lease_ttl)
        self.ledger: Ledger = make_ledger(self.cluster, client, self.keeper, timing.writes)
        self.allocator = Allocator(self.cluster, timing.grace)
        ledger = self.ledger
        self.publisher = Publisher(self.cluster, self.allocator, ledger.is_inherited, ledger.last_good)
        self.writer = Writer(self.ledger, self._want_canaries, self._settle_soon, timing.audit)
        self.problems = ProblemLog(self._list_problems, _LOG)
        self.users = Users(client, settings, self.problems.wake)
        self.agents = AgentRecords(client, lambda node: node in self.source.snapshot.nodes)
        self.keeper.on_lost = self._lose_leases
        self.ownership = settings.ownership(client)
        place = keys.API_SERVER_LEADERS
        self.election = Election(voting, client, self.ownership, place, own_name(), timing.election)
        self.election.on_lead = self.writer.hurry
        self.listening = Listening(client, self._etcd, self.ledger, self.writer, self._settle)
        self._may_beat, self._deleting, self._in_charge = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._exports: bool | None = None  # as the cluster config is to say
        self._published = False
        self._recalled = False  # which numbers identities had
        self._pruned = False

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Everything that has to run."""
        return [
            self.election.run(),
            self._stand_by(),
            self._lead(),
            self._told.run(),
            self.problems.run(),
            # A list in mid-life may come from an etcd that was started empty, open to everybody.
            *self.listening.tasks(self.cluster, self._take_records, again=self.users.check),
        ]

    async def _stand_by(self) -> None:
        """An etcd with a leader has its users."""
        await self.election.following.wait()
        _LOG.info("standing by: %s leads", self.election.leader)
        self.listening.may_list.set()

    async def _lead(self) -> None:
        """All that writes."""
        await self.election.leading.wait()
        async with asyncio.TaskGroup() as tasks:
            work = (self.keeper, self.users, self.agents, self.writer)
            for coroutine in (*(each.run() for each in work), self._report(), self._beat(), self._tick()):
                tasks.create_task(coroutine)
            await self.users.enabled.wait()
            for number, duty in enumerate(self._duties):
                tasks.create_task(duty(self.client, partial(self._take_wrong, number)))
            self.listening.may_list.set()
            await self.listening.listed.wait()
            await self.keeper.adopt(self.ledger.leases())
            await self.keeper.part(keys.HEARTBEAT)  # whose lease it has tells who wrote the canaries
            self._may_beat.set()
            await self._told.begun.wait()
            self._take_charge()
            await self._publish()

    def _take_charge(self) -> None:
        """Go on where another one left off."""
        if self.source.has_agents and not self.ledger[NODES].found():
            self.agents.expect(self.timing.records, self.writer.wake)
        self._recalled = bool(self.ledger[IDENTITIES].found())
        self.publisher.of_agents = self.source.has_agents
        if self.source.has_agents:  # else numbers are allotted, and keys made, elsewhere: the source knows them all
            found, now = self.ledger[IDENTITIES].found(), time.monotonic_ns()
            for key, value in adopt_identities(self.allocator, found, self.cluster, now).items():
                self.ledger[IDENTITIES].want(key, value)
            adopt_keys(self.publisher, self.ledger[NODES].found(), self.cluster)
        self._in_charge.set()

    # -- etcd -> ledger ------------------------------------------------------------------------------------------------

    def _take_records(self, item: Listed | Changed) -> None:
        snapshot = self.source.snapshot if self._in_charge.is_set() else Snapshot()  # until then it is noted only
        for node, record in self.agents.take(item):
            self._want(self.publisher.take_record(snapshot, node, record, time.monotonic_ns()))
        self.problems.wake()

    def _settle_soon(self) -> None:
        """It looks at all there is, once: whoever waits for this to be ready does not wait for that."""
        asyncio.get_running_loop().call_later(_AFTER, self._settle)

    def _lose_leases(self, lost: frozenset[bytes]) -> None:
        _LOG.warning("a lease was lost: %d keys are written again", len(lost))
        self.ledger.lose_leases(lost)
        self.writer.wake()

    # -- source -> ledger ----------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """What the source has told so far, and whatever it tells. For ever."""
        while True:
            self._apply(await self._told.take(_AT_ONCE))
            await asyncio.sleep(0)

    def _apply(self, change: Change) -> None:
        self._want(self.publisher.apply(self.source.snapshot, change, time.monotonic_ns()))
        self.writer.open_data()
        if not change.more:
            self._note_whole()
        self.writer.wake()

    def _note_whole(self) -> None:
        """All that the source has told is wanted now."""
        if not self._pruned:
            self._prune(self.source.doubted)
        self._published = True
        self._want_config()
        self.writer.open_canaries()
        self.problems.wake()

    def _prune(self, doubted: Set[str]) -> None:
        """What was found and nothing speaks for goes, but for what something unread may speak for."""
        if not {SERVICES, LOCAL_SERVICES} & doubted:
            self._want(self.publisher.believe(self.source.snapshot))
        self.ledger.prune(set(DATA if doubted else self.ledger.sections) - doubted)
        if not doubted:
            self.writer.open_audit()
            self._pruned = True

    def _want(self, updates: Updates) -> None:
        """Deletions go with a sign of life: a reader that has heard none yet takes them for a lease that ended."""
        gone = (key for entries in updates.values() for key, value in entries.items() if value is None)
        if any(self.ledger.held(key) is not None for key in gone):
            self._deleting.set()
        self.ledger.want(updates)

    # -- clock -> ledger -----------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        await self._may_beat.wait()
        self._want_config()
        while True:
            self._deleting.clear()
            self.ledger[ABOUT].want(keys.HEARTBEAT, time_text())
            self.writer.wake()
            await asyncio.sleep(soon := min(_SOON, self.timing.heartbeat))
            with suppress(TimeoutError):
                async with asyncio.timeout(self.timing.heartbeat - soon):
                    await self._deleting.wait()

    def _want_config(self) -> None:
        """While the source does not know yet whether services are exported, it is as before."""
        key = keys.cluster_config_key(self.cluster.name)
        exports = self.source.exports
        if exports is None:
            exports = self._exports or exported(self.ledger.held(key))
        if exports != self._exports:
            self._exports = exports
            self.ledger[ABOUT].want(key, config_value(self.cluster, exports))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.timing.tick)
            if self._published:
                self._want(self.publisher.tick(self.source.snapshot, time.monotonic_ns()))
                self.writer.wake()
            self.problems.wake()

    def _keyless(self) -> list[str]:
        """The Nodes whose keys are waited for."""
        nodes = self.source.snapshot.nodes if self.agents.expected else {}
        return [name for name in sorted(nodes) if not self.publisher.encrypts(name)]

    def _want_canaries(self) -> bool:
        """Each once per process; after that the same text is put back wherever it gets lost. True for all of them.

        What agents say changes nodes, services for agents alone, and the numbers of identities where those were lost:
        they wait for what agents are expected to say.
        """
        canaries = self.ledger[CANARIES]
        missing = {key for key in canary_keys(self.cluster) if key not in canaries.tracker.desired}
        unsaid = {keys.canary_key(self.cluster.name, "nodes"), keys.LOCAL_SERVICES_SYNCED}
        if not self._recalled:
            unsaid |= {keys.canary_key(self.cluster.name, directory) for directory in ("identities", "ip")}
        waiting = unsaid & missing if self._keyless() or self._recall() else set()
        for key in missing - waiting:
            canaries.want(key, canaries.held(key) or time_text())
            self._join_beat(key)
        return not waiting

    def _recall(self) -> bool:
        """Once, before anybody was told of any number; whether something is to be written for that."""
        if self._recalled:
            return False
        self._recalled = True
        updates = self.publisher.recall(self.source.snapshot, time.monotonic_ns())
        self._want(updates)
        self.writer.wake()
        return bool(updates)

    def _join_beat(self, canary: bytes) -> None:
        """One lease for the canaries and the beat says that who beats has written what is there."""
        if self.ledger[CANARIES].is_kept(canary):
            if self.keeper.join(keys.HEARTBEAT, canary):
                self._deleting.set()  # beat again, soon
        else:
            self.keeper.join(canary, keys.HEARTBEAT)

    # -- what there is to say ------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Not before there is something to say: after a restart it is what stands there."""
        await self.users.enabled.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_UNHEARD):
                await self._told.begun.wait()
        self.problems.wake()  # why it was not heard, perhaps
        await keep_reported(
            self.client,
            keys.API_SERVER,
            lambda: api_server_report.encode(ApiServerReport(self.problems.found, self.source.about)),
        )

    def _take_wrong(self, duty: int, problems: Sequence[str]) -> None:
        self._wrong[duty] = problems
        self.problems.wake()

    def _list_problems(self) -> list[str]:
        found = [str(problem) for problem in self.source.problems()]
        if self._published and not self._pruned:
            kept = ", ".join(sorted(self.source.doubted))
            found.append(f"{kept}: what was published before and is not there any more stays until all can be read")
        found += [f"{key.decode()}: {sentence}" for key, sentence in sorted(self.publisher.problems.items())]
        found += [f"agent record: {sentence}" for _, sentence in sorted(self.agents.problems.items())]
        found += [f"users of etcd: {self.users.open}"] if self.users.open else []
        found += [problem for problems in self._wrong.values() for problem in problems]
        name = self.settings.users_file.name if self.settings.users_file else "users"
        return found + [f"{name}: {sentence}" for sentence in self.users.problems]

    def _list_waiting(self) -> list[str]:
        waiting = [] if self.users.error is None else [f"users of etcd: {self.users.error}"]
        waiting += sorted({f"etcd: {reason}" for reason in self.listening.interrupted.values()})
        if self.election.waiting:
            waiting.append(self.election.waiting)
        elif not self.listening.listed.is_set():
            waiting.append(f"etcd at {self._etcd} has not been read yet")
        elif not self._told.begun.is_set():
            why = [problem.sentence for problem in self.source.problems()]
            waiting.append(": ".join(["the source has not been read yet", *why[:1]]))
        elif not self.election.leading.is_set():
            pass  # standing by
        elif not self.writer.synced and (keyless := self._keyless()):
            waiting.append(f"etcd was found empty: the agents of {', '.join(keyless[:5])} have not said their keys yet")
        elif not self.writer.synced:
            waiting.append("not everything is published yet")
        return waiting

    def _count_objects(self) -> dict[str, int]:
        found = self.source.snapshot
        shared = sum(local.is_global for local in found.services.values())
        counts = {"nodes": len(found.nodes), "endpoints": len(found.endpoints), "identities": len(found.identities)}
        return counts | {"services": len(found.services), "global_services": shared, "exports": len(found.exports)}

    def health(self) -> Health:
        """Now; for the HTTP server, which asks for it in the event loop."""
        trackers = {name: section.tracker for name, section in self.ledger.sections.items()}
        return Health(
            cluster=self.cluster.name,
            leading=self.election.leading.is_set(),
            waiting=tuple(self._list_waiting()),
            problems=self.problems.found,
            scopes={
                name: Scope(keys=len(t.actual), pending=t.pending_size, drift=t.drift, errors=t.failures)
                for name, t in trackers.items()
            },
            synced=self.writer.synced,
            objects=self._count_objects,
            drift=self.source.drift,
            identities=len(self.allocator),
            leases=len(self.keeper.leases),
            source=self.source.about,
        )
