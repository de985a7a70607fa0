"""The brain of a cluster's reader: what is heard of the cluster, and what that does to what is known of it. Pure.

The rules:

1. An attempt asks for the cluster's configuration (ASKING), then follows its heartbeat, its canaries and its tables
   (READING). Whatever fails, what is known is kept; the cluster is stale, and says why.
2. A configuration that may not be used here evicts the cluster; under another id than before, what was known is not
   this cluster's any more. It is asked for again every RECHECK seconds: a change begins a new attempt, that it cannot
   be read just then means nothing.
3. A table is listed once its canary is there. What is listed or changed is taken in as it comes.
4. A beat is a change of the heartbeat that was heard as it happened; to find the key there proves nothing. The writer
   lives until `silence` seconds after its last beat, or until its heartbeat vanishes.
5. The writer is proven while it lives, the canary stands, and the one that beats wrote it (their lease is one) or has
   been beating for `settle` seconds: one that comes back beats first and writes its entries after. What vanishes after
   the last beat of a proven writer, by a deletion or from a list, is believed.
6. What vanished otherwise (leases end, an etcd is being filled, a watch tells of old times) is kept. Once the writer is
   proven its table is listed again, and that list is believed.
7. A compaction or another history (an etcd that was emptied or restored) begins a new attempt: its tables wait for
   their canaries, and its first beat is yet to come. So does having slept: what waits to be heard is old.
8. A table that is cut off, refused (our access was revoked) or too large is behind; nothing of it is given up.
9. A value above the limit is not even decoded. It, and what cannot be decoded, is refused with the reason, and what
   was good before stays; it is accepted once it is right, or gone.
10. Once the cluster was removed, nothing that is still heard matters.

`_TABLE` at the end says who takes which event; a pair that is not in it is a bug and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from enum import Enum, auto
from typing import Any, Final, get_args
from zlib import crc32

from clustermesh.errors import Invalid
from clustermesh.mesh import session as sessions
from clustermesh.mesh.messages import (
    Accept,
    Again,
    Ask,
    Broken,
    Command,
    Configured,
    Connected,
    Drain,
    Event,
    Follow,
    Heard,
    Put,
    Refuse,
    Remove,
    Removed,
    Restored,
    Terms,
    Tick,
    Unread,
)
from clustermesh.mesh.session import Session, State, advance
from clustermesh.mesh.tables import Table
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

RECHECK: Final = 30.0
ASLEEP: Final = 60.0  # seconds that a Tick is late
_FIRST_DELAY: Final = 0.2
_LAST_DELAY: Final = 15.0
_USUAL: Final = Terms()
_SHOWN: Final = 200  # characters of a refused key: it may have a million, and goes into status


class Phase(Enum):
    IDLE = auto()
    ASKING = auto()
    READING = auto()
    GONE = auto()


class _Reading:
    """One table: whether it is followed, the list under way, and whether something is kept of it without proof."""

    def __init__(self, table: Table, gate: bytes | None) -> None:
        self.table, self.gate = table, gate
        self.followed = False
        self.whole = False
        self.doubted = False
        self.names: set[Any] = set()  # what the list has, good or not: what is refused has not vanished
        self.shown: set[str] = set()  # what it has that is refused

    def start(self) -> Follow:
        self.followed, self.whole, self.doubted = True, False, False
        self.forget_list()
        return Follow(self.table.prefix)

    def forget_list(self) -> None:
        self.names, self.shown = set(), set()


class ReaderBrain:
    """What one cluster's reader knows of its cluster's state, and what it makes of what it hears.

    `held(kind)` are the names of the entries that are held of the cluster, `held("refused")` of those that are refused.
    `epoch` is added to `now` for what is shown as Unix time.
    """

    def __init__(
        self,
        name: str,
        tables: Callable[[str, ClusterConfig], Sequence[Table]],
        held: Callable[[str], Set[Any]],
        terms: Terms = _USUAL,
        *,
        epoch: float = 0.0,
    ) -> None:
        self.phase = Phase.IDLE
        self.session = Session(since=epoch)
        self.config: ClusterConfig | None = None
        self.behind: dict[str, str] = {}  # table -> why it is not followed now
        self.terms = terms
        self._name, self._make_tables, self._held = name, tables, held
        self._epoch = epoch
        self._cluster = Cluster(name=name, id=0)
        self._tables: dict[bytes, _Reading] = {}
        self._canaries: dict[bytes, int | None] = {}  # the lease of each, None for one that is not there
        self._began = self._recheck = self._alive_since = 0.0
        self._beat: float | None = None
        self._beat_revision = self._lease = 0
        self._delay = _FIRST_DELAY

    def hear(self, event: Event, now: float) -> list[Command]:
        """What to do about `event` at `now`, in order."""
        take = _TABLE.get((self.phase, type(event)))
        if take is None:
            raise RuntimeError(f"reader of {self._name}: {type(event).__name__} while {self.phase.name.lower()}")
        return list(take(self, event, now))

    def due(self) -> float | None:
        """When a Tick is wanted."""
        if self.phase is not Phase.READING:
            return None
        times = [self._recheck]
        if "heartbeat" not in self.behind:
            times.append(self._last_sign() + self.terms.silence)
        return min(times)

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _restore(self, event: Restored, now: float) -> Iterable[Command]:
        self.config = event.config
        self._advance(sessions.Event.RESTORED, now)
        return ()

    def _ask(self, _event: Connected, _now: float) -> Iterable[Command]:
        self.phase = Phase.ASKING
        return [Ask()]

    def _fail(self, event: Unread | Broken, now: float) -> Iterable[Command]:
        self._lose(event.error, now)
        return self._again()

    def _again(self, at_once: bool = False) -> Iterable[Command]:
        self.phase = Phase.IDLE
        self._delay = _FIRST_DELAY if at_once else self._delay
        after, self._delay = self._delay, min(self._delay * 2, _LAST_DELAY)
        return [Again(after)]

    def _configure(self, event: Configured, now: float) -> Iterable[Command]:
        if event.config is None:
            key = keys.cluster_config_key(self._name).decode()
            return self._fail(Unread(f"cluster {self._name} has no key {key}: is its API server up?"), now)
        commands: list[Command] = []
        if self.config is not None and event.config.id != self.config.id:
            why = f"its id was {self.config.id} and is {event.config.id} now: all is read anew"
            self._advance(sessions.Event.REFUSED, now, why)
            commands.append(Drain())
        if event.objection:
            self.config = None
            self._advance(sessions.Event.REFUSED, now, event.objection)
            return [Drain(), *self._again()]
        self.config = event.config
        self._advance(sessions.Event.CONFIGURED, now)
        return [*commands, *self._begin(event.config, now)]

    def _begin(self, config: ClusterConfig, now: float) -> Iterable[Command]:
        self.phase = Phase.READING
        self._cluster = Cluster(name=self._name, id=config.id, max_clusters=self.terms.max_clusters)
        tables = self._make_tables(self._name, config)
        self._tables = {t.prefix: _Reading(t, t.canary if config.synced_canaries else None) for t in tables}
        self._canaries = {each.gate: None for each in self._tables.values() if each.gate is not None}
        self.behind = {each.kind: "waiting for its list" for each in tables if each.required}
        self._began, self._recheck, self._beat = now, now + RECHECK, None
        yield Follow(keys.HEARTBEAT, live=True)
        for prefix in sorted({_parent(canary) for canary in self._canaries}):
            yield Follow(prefix)
        for reading in self._tables.values():
            if reading.gate is None:
                yield reading.start()
            elif reading.table.required:
                self.behind[reading.table.kind] = f"waiting for its canary {reading.gate.decode()}"

    def _recheck_configuration(self, event: Configured, now: float) -> Iterable[Command]:
        if event.config is None or (event.config == self.config and not event.objection):
            return ()
        self._lose("its configuration changed: everything is read again", now)
        return self._again(at_once=True)

    def _remove(self, _event: Removed, now: float) -> Iterable[Command]:
        self.behind = {}
        self._advance(sessions.Event.REMOVED, now)
        self.phase = Phase.GONE
        return ()

    def _ignore(self, _event: Event, _now: float) -> Iterable[Command]:
        return ()

    # -- what is followed ----------------------------------------------------------------------------------------------

    def _hear(self, event: Heard, now: float) -> Iterable[Command]:
        item = event.item
        if self._slept(now):
            return self._wake_up(now)
        if isinstance(item, Interrupted) and isinstance(item.error, Compacted | Replaced):
            self._lose(str(item.error), now)
            return self._again(at_once=True)
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
        for event in () if isinstance(item, Listed) else item.events:
            if isinstance(event, Deleted):
                self._beat = None
                continue
            if not self._lives(now):
                self._alive_since = now
            self._beat, self._beat_revision, self._lease = now, event.kv.mod_revision, event.kv.lease
            self._catch_up("heartbeat", now)
        return self._believe(now)

    def _hear_canaries(self, item: Listed | Changed, now: float) -> Iterable[Command]:
        for event in item.events:
            key = event.key if isinstance(event, Deleted) else event.kv.key
            if key in self._canaries:
                self._canaries[key] = None if isinstance(event, Deleted) else event.kv.lease
        waiting = [each for each in self._tables.values() if not each.followed and self._stands(each)]
        return [*(each.start() for each in waiting), *self._believe(now)]

    def _hear_table(self, reading: _Reading, item: Listed | Changed | Interrupted, now: float) -> Iterable[Command]:
        kind = reading.table.kind
        if isinstance(item, Interrupted):
            reading.forget_list()
            if reading.table.required:
                self._fall_behind(kind, str(item.error), now)
            return ()
        revision = item.revision if isinstance(item, Changed) else 0
        commands = self._take(reading, item, revision, now)
        if isinstance(item, Changed):
            reading.forget_list()
        elif not item.more:
            commands += self._forget_unlisted(reading, item.revision, now)
            reading.whole = True
        if reading.whole:
            self._catch_up(kind, now)
        return [*commands, *self._believe(now)]

    def _take(self, reading: _Reading, item: Listed | Changed, revision: int, now: float) -> list[Command]:
        commands: list[Command] = []
        refused, proven = self._held("refused"), self._is_proven(reading, now)
        for event in item.events:
            key = event.kv.key if isinstance(event, Written) else event.key
            if isinstance(event, Deleted):
                believed = proven and event.mod_revision >= self._beat_revision
                command: Command | None = self._delete(reading, key, revision, believed)
            else:
                command = self._put(reading, event.kv, revision and event.kv.mod_revision)
            if command is not None:
                commands.append(command)
            if refused and isinstance(command, Put | Remove) and (what := _shown(key)) in refused:
                commands.append(Accept(what))
        return commands

    def _put(self, reading: _Reading, kv: KeyValue, revision: int) -> Command:
        table = reading.table
        try:
            name = table.name_of(kv.key)
            reading.names.add(name)
            self._check_size(len(kv.value))
            value = table.decode(kv.key, kv.value, self._cluster)
        except Invalid as e:
            why = str(e)
        except Exception as e:  # a bug of ours that this entry has found is this entry's problem
            why = f"internal error: {e!r}"
        else:
            return Put(table.kind, name, value, revision)
        reading.shown.add(_shown(kv.key))
        return Refuse(_shown(kv.key), why[: 5 * _SHOWN])

    def _check_size(self, size: int) -> None:
        if size > self.terms.limits.value_bytes:
            raise Invalid("value", f"{size} bytes", f"must be at most {self.terms.limits.value_bytes}")

    def _delete(self, reading: _Reading, key: bytes, revision: int, believed: bool) -> Command | None:
        try:
            name = reading.table.name_of(key)
        except Invalid:
            return Accept(_shown(key))
        if believed:
            return Remove(reading.table.kind, name, revision)
        reading.doubted = reading.doubted or name in self._held(reading.table.kind)
        return None

    def _forget_unlisted(self, reading: _Reading, revision: int, now: float) -> list[Command]:
        """The list is the whole table: what is held beside it is gone, if there is proof."""
        kind, prefix = reading.table.kind, reading.table.prefix.decode()
        stale = [what for what in self._held("refused") - reading.shown if what.startswith(prefix)]
        gone = self._held(kind) - reading.names
        reading.forget_list()
        commands: list[Command] = [Accept(what) for what in stale]
        if gone and not (self._is_proven(reading, now) and revision >= self._beat_revision):
            reading.doubted = True
            return commands
        return commands + [Remove(kind, name, 0) for name in gone]

    # -- what is believed ----------------------------------------------------------------------------------------------

    def _slept(self, now: float) -> bool:
        due = self.due()
        return due is not None and now > due + ASLEEP

    def _wake_up(self, now: float) -> Iterable[Command]:
        self._lose(f"this reader slept for more than {ASLEEP:g} s: everything is read again", now)
        return self._again(at_once=True)

    def _tick(self, _event: Tick, now: float) -> Iterable[Command]:
        if self._slept(now):
            return self._wake_up(now)
        if "heartbeat" not in self.behind and now >= self._last_sign() + self.terms.silence:
            why = f"no heartbeat for more than {self.terms.silence:g} s: its API server does not write"
            self._fall_behind("heartbeat", why, now)
        asked: list[Command] = []
        if now >= self._recheck:
            self._recheck = now + RECHECK
            asked = [Ask()]
        return asked

    def _believe(self, now: float) -> Iterable[Command]:
        """List again the tables of which something is kept that vanished, where there is proof by now."""
        return [each.start() for each in self._tables.values() if each.doubted and self._is_proven(each, now)]

    def _is_proven(self, reading: _Reading, now: float) -> bool:
        if not self._lives(now) or not self._stands(reading):
            return False
        same = reading.gate is not None and self._canaries[reading.gate] == self._lease
        return same or self._last_sign() >= self._alive_since + self.terms.settle

    def _stands(self, reading: _Reading) -> bool:
        return reading.gate is None or self._canaries[reading.gate] is not None

    def _lives(self, now: float) -> bool:
        return self._beat is not None and now < self._beat + self.terms.silence

    def _last_sign(self) -> float:
        return self._began if self._beat is None else self._beat

    # -- what is said of it --------------------------------------------------------------------------------------------

    def _fall_behind(self, table: str, why: str, now: float) -> None:
        if self.behind.get(table) == why and self.session.error:
            return  # still: each of its tables fails at each attempt
        self.behind[table] = why
        self._lose(f"{table}: {why}", now)

    def _catch_up(self, table: str, now: float) -> None:
        self.behind.pop(table, None)
        if not self.behind:
            self._delay = _FIRST_DELAY
            if self.session.state is not State.FRESH:
                self._advance(sessions.Event.LISTED, now)

    def _lose(self, error: str, now: float) -> None:
        if error != self.session.error or self.session.state is State.FRESH:
            self._advance(sessions.Event.LOST, now, error)

    def _advance(self, event: sessions.Event, now: float, error: str = "") -> None:
        self.session = advance(self.session, event, now + self._epoch, error)


_TABLE: Final[dict[tuple[Phase, type], Callable[[ReaderBrain, Any, float], Iterable[Command]]]] = {
    (Phase.IDLE, Restored): ReaderBrain._restore,
    (Phase.IDLE, Connected): ReaderBrain._ask,
    (Phase.IDLE, Broken): ReaderBrain._fail,
    (Phase.IDLE, Removed): ReaderBrain._remove,
    (Phase.ASKING, Configured): ReaderBrain._configure,
    (Phase.ASKING, Unread): ReaderBrain._fail,
    (Phase.ASKING, Broken): ReaderBrain._fail,
    (Phase.ASKING, Removed): ReaderBrain._remove,
    (Phase.READING, Heard): ReaderBrain._hear,
    (Phase.READING, Tick): ReaderBrain._tick,
    (Phase.READING, Configured): ReaderBrain._recheck_configuration,
    (Phase.READING, Unread): ReaderBrain._ignore,  # whatever is wrong, what is followed says so
    (Phase.READING, Broken): ReaderBrain._fail,
    (Phase.READING, Removed): ReaderBrain._remove,
    **{(Phase.GONE, event): ReaderBrain._ignore for event in get_args(Event)},
}


def _parent(canary: bytes) -> bytes:
    """The prefix under which a canary is watched: cilium/synced/<cluster>/ or this project's own."""
    parts = canary.split(b"/")
    return b"/".join(parts[:3]) + b"/"


def _shown(key: bytes) -> str:
    """How a refused key is called in status."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({crc32(key):08x})"
