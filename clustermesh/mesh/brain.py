"""The brain of a cluster's reader: what is heard of the cluster, and what that does to what is known of it. Pure.

The rules:

1. An attempt asks for the cluster's configuration (ASKING), then follows its heartbeat, its canaries and its tables
   (READING). Whatever fails, what is known is kept; the cluster is stale, and says why.
2. A configuration that may not be used here evicts the cluster; under another id than before, what was known is not
   this cluster's any more. It is asked for again every RECHECK seconds, and when a canary is written (by a writer that
   has just begun): a change begins a new attempt, that it cannot be read just then means nothing.
3. A table is listed once its canary is there. What is listed or changed is taken in as it comes.
4. A beat is a change of the heartbeat that was heard as it happened; to find the key there proves nothing. The writer
   lives until `silence` seconds after its last beat, or until its heartbeat vanishes, be it while nobody heard; one
   that beats with another lease is another writer.
5. The writer is proven while it lives, the canary stands, and the one that beats wrote it (their lease is one, and the
   heartbeat has not vanished since) or has been beating for `settle` seconds: one that comes back beats first and
   writes its entries after. What vanishes since then, by a deletion or from a list, is believed if heartbeat and canary
   did not vanish before or with it (somebody deleted all keys). That one reads in etcd: each watch has its own time.
   For a list they are older than one that had it, and that nobody doubted, or than the beat of a writer that has been
   beating for so long; or the canary is no older than the heartbeat.
   So it does whether an entry has moved to the twin of its table.
   What died with a lease that is not the heartbeat's, or may have, for etcd has forgotten it, is kept until a beat
   `settle` seconds later; then it is listed, and of no list before is it believed that it is gone. What a list does not
   have may have died so, unless each lease of that table has a key in the list; before the first list none is known.
   Of copies no beat is waited for: whoever beats there is not who copies. What a mirror deletes is believed while its
   canary stands; what died with a lease once the mirror has outlived that: it has renewed the canary's lease, or
   written the canary anew, and `settle` seconds later renewed it once more. That is asked for every RECHECK seconds
   while something is doubted.
6. A heartbeat or a canary that vanishes makes the cluster stale. What vanished otherwise (leases end, an etcd is being
   filled, a watch tells of old times) is kept. Once the writer is proven its table is listed again, and that list is
   believed.
7. A compaction or another history (an etcd that was emptied or restored) begins a new attempt: its tables wait for
   their canaries, and its first beat is yet to come. So does having slept: what waits to be heard is old. Attempts
   that end soon begin again later and later.
8. A table that is cut off, refused (our access was revoked) or too large is behind; nothing of it is given up.
9. A value above the limit is not even decoded. It, and what cannot be decoded, is refused with the reason, and what
   was good before stays; it is accepted once it is right, or gone.
10. Of a table that is too large for its limits the rest is dropped. Once there is room it is listed again, but every
    RELIST seconds at most.
11. Every `audit` seconds, or a little sooner, etcd is asked for a digest of each table. Where that is not what was
    heard, the table is listed again, and how much differed is counted. Where a canary is waited for, it is looked for.
12. What all readers of an etcd hear in one instant, none acts on then: a list that a beat or a new canary asks for
    begins within SPREAD seconds.
13. Where etcd has answered nothing for `cache_ttl` seconds, if that is not 0, the cluster's services are withdrawn,
    and what belongs to them; that is listed again once it answers. All else of it stays.
14. Once the cluster was removed, nothing that is still heard matters.

`_table` says who takes which event in which phase; a pair that is not in it is a bug and raises.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from enum import Enum, auto
from typing import Any, Final

from msgspec.structs import replace

from clustermesh.mesh import messages
from clustermesh.mesh.messages import Again, Ask, Command, Drain, Follow, Heard, Terms
from clustermesh.mesh.reading import MOST_ENDS, Reading
from clustermesh.mesh.session import Session, State
from clustermesh.mesh.tables import Table
from clustermesh.mesh.writer import Canary, Proof, Writer
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.backoff import SPREAD
from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed, Put
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys
from clustermesh.wire.kinds import ENDPOINT_SLICES, SERVICE_EXPORTS, SERVICES

RECHECK: Final = 30.0
RELIST: Final = 300.0  # seconds: a cluster at its limit that comes and goes costs a list of a table so often
ASLEEP: Final = 60.0  # seconds that a Tick is late
OF_SERVICES: Final = (SERVICES, SERVICE_EXPORTS, ENDPOINT_SLICES)
"""What goes with the services of a cluster that does not answer, where it is read."""
_NO_CANARY: Final = "its canary was deleted"
_FIRST_DELAY: Final = 0.2
_LAST_DELAY: Final = 15.0
_USUAL: Final = Terms()


class Phase(Enum):
    IDLE = auto()
    ASKING = auto()
    READING = auto()
    GONE = auto()


class ReaderBrain:
    """What one cluster's reader knows of its cluster's state, and what it makes of what it hears.

    `held(kind)` are the names of the entries that are held of the cluster, `held("refused")` of those that are refused,
    `held("unnamed")` the kinds of which more are, `held("dropped")` those of which something found no room, and
    `held("short")` those that miss what there is room for by now.
    `epoch` is added to `now` for what is shown as Unix time. `drift` is how many entries of each kind were found not to
    be as they were heard to be, `audited` the Unix time at which the last tables were compared. `withdrawn` says that
    its services are, for etcd does not answer, `withdrawals` how often they were.
    """

    def __init__(
        self,
        name: str,
        tables: Callable[[str, ClusterConfig], Sequence[Table]],
        held: Callable[[str], Set[Any]],
        terms: Terms = _USUAL,
        *,
        epoch: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.phase = Phase.IDLE
        self.session = Session(since=epoch)
        self.config: ClusterConfig | None = None
        self.behind: dict[str, str] = {}  # table -> why it is not followed now
        self.drift = Counter[str]()
        self.audited = 0.0
        self.withdrawn, self.withdrawals = False, 0
        self.terms = terms
        self._name, self._make_tables, self._held = name, tables, held
        self._epoch, self._rng = epoch, rng or random.Random()
        self._takes = self._table()  # once: some event comes with every change
        self._tables: dict[bytes, Reading] = {}
        self._starts: dict[bytes, float] = {}  # tables that are to be listed soon, and when
        self._canaries: dict[bytes, Canary | None] = {}  # None for one that is not there
        self._writer = Writer(terms, 0.0)
        self._canaries_known = False
        self._heard_at: float | None = None
        self._answered_at = 0.0
        self._question: messages.Attest | None = None  # the one under way
        self._asked = 0.0  # when that was put
        self._attempted = self._recheck = self._audit = 0.0
        self._delay = _FIRST_DELAY
        self._made_up = -RELIST

    def hear(self, event: messages.Event, now: float) -> list[Command]:
        """What to do about `event` at `now`, in order."""
        if self.phase is Phase.GONE:
            return []
        take = self._takes.get((self.phase, type(event)))
        if take is None:
            raise RuntimeError(f"reader of {self._name}: {type(event).__name__} while {self.phase.name.lower()}")
        commands = list(take(event, now))
        return [*commands, *self._start_due(now), *self._mind_silence(event, now)]

    def _table(self) -> dict[tuple[Phase, type], Callable[[Any, float], Iterable[Command]]]:
        return {
            (Phase.IDLE, messages.Restored): self._restore,
            (Phase.IDLE, messages.Connected): self._ask,
            (Phase.IDLE, messages.Broken): self._fail,
            (Phase.IDLE, messages.Removed): self._remove,
            (Phase.ASKING, messages.Configured): self._configure,
            (Phase.ASKING, messages.Unread): self._fail,
            (Phase.ASKING, messages.Broken): self._fail,
            (Phase.ASKING, messages.Removed): self._remove,
            (Phase.READING, Heard): self._hear,
            (Phase.READING, messages.Attested): self._hear_witnesses,
            (Phase.READING, messages.Audited): self._hear_digests,
            (Phase.READING, messages.Tick): self._tick,
            (Phase.READING, messages.Configured): self._recheck_configuration,
            (Phase.READING, messages.Unread): lambda *_: (),  # whatever is wrong, what is followed says so
            (Phase.READING, messages.Broken): self._fail,
            (Phase.READING, messages.Removed): self._remove,
        }

    def due(self) -> float | None:
        """When a Tick is wanted."""
        if self.phase is not Phase.READING:
            return None
        times = [self._recheck, *self._starts.values()]
        if "heartbeat" not in self.behind:
            times.append(self._writer.silent_from)
        return min(times)

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _restore(self, event: messages.Restored, now: float) -> Iterable[Command]:
        self.config = event.config
        self._enter(State.STALE, now)
        return ()

    def _ask(self, _event: messages.Connected, now: float) -> Iterable[Command]:
        self.phase, self._attempted = Phase.ASKING, now
        return [Ask()]

    def _fail(self, event: messages.Unread | messages.Broken, now: float) -> Iterable[Command]:
        self._lose(event.error, now)
        return self._again(now)

    def _again(self, now: float) -> Iterable[Command]:
        """Another attempt, the later the more often they have ended soon: a list of everything is dear to both."""
        self.phase, self._starts = Phase.IDLE, {}
        if now >= self._attempted + RECHECK:
            self._delay = _FIRST_DELAY
        self._attempted = now
        after, self._delay = self._delay, min(self._delay * 2, _LAST_DELAY)
        return [Again(after)]

    def _configure(self, event: messages.Configured, now: float) -> Iterable[Command]:
        if event.config is None:
            key = keys.cluster_config_key(self._name).decode()
            return self._fail(messages.Unread(f"cluster {self._name} has no key {key}: is its API server up?"), now)
        commands: list[Command] = []
        if self.config is not None and event.config.id != self.config.id:
            why = f"its id was {self.config.id} and is {event.config.id} now: all is read anew"
            self._enter(State.EVICTED, now, why)
            commands.append(Drain())
        if event.objection:
            self.config = None
            self._enter(State.EVICTED, now, event.objection)
            return [Drain(), *self._again(now)]
        self.config = event.config
        if self.session.state in (State.CONNECTING, State.EVICTED):
            self._enter(State.SYNCING, now)
        return [*commands, *self._begin(event.config, now)]

    def _begin(self, config: ClusterConfig, now: float) -> Iterable[Command]:
        self.phase = Phase.READING
        cluster = Cluster(name=self._name, id=config.id, max_clusters=self.terms.max_clusters)
        tables = self._make_tables(self._name, config)
        if not config.synced_canaries:
            tables = [replace(table, canary=None) for table in tables]
        self._tables = {each.prefix: Reading(each, cluster, self.terms.limits, self._held) for each in tables}
        self._canaries = {each.canary: None for each in tables if each.canary is not None}
        self.behind = {each.kind: "waiting for its list" for each in tables if each.required}
        self._writer = Writer(self.terms, now, copied=config.cached)
        self._question, self._canaries_known = None, False
        self._recheck = now + RECHECK
        self._audit = self._next_audit(now)
        yield Follow(keys.HEARTBEAT, live=True)
        yield from map(Follow, self._canary_places())
        for table in tables:
            if table.canary is None:
                yield self._tables[table.prefix].start()
            elif table.required:
                self.behind[table.kind] = f"waiting for its canary {table.canary.decode()}"

    def _canary_places(self) -> list[bytes]:
        return sorted({_parent(canary) for canary in self._canaries})

    def _recheck_configuration(self, event: messages.Configured, now: float) -> Iterable[Command]:
        if event.config is None or (event.config == self.config and not event.objection):
            return ()
        self._lose("its configuration changed: everything is read again", now)
        return self._again(now)

    def _remove(self, _event: messages.Removed, now: float) -> Iterable[Command]:
        self.behind = {}
        self._enter(State.REMOVED, now)
        self.phase = Phase.GONE
        return ()

    # -- what is followed ----------------------------------------------------------------------------------------------

    def _hear(self, event: Heard, now: float) -> Iterable[Command]:
        item = event.item
        if self._slept(now):
            return self._wake_up(now)
        if isinstance(item, Interrupted) and isinstance(item.error, Compacted | Replaced):
            self._lose(str(item.error), now)
            return self._again(now)
        if (reading := self._tables.get(event.prefix)) is not None:
            return self._hear_table(reading, item, now)
        if isinstance(item, Interrupted):
            if event.prefix == keys.HEARTBEAT:  # its watch is the first to notice that etcd is silent
                self._fall_behind("etcd", str(item.error), now)
            return ()
        return self._hear_heartbeat(item, now) if event.prefix == keys.HEARTBEAT else self._hear_canaries(item, now)

    def _hear_heartbeat(self, item: Listed | Changed, now: float) -> Iterable[Command]:
        if "etcd" in self.behind:
            self._catch_up("etcd", now)
        if isinstance(item, Listed) and self._writer.find(next((_written(each) for each in item.events), None)):
            self._lose_heartbeat(item.revision, now)
        for event in () if isinstance(item, Listed) else item.events:
            if isinstance(event, Deleted):
                self._lose_heartbeat(item.revision, now)
            else:
                self._writer.beat(event.kv, now)
                self._catch_up("heartbeat", now)
        self._believe(now)
        return self._attest(now)

    def _hear_canaries(self, item: Listed | Changed, now: float) -> Iterable[Command]:
        written = False
        for event in item.events:
            key = event.key if isinstance(event, Deleted) else event.kv.key
            if key not in self._canaries:
                continue
            self._canaries[key] = self._canary_of(_written(event), key, now)
            written = written or (isinstance(item, Changed) and self._canaries[key] is not None)
        for reading in self._tables.values():
            behind = self.behind.get(reading.table.kind)
            if not self._lacks_canary(reading, now) and reading.whole and behind == _NO_CANARY:
                self._catch_up(reading.table.kind, now)
        waiting = [each for each in self._tables.values() if not each.followed and self._stands(each.table)]
        self._start_soon(waiting, now, SPREAD if isinstance(item, Changed) else 0.0)
        self._canaries_known = True
        self._believe(now)
        return [Ask()] if written else []

    def _canary_of(self, kv: KeyValue | None, key: bytes, now: float) -> Canary | None:
        if kv is None:
            return None
        before = self._canaries[key]
        again = before is not None and before.revision == kv.mod_revision
        return Canary(kv.lease, kv.mod_revision, before.heard if before and again else now)

    def _start_soon(self, readings: Iterable[Reading], now: float, spread: float = SPREAD) -> None:
        for each in readings:
            self._starts.setdefault(each.table.prefix, now + self._rng.uniform(0.0, spread))

    def _start_due(self, now: float) -> Iterable[Command]:
        """List what still is to be."""
        for prefix in [prefix for prefix, at in self._starts.items() if at <= now]:
            del self._starts[prefix]
            reading = self._tables[prefix]
            if self._stands(reading.table) and (reading.doubted or not reading.followed):
                yield reading.start()

    @property
    def is_listing(self) -> bool:
        """Whether lists are being read, or are about to be."""
        tables = self._tables.values()
        return (
            not self._canaries_known or bool(self._starts) or any(each.followed and not each.whole for each in tables)
        )

    def _lacks_canary(self, reading: Reading, now: float) -> bool:
        """Whether the canary of a table that is followed is gone: it is behind then, whatever else is heard of it."""
        lacks = reading.followed and reading.table.required and not self._stands(reading.table)
        if lacks:
            self._fall_behind(reading.table.kind, _NO_CANARY, now)
        return lacks

    def _hear_table(self, reading: Reading, item: Listed | Changed | Interrupted, now: float) -> Iterable[Command]:
        kind = reading.table.kind
        if isinstance(item, Interrupted):
            reading.forget_list()
            reading.tally.interrupt()
            if reading.table.required:
                self._fall_behind(kind, str(item.error), now)
            return ()
        believed_from = self._writer.believed_from(now, item.revision)
        commands = reading.take(item, self._proof(reading.table, now), believed_from)
        if not self._lacks_canary(reading, now) and reading.whole:
            self._catch_up(kind, now)
        self._believe(now)
        return [*commands, *self._attest(now)]

    # -- what is believed ----------------------------------------------------------------------------------------------

    def _slept(self, now: float) -> bool:
        due = self.due()
        return due is not None and now > due + ASLEEP

    def _wake_up(self, now: float) -> Iterable[Command]:
        self._lose(f"this reader slept for more than {ASLEEP:g} s: everything is read again", now)
        return self._again(now)

    def _tick(self, _event: messages.Tick, now: float) -> Iterable[Command]:
        if self._slept(now):
            return self._wake_up(now)
        if "heartbeat" not in self.behind and now >= self._writer.silent_from:
            why = f"no heartbeat for more than {self.terms.silence:g} s: its API server does not write"
            if "etcd" in self.behind:  # which says why none is heard
                self.behind["heartbeat"] = why
            else:
                self._fall_behind("heartbeat", why, now)
        if now < self._recheck:
            return ()
        self._recheck = now + RECHECK
        return [Ask(), *self._make_up(now), *self._attest(now, self._doubted_leases()), *self._compare(now)]

    def _make_up(self, now: float) -> Iterable[Command]:
        """List again the tables of which something was dropped that there is room for now."""
        short = [each for each in self._tables.values() if each.whole and each.table.kind in self._held("short")]
        if not short or now < self._made_up + RELIST:
            return ()
        self._made_up = now
        return [each.start() for each in short]

    def _mind_silence(self, event: messages.Event, now: float) -> Iterable[Command]:
        """Withdraw the services of a cluster that does not answer for too long. Who slept has not listened."""
        slept = self._heard_at is None or now > self._heard_at + RECHECK + ASLEEP
        self._heard_at = now
        if slept or _is_answer(event):
            self._answered_at = now
        if self.withdrawn and _is_answer(event):
            self.withdrawn = False
            return [each.start() for each in self._tables.values() if each.table.kind in OF_SERVICES and each.followed]
        silent = self.terms.cache_ttl and now >= self._answered_at + self.terms.cache_ttl
        if not silent or self.withdrawn or self.phase is Phase.GONE:
            return []
        if self.config is None and not self._held(SERVICES):  # a mirror may have found what it never read
            return []
        self.withdrawn, self.withdrawals = True, self.withdrawals + 1
        return [messages.Withdraw(SERVICES)]

    def _next_audit(self, now: float) -> float:
        return now + self.terms.audit * self._rng.uniform(0.5, 1.0)

    def _compare(self, now: float) -> Iterable[Command]:
        """Ask for what tells, in few bytes, whether all that was heard is what etcd has."""
        tables = [each for each in self._tables.values() if each.table.required]
        whole = [each for each in tables if each.whole and each.table.kind not in self.behind]
        if now < self._audit:
            whole = [each for each in whole if each.tally.is_unclear]
        else:
            self._audit = self._next_audit(now)
            if any(not each.followed for each in tables):
                yield from map(Follow, self._canary_places())
        yield from (each.start() for each in whole if each.tally.is_lost)
        questions = [each.tally.ask() for each in whole if not each.tally.is_lost]
        if wanted := tuple(each for each in questions if each is not None):
            yield messages.Audit(wanted)

    def _hear_digests(self, event: messages.Audited, now: float) -> Iterable[Command]:
        if event.digests is None:
            return
        self.audited = now + self._epoch
        for prefix, digest in event.digests.items():
            reading = self._tables[prefix]
            if wrong := reading.tally.compare(digest):
                self.drift[reading.table.kind] += wrong
                yield reading.start()

    def _lose_heartbeat(self, revision: int, now: float, why: str = "its heartbeat was deleted") -> None:
        """It has vanished, or had for a while: a canary from before proves nothing of what is written after."""
        self._writer.stop(revision)
        if not self._writer.copied:
            self._canaries = {key: canary and canary._replace(lease=None) for key, canary in self._canaries.items()}
        self._fall_behind("heartbeat", why, now)

    def _lose_witness(self, lost: bytes, revision: int, now: float) -> None:
        """It is there, and was not. A mirror's canary that is written anew speaks for itself."""
        if lost == keys.HEARTBEAT:
            self._lose_heartbeat(revision, now)
        elif lost and not self._writer.copied:
            self._lose_heartbeat(revision, now, f"its canary {lost.decode()} was deleted: a heartbeat is waited for")

    def _doubted_leases(self) -> frozenset[int]:
        """Those of canaries of which it is to be found out whether the mirror that wrote them lives."""
        doubted = (each.table.canary for each in self._tables.values() if each.doubted and self._writer.copied)
        canaries = (self._canaries[key] for key in doubted if key is not None)
        return frozenset(canary.lease for canary in canaries if canary and canary.lease)

    def _attest(self, now: float, leases: Set[int] = frozenset()) -> Iterable[Command]:
        """Ask for the witnesses of what has vanished, and for those who hold `leases`."""
        if self._question is not None or not (leases or any(each.gone for each in self._tables.values())):
            return ()
        witnesses = (keys.HEARTBEAT, *self._canaries, *sorted(self._seek()))
        self._question, self._asked = messages.Attest(witnesses, self._deletions(), self._writer.lease, leases), now
        return [self._question]

    def _deletions(self, *, moved: bool = True) -> dict[int, bytes]:
        waiting = [each for each in self._tables.values() if each.gone]
        found = [each.deletions(MOST_ENDS // len(waiting), moved=moved) for each in waiting]
        return {revision: key for each in found for revision, key in each.items()}

    def _hear_witnesses(self, event: messages.Attested, now: float) -> Iterable[Command]:
        if self._slept(now):  # it may be another etcd's answer by now
            return self._wake_up(now)
        question, self._question = self._question, None
        if question is None or event.created is None:
            return ()  # it is asked for again with whatever is heard next
        if question.leases:
            self._writer.holders.hear(event.renewals, event.revision, self._asked, now)
        commands = list[Command]()
        for reading in (each for each in self._tables.values() if each.gone):
            if self._proof(reading.table, now) is None or not event.created.keys() >= reading.witnesses:
                reading.doubt()  # that a witness is not there, its own watch is about to tell
            elif reading.table.twin is None or not commands:  # else what its twin holds may be about to go
                settled = reading.settle(question, event, self._writer.believed_from(now, event.revision))
                commands += settled.commands
                self._lose_witness(settled.lost, event.revision, now)
        unsought = self._seek(moved=False).difference(question.keys)  # what has moved is sought with what is heard next
        more = commands or unsought or self._deletions(moved=False).keys() - question.deletions
        if question.leases:
            self._believe(now)
        return [*commands, *(self._attest(now) if more else ())]

    def _seek(self, *, moved: bool = True) -> frozenset[bytes]:
        """Where in twins of tables what has vanished may be."""
        return frozenset(key for each in self._tables.values() for key in each.sought(moved=moved))

    def _believe(self, now: float) -> None:
        """List again the tables of which something is kept that vanished, where there is proof by now."""
        doubted = [(each, self._proof(each.table, now)) for each in self._tables.values() if each.doubted]
        self._start_soon([each for each, proof in doubted if proof and proof.reached >= each.believed_from], now)

    def _proof(self, table: Table, now: float) -> Proof | None:
        """Whether it is believed what has gone from `table`; None where it is not."""
        if not self._stands(table):
            return None
        return self._writer.proof(None if table.canary is None else self._canaries[table.canary], now)

    def _stands(self, table: Table) -> bool:
        return table.canary is None or self._canaries[table.canary] is not None

    # -- what is said of it --------------------------------------------------------------------------------------------

    def _fall_behind(self, table: str, why: str, now: float) -> None:
        if self.behind.get(table) == why and self.session.error:
            return  # still: each of its tables fails at each attempt
        self.behind[table] = why
        self._lose(f"{table}: {why}", now)

    def _catch_up(self, table: str, now: float) -> None:
        was = self.behind.pop(table, None)
        if not self.behind and self.session.state is not State.FRESH:
            self._enter(State.FRESH, now, "")
        elif was is not None and table == "etcd" and "heartbeat" in self.behind:  # silent for that reason, now
            self._lose(f"heartbeat: {self.behind['heartbeat']}", now)

    def _lose(self, error: str, now: float) -> None:
        """What was whole is old from now on; what never was stays what it is."""
        if error != self.session.error or self.session.state is State.FRESH:
            self._enter(State.STALE if self.session.state is State.FRESH else self.session.state, now, error)

    def _enter(self, state: State, now: float, error: str | None = None) -> None:
        self.session = self.session.enter(state, now + self._epoch, error)


def _is_answer(event: messages.Event) -> bool:
    """Whether it comes from etcd."""
    match event:
        case Heard(_, item):
            return not isinstance(item, Interrupted)
        case messages.Attested(created, _):
            return created is not None
        case messages.Audited(digests):
            return digests is not None
    return isinstance(event, messages.Configured)


def _written(event: Put | Deleted) -> KeyValue | None:
    return None if isinstance(event, Deleted) else event.kv


def _parent(canary: bytes) -> bytes:
    """The prefix under which a canary is watched: cilium/synced/<cluster>/ or this project's own."""
    parts = canary.split(b"/")
    return b"/".join(parts[:3]) + b"/"
