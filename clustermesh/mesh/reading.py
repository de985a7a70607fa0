"""One table of a cluster as its reader hears it: what is taken in, what is refused, and what has vanished. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from itertools import islice
from typing import Any, Final, NamedTuple
from zlib import crc32

from clustermesh.errors import Invalid
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.messages import Accept, Attest, Attested, Command, Follow, Put, Refuse, Relisting, Remove, Unnamed
from clustermesh.mesh.tables import Table
from clustermesh.mesh.tally import Tally
from clustermesh.mesh.writer import Proof
from clustermesh.model import Cluster
from clustermesh.store.follower import Changed, Deleted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

MOST_NAMED: Final = 2_000  # of a table: a peer full of garbage must not fill this node's memory
MOST_COUNTED: Final = 50_000  # of a table beside these: some 4 MB
MOST_SETTLED: Final = 2_000  # of what vanished: some 3 ms
MOST_ENDS: Final = 100  # revisions of deletions that are asked about at once, of all tables: etcd takes 128
MOST_SOUGHT: Final = 20  # of what may be in a twin; etcd answers for a hundred keys or so at once
MOST_LEASES: Final = 1_000  # of a table that are remembered: some 100 kB; a writer has one for each 1,000 keys
_SHOWN: Final = 200  # characters of a refused key: it may have a million, and goes into status
_UNHEARD: Final = -1  # the lease of what was held before the first list


class _Vanished(NamedTuple):
    at: int  # the revision of the deletion, or of the list that did not have it
    since: int  # one at which it was there, or whose writer had nothing more to write; 0 for none that is known
    told: int = 0  # that of the deletion
    key: bytes = b""  # of which it was told
    moved: bool = False  # found to stand in the twin, which has yet to tell of it, or cannot


class Settled(NamedTuple):
    """What the witnesses have said of what had vanished. What was doubted before has no part in it."""

    commands: list[Command]
    lost: bytes  # a witness that was not there before, or with, some of it; empty for none


class Reading:
    """Whether the table is `followed`, was listed `whole` since, and whether something is kept of it that vanished
    without proof (`doubted`). What is refused is named up to a limit, and counted up to another.

    `gone` is what has vanished by the word of a writer that is proven, and waits for one thing more: that its
    `witnesses`, the heartbeat and the canary, did not vanish with it.
    """

    def __init__(self, table: Table, cluster: Cluster, limits: Limits, held: Callable[[str], Set[Any]]) -> None:
        self.table, self.tally = table, Tally(table.prefix)
        self.followed = self.whole = self.doubted = False
        self._cluster, self._limits, self._held = cluster, limits, held
        self.gone: dict[Any, _Vanished] = {}
        self.witnesses = {keys.HEARTBEAT, table.canary or keys.HEARTBEAT}
        self._known = 0  # the last revision heard of, where all that is held was there then
        self._deleted: dict[Any, tuple[int, bytes]] = {}  # what is held and was told to be gone: revision and key
        self._dying: dict[Any, float] = {}  # may have died with a lease: what its writer has to reach, that it is gone
        self._leases = set[int]()  # of what was heard of since the last list began, or is in it
        self._leases_before = {_UNHEARD}  # of what was heard of before, while a list is under way
        self._listing = False
        self._names: set[Any] = set()  # what the list under way has, good or not: what is refused has not vanished
        self._before = self._again = 0  # how many names were held when it began, and of these it has so many
        self._refused: set[str] = set()  # since the list began
        self._unnamed: set[int] = set()  # hashes of those beyond the limit, up to MOST_COUNTED
        self._counted = 0  # of them

    @property
    def believed_from(self) -> float:
        """What a proof has to have reached, that something of what is doubted is gone."""
        return next(iter(self._dying.values()), 0.0)

    def start(self) -> Follow:
        self.followed, self.whole, self.doubted = True, False, False
        self.gone = {}
        self.forget_list()
        return Follow(self.table.prefix)

    def forget_list(self) -> None:
        """The list under way has come to an end, or to none."""
        self._listing, self._names = False, set()

    def take(self, item: Listed | Changed, proof: Proof | None, believed_from: float) -> list[Command]:
        """What to do about `item`. That something has gone waits for its witnesses where it is not older than the
        `proof` of the writer; where there is none (None) it is doubted. So is what nothing was told of and that may
        have died with a lease, until a proof has reached `believed_from`."""
        commands = list[Command]()
        if isinstance(item, Changed):
            self.forget_list()
            self.tally.change(item.events, item.revision, more=item.more)
            for event in item.events:
                if isinstance(event, Deleted):
                    commands += self._delete(event, proof is not None and event.mod_revision >= proof.since)
                else:
                    commands += self._put(event.kv, item.revision and event.kv.mod_revision)
            self._known = 0 if self.doubted else item.revision
            return commands + self._count()
        self.tally.list(len(item.events), item.revision, first=not self._listing, more=item.more)
        held = self._held(self.table.kind)
        if not self._listing:
            self._listing, self._refused, self._unnamed = True, set(), set()
            self._before, self._again = len(held), 0
            self._leases_before |= self._leases
            self._leases = set()
            if self.table.kind in self._held("short"):
                commands.append(Relisting(self.table.kind, whole=False))
        for event in item.events:
            if isinstance(event, Written):
                commands += self._put(event.kv, 0, held)
        return commands if item.more else commands + self._end_list(item.revision, proof, believed_from)

    def deletions(self, most: int, *, moved: bool) -> dict[int, bytes]:
        """When something was deleted that is gone, and one key of those: `most` of them. A lease ends at once."""
        found = dict[int, bytes]()
        for _, vanished in islice(self._waiting(moved=moved), MOST_SETTLED):  # no more is settled by the answer
            if vanished.told:
                found.setdefault(vanished.told, vanished.key)
                if len(found) == most:
                    break
        return found

    def sought(self, *, moved: bool) -> list[bytes]:
        """Where what has vanished may stand by now, here or in the twin: of MOST_SOUGHT at once."""
        waiting = islice(self._waiting(moved=moved), MOST_SOUGHT)
        return [key for name, _ in waiting for key in self._places(name)]

    def _waiting(self, *, moved: bool = True) -> Iterator[tuple[Any, _Vanished]]:
        """What has vanished, in the order in which it is looked for. What was found to have moved holds up nothing: it
        comes last, and least recently found first."""
        yield from (each for each in self.gone.items() if not each[1].moved)
        if moved:
            yield from (each for each in self.gone.items() if each[1].moved)

    def _places(self, name: Any) -> tuple[bytes, ...]:
        """Where `name` may stand without having been heard of there."""
        twin = self.table.twin
        return () if twin is None or name in self._held(twin.kind) else twin.keys_of(name)

    def settle(self, question: Attest, event: Attested, believed_from: float) -> Settled:
        """What vanished until the revision of `event` is believed where heartbeat and canary, which are there, had been
        created before, or the canary after the heartbeat, by a writer that had all there. MOST_SETTLED at once. What is
        in the twin, for whose key the `question` was, has not vanished; what was deleted at a revision that it was not
        about waits; what may have died with a lease is doubted, until a proof has reached `believed_from`."""
        created, revision, sought = event.created or {}, event.revision, frozenset(question.keys)
        heartbeat = created[keys.HEARTBEAT]
        canary = 0 if self.table.canary is None else created[self.table.canary]
        commands, died, lost = list[Command](), False, b""
        for name, vanished in list(islice(self._waiting(), MOST_SETTLED)):
            if not sought.issuperset(places := self._places(name)):
                continue  # it is asked for next
            unasked = vanished.told and vanished.told not in question.deletions
            if vanished.at > revision or unasked:
                continue
            del self.gone[name]
            if any(key in created for key in places):
                self.gone[name] = vanished._replace(moved=True)
                continue
            if vanished.told in event.ends:
                self._dying[name], died = believed_from, True
                self._deleted.pop(name, None)
            elif heartbeat <= max(vanished.since, canary) and canary <= vanished.at:
                self._deleted.pop(name, None)
                commands.append(Remove(self.table.kind, name, vanished.told))
            elif lost != keys.HEARTBEAT:
                lost = keys.HEARTBEAT if canary <= vanished.at else self.table.canary or b""
        if died or lost:
            self.doubted, self._known = True, 0
        return Settled(commands, lost)

    def doubt(self) -> None:
        """What vanished is kept, until there is proof again."""
        self.doubted, self._known, self.gone = True, 0, {}

    def _put(self, kv: KeyValue, revision: int, held: Set[Any] = frozenset()) -> Iterable[Command]:
        try:
            name = self.table.name_of(kv.key)
            if revision and kv.version > 1 and not self._knows(name, kv.key):
                self.tally.lose()
            self._names.add(name)
            if len(self._leases) <= MOST_LEASES:
                self._leases.add(kv.lease)
            self._again += name in held
            if self.gone or self._dying or self._deleted:
                for waiting in (self.gone, self._dying, self._deleted):
                    waiting.pop(name, None)
            self._check_size(len(kv.value))
            value = self.table.decode(kv.key, kv.value, self._cluster)
        except Invalid as e:
            return self._refuse(kv.key, str(e))
        except Exception as e:  # a bug of ours that this entry has found is this entry's problem
            return self._refuse(kv.key, f"internal error: {e!r}")
        taken = Put(self.table.kind, name, value, revision)
        return (taken, *self._accept(kv.key)) if self._refused else (taken,)

    def _refuse(self, key: bytes, why: str) -> Iterable[Command]:
        what = _shown(key)
        if what not in self._refused and len(self._refused) >= MOST_NAMED:
            if len(self._unnamed) < MOST_COUNTED:
                self._unnamed.add(hash(what))
            return ()
        self._refused.add(what)
        return (Refuse(what, why[: 5 * _SHOWN]),)

    def _accept(self, key: bytes) -> Iterable[Command]:
        what = _shown(key)
        self._unnamed.discard(hash(what))
        if what not in self._refused:
            return ()
        self._refused.discard(what)
        return (Accept(what),)

    def _has(self, name: Any) -> bool:
        """Whether it is held, or was just told."""
        return name in self._names or name in self._held(self.table.kind)

    def _knows(self, name: Any, key: bytes) -> bool:
        """Whether the key was heard of, or may have been, where something found no room or more are
        refused than are counted."""
        if self._has(name) or self.table.kind in self._held("dropped"):
            return True
        what = _shown(key)
        return what in self._refused or hash(what) in self._unnamed or len(self._unnamed) >= MOST_COUNTED

    def _check_size(self, size: int) -> None:
        if size > self._limits.value_bytes:
            raise Invalid("value", f"{size} bytes", f"must be at most {self._limits.value_bytes}")

    def _delete(self, event: Deleted, proven: bool) -> Iterable[Command]:
        try:
            name = self.table.name_of(event.key)
        except Invalid:
            return self._accept(event.key)
        if not self._knows(name, event.key):
            self.tally.lose()
        held = self._has(name)
        if held:
            self._deleted[name] = (event.mod_revision, event.key)
        if not proven:
            self.doubted = self.doubted or held
            return ()
        if not held:
            return (Remove(self.table.kind, name, event.mod_revision), *self._accept(event.key))
        self.gone[name] = _Vanished(event.mod_revision, event.mod_revision, event.mod_revision, event.key)
        return self._accept(event.key)

    def _end_list(self, revision: int, proof: Proof | None, believed_from: float) -> list[Command]:
        """The list is the whole table: what is held beside it has vanished. Of what nothing was told, etcd cannot say
        whether it died with a lease."""
        kind, prefix = self.table.kind, self.table.prefix.decode()
        missing = (name for name in self._held(kind) if name not in self._names)
        gone = set(islice(missing, max(0, self._before - self._again)))  # mostly 0, and looking at all takes its time
        stale = [what for what in self._held("refused") - self._refused if what.startswith(prefix)]
        commands: list[Command] = [Accept(what) for what in stale]
        if kind in self._held("short"):
            commands.append(Relisting(kind, whole=True))
        if proof is not None and revision < proof.since:
            proof = None
        self._deleted = {name: self._deleted[name] for name in gone & self._deleted.keys()}
        untold = gone - self._deleted.keys()
        dying = {name: at for name, at in self._dying.items() if name in untold}
        if proof is None or not self._all_leases_live(proof.lease):
            dying |= dict.fromkeys(untold - dying.keys(), believed_from)
        if proof is not None:
            dying = {name: at for name, at in dying.items() if at > proof.reached}
            since = max(self._known, proof.settled)
            self.gone = {name: _Vanished(revision, since, *self._deleted.get(name, ())) for name in gone - dying.keys()}
        self._dying, self._leases_before = dying, set()
        self.doubted = self.doubted or bool(gone if proof is None else dying)
        self.whole, self._known = True, 0 if self.doubted else revision
        self.forget_list()
        return commands + self._count()

    def _all_leases_live(self, living: int) -> bool:
        """Whether each lease that was heard of has a key in the list, or is that of the heartbeat: then none has taken
        along what is missing."""
        return len(self._leases_before) <= MOST_LEASES and self._leases_before <= self._leases | {0, living}

    def _count(self) -> list[Command]:
        kind, number = self.table.kind, len(self._unnamed)
        if number == self._counted and (number or kind not in self._held("unnamed")):
            return []
        self._counted = number
        return [Unnamed(kind, number)]


def _shown(key: bytes) -> str:
    """How a refused key is called in status."""
    text = key.decode(errors="replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({crc32(key):08x})"
