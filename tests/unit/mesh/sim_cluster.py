"""A stupid cluster: a dict for an etcd, a writer that comes and goes, and streams that tell of it late or not at all.

What it promises, and readers rely on: a writer that comes back beats first, writes what it has within 25 s, and its
canaries last; what is overwritten stays on its lease; leases end minutes after their writer (900 s and a heartbeat of
60), each in its own time, in any order; no lease is renewed but by the process that holds it, or, with the leader of
etcd, all at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from itertools import count

from msgspec.structs import replace

from clustermesh.errors import Refused, Unavailable
from clustermesh.model import ClusterConfig
from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import Digest, DigestOf, KeyValue
from clustermesh.wire import keys

KINDS = ("nodes", "services")
NAMES = ("a", "b", "c")
SYNCED = b"synced/beta/tables/"
Table = dict[bytes, bytes]


class SimCluster:
    """`truth` is what the cluster has, by the word of its writer; `held_at` what it had all along at a revision."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.era, self.revision, self.compacted = 0, 0, 0
        self.store: dict[bytes, KeyValue] = {}
        self.created: dict[bytes, int] = {}  # since when each key is there
        self.history: list[tuple[int, Written | Deleted]] = []
        self.truth: Table = {}
        self.held_at: dict[tuple[int, int], set[bytes]] = {}
        self._left: dict[bytes, tuple[int, int]] = {}  # when each key went last
        self.config = ClusterConfig(id=2, synced_canaries=True)
        self.alive = self.revoked = False
        self._numbers = count(1)
        self._leases: list[int] = []
        self._ending: dict[int, float] = {}  # leases that nobody keeps alive, and when they end at the earliest
        self.term = 1
        self._renewed: dict[int, float] = {}
        self.todo: dict[bytes, bytes | None] = {}
        self._returned = self._beaten = 0.0
        self.come_back(0.0)
        self.change()
        self.finish()

    # -- the writer ----------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """What the cluster has changes; its writer will say so."""
        if self.alive:
            key = f"{self.rng.choice(KINDS)}/{self.rng.choice(NAMES)}".encode()
            value = self.rng.choice([None, b"1", b"2"])
            self.truth = {k: v for k, v in self.truth.items() if k != key} | ({} if value is None else {key: value})
            self.todo.pop(key, None)
            self.todo = {key: value} | self.todo  # canaries stay last
            self._note()

    def work(self) -> None:
        """The writer writes one thing."""
        if self.alive and self.todo:
            key = next(iter(self.todo))
            self._write(key, self.todo.pop(key))

    def finish(self) -> None:
        while self.alive and self.todo:
            self.work()

    def beat(self, now: float) -> None:
        if self.alive:
            self._beaten = now
            self._write(keys.HEARTBEAT, b"%f" % now)

    def die(self, now: float) -> None:
        self.alive, self.todo = False, {}
        self._leave(self._leases, now)
        self._leases = []

    def _leave(self, leases: Iterable[int], now: float) -> None:
        self._ending |= dict.fromkeys(leases, now + 300)
        self._renewed = dict.fromkeys(leases, now) | self._renewed

    def come_back(self, now: float) -> None:
        """A new process: other leases; it beats, writes all it has, takes away the rest, and says that all is there."""
        if not self.alive:
            self.alive, self._returned = True, now
            self._leases = [next(self._numbers) for _ in range(self.rng.choice([1, 2]))]
            self.beat(now)
            gone = [key for key in self.store if key.split(b"/")[0].decode() in KINDS and key not in self.truth]
            self._write_all(dict.fromkeys(gone))

    def _write_all(self, before: dict[bytes, bytes | None]) -> None:
        shuffled = list((before | self.truth).items())
        self.rng.shuffle(shuffled)
        self.todo = dict(shuffled) | {SYNCED + kind.encode(): b"" for kind in KINDS}

    # -- etcd ----------------------------------------------------------------------------------------------------------

    def end_lease(self, now: float) -> None:
        """One of those that nobody keeps alive any more."""
        if ending := [lease for lease, earliest in self._ending.items() if earliest <= now]:
            lease = self.rng.choice(ending)
            del self._ending[lease]
            if gone := [key for key, kv in self.store.items() if kv.lease == lease]:
                self._apply(dict.fromkeys(gone), 0)

    def revoke_lease(self, now: float, told: Mapping[bytes, int]) -> None:
        """Somebody ends one of those that a living writer keeps, where it was `told` of each key that it is on that;
        what is gone it puts back within 25 s."""
        untold = {kv.lease for key, kv in self.store.items() if told.get(key) != kv.lease}
        if self.alive and (known := [lease for lease in self._leases if lease not in untold]):
            lease = self.rng.choice(known)
            self._leases = [next(self._numbers) if each == lease else each for each in self._leases]
            if not self.todo:  # else what it has to write since before is not put off
                self._returned = now
            if gone := [key for key, kv in self.store.items() if kv.lease == lease]:
                self._apply(dict.fromkeys(gone), 0)
            if keys.HEARTBEAT in gone:
                self.beat(now)
            self._put_back(gone)

    def _put_back(self, gone: list[bytes]) -> None:
        """What it is about to write anyway stands; canaries stay last."""
        lost = {key: self.truth.get(key, b"") for key in gone if key in self.truth or key.startswith(SYNCED)}
        shuffled = list((lost | self.todo).items())
        self.rng.shuffle(shuffled)
        self.todo = dict(sorted(shuffled, key=lambda each: each[0].startswith(SYNCED)))

    def promote(self, now: float) -> None:
        """etcd has another leader, for whom each lease begins anew."""
        self.term += 1
        self._renewed = dict.fromkeys([*self._renewed, *self._kept()], now)
        self._ending = {lease: max(earliest, now + 300) for lease, earliest in self._ending.items()}

    def renewals(self, leases: Iterable[int], now: float) -> dict[int, float]:
        """How long ago those were renewed that are not over."""
        there = {*self._kept(), *self._ending}
        return {lease: now - self._renewed.setdefault(lease, now) for lease in leases if lease in there}

    def lease_ends(self, deletions: Mapping[int, bytes], living: int) -> frozenset[int]:
        """Those at which a key has gone whose lease is no more."""
        lives = {0, living, *self._kept(), *self._ending}
        before = {
            revision: [
                event.kv.lease
                for at, event in self.history
                if at < revision and isinstance(event, Written) and event.kv.key == key
            ]
            for revision, key in deletions.items()
        }
        return frozenset(revision for revision, leases in before.items() if leases and leases[-1] not in lives)

    def empty(self, now: float) -> None:
        """etcd is started anew without its data; a writer that lives fills it under new leases."""
        self.era, self.revision, self.compacted = self.era + 1, self.rng.randrange(3), 0
        self._left |= dict.fromkeys(self.store, (self.era, self.revision))
        self.store, self.created, self.history = {}, {}, []
        self._note()
        if self.alive:
            self._returned = now
            self._leases = [next(self._numbers)]
            self._write_all({})

    def wipe(self, now: float) -> None:
        """Somebody deletes every key, or all but the canaries; a writer that lives beats and puts back what is gone."""
        whole = self.rng.random() < 0.5
        if gone := [key for key in self.store if whole or not key.startswith(SYNCED)]:
            self._apply(dict.fromkeys(gone), 0)
        if self.alive:
            self._returned = now
            self.beat(now)
            self._write_all({})
        kept = {key for key, kv in self.store.items() if kv.lease in self._kept()}
        self.todo = {key: value for key, value in self.todo.items() if key not in kept}

    def compact(self) -> None:
        self.compacted = self.revision

    def digest(self, question: DigestOf) -> Digest | None:
        """As etcd reads it: as of a revision that is still known, or as of now; not as of one that is yet to come."""
        asked = question.revision
        revision = asked if asked and asked >= self.compacted else self.revision
        if revision > self.revision:
            return None
        there = {}
        for at, event in self.history:
            if at <= revision and _key(event).startswith(question.prefix):
                there.pop(_key(event), None)
                if isinstance(event, Written):
                    there[event.kv.key] = at
        return Digest(revision, len(there), {key: at for key, at in there.items() if at > question.since})

    def pass_time(self, now: float) -> None:
        """What a living writer does not put off."""
        if self.alive and now > self._returned + 25:
            self.finish()
        if self.alive and now >= self._beaten + 60:
            self.beat(now)
        for lease in self._kept():
            if now >= self._renewed.setdefault(lease, now) + 100:
                self._renewed[lease] = now

    def _write(self, key: bytes, value: bytes | None) -> None:
        if value is not None or key in self.store:
            self._apply({key: value}, self._lease_for(key))

    def _kept(self) -> list[int]:
        """The leases that somebody keeps alive."""
        return self._leases

    def _lease_for(self, key: bytes) -> int:
        """What is overwritten stays on its lease while that lives, as writers do it."""
        if key == keys.HEARTBEAT:
            return self._leases[0]
        before = self.store[key].lease if key in self.store else 0
        return before if before in self._leases else self.rng.choice(self._leases)

    def _apply(self, changes: dict[bytes, bytes | None], lease: int) -> None:
        self.revision += 1
        for key, value in changes.items():
            if value is None:
                del self.store[key], self.created[key]
                self._left[key] = (self.era, self.revision)
                self.history.append((self.revision, Deleted(key, self.revision)))
            else:
                self.created.setdefault(key, self.revision)
                version = self.store[key].version + 1 if key in self.store else 1
                self.store[key] = KeyValue(key, value, self.revision, lease, version)
                self.history.append((self.revision, Written(self.store[key])))
        self._note()

    def has_had(self, key: bytes, moment: tuple[int, int]) -> bool:
        """Whether it was the cluster's at `moment` and ever since it went from etcd: had it not been in between, it was
        right to take it away, also where it has come back to the cluster and not to etcd yet."""
        since = min(self._left.get(key, moment), moment)
        return all(key in held for at, held in self.held_at.items() if since <= at <= moment)

    def _note(self) -> None:
        moment = (self.era, self.revision)
        self.held_at[moment] = self.held_at.get(moment, set(self.truth)) & set(self.truth)


class SimMirror(SimCluster):
    """What a mirror copied, and an API server beside it that beats: each of them comes and goes for itself.

    Its canaries have a lease of their own, or, as Cilium's, one of the copies'; never that of the beat. What it puts
    back after a lease has ended comes in any order, canaries not last. It may hang, if not
    before it has written what it has: its leases end, or not, and when it goes on it renews them before anything else.
    """

    def __init__(self, rng: random.Random) -> None:
        self.beats, self._beats_on, self._brief = True, -1, -2
        self._hangs_until = 0.0
        super().__init__(rng)
        self.config = replace(self.config, cached=True)

    def beat(self, now: float) -> None:
        if self.beats:
            self._beaten = now
            self._write(keys.HEARTBEAT, b"%f" % now)

    def work(self) -> None:
        if not self._hangs_until:
            super().work()

    def finish(self) -> None:
        if not self._hangs_until:
            super().finish()

    def hang(self, now: float) -> None:
        if self.alive and not self._hangs_until and not self.todo:
            self._hangs_until = now + self.rng.choice([205.0, 250.0, 400.0])
            self._renewed = dict.fromkeys([*self._leases, self._brief], now) | self._renewed
            self._ending |= dict.fromkeys([*self._leases, self._brief], now + 200)

    def _go_on(self, now: float) -> None:
        self._hangs_until, self._returned = 0.0, now
        left = [lease for lease in {*self._leases, self._brief} if self._ending.pop(lease, None) is not None]
        anew = {lease: next(self._numbers) for lease in sorted({*self._leases, self._brief}.difference(left))}
        self._leases = [anew.get(lease, lease) for lease in self._leases]
        self._brief = anew.get(self._brief, self._brief)
        self._renewed |= dict.fromkeys(left, now)
        whole = {*self.truth, *(SYNCED + kind.encode() for kind in KINDS)}
        self._put_back(sorted(whole.difference(self.store)))

    def die(self, now: float) -> None:
        """The mirror, its API server, or both."""
        mirror, server = self.rng.choice([(True, False), (False, True), (True, True)])
        if mirror and self._hangs_until:  # what it holds ends as it is
            self._hangs_until, self.alive, self.todo, self._leases = 0.0, False, {}, []
        elif mirror and self.alive:
            self._leave([self._brief], now)
            super().die(now)
        if server and self.beats:
            self.beats = False
            self._leave([self._beats_on], now)

    def come_back(self, now: float) -> None:
        if not self.beats:
            self.beats, self._beats_on = True, next(self._numbers)
            self.beat(now)
        begins = not self.alive
        super().come_back(now)
        if begins:
            self._brief = self.rng.choice([next(self._numbers), *self._leases])

    def revoke_lease(self, now: float, told: Mapping[bytes, int]) -> None:
        if self._hangs_until:
            return
        shared = self._brief in self._leases
        super().revoke_lease(now, told)
        if shared and self._brief not in self._leases:
            self._brief = self._leases[0]

    def _put_back(self, gone: list[bytes]) -> None:
        super()._put_back(gone)
        shuffled = list(self.todo.items())
        self.rng.shuffle(shuffled)
        self.todo = dict(shuffled)

    def empty(self, now: float) -> None:
        super().empty(now)
        self._brief, self._beats_on = next(self._numbers), next(self._numbers)

    def pass_time(self, now: float) -> None:
        if self._hangs_until and now >= self._hangs_until:
            self._go_on(now)
        super().pass_time(now)
        if self.beats and now >= self._beaten + 60:
            self.beat(now)

    def _kept(self) -> list[int]:
        copies = [*self._leases, self._brief] if self.alive and not self._hangs_until else []
        return [*copies, *([self._beats_on] if self.beats else [])]

    def _lease_for(self, key: bytes) -> int:
        if key == keys.HEARTBEAT:
            return self._beats_on
        return self._brief if key.startswith(SYNCED) else super()._lease_for(key)


class SimStream:
    """What a reader is told of one prefix: a list, then each revision, with cuts in between."""

    def __init__(self, cluster: SimCluster, prefix: bytes, live: bool) -> None:
        self.prefix = prefix
        self._cluster, self._live = cluster, live
        self._listed = self._cut = self._missing = False
        self._knows = False
        self.era = self.position = 0

    def cut(self) -> None:
        self._cut = True

    def miss(self) -> None:
        """The next revision is not told."""
        self._missing = True

    def next(self) -> list[Listed | Changed | Interrupted]:
        """The next thing to be told, in parts; nothing where there is nothing new."""
        cluster = self._cluster
        if cluster.revoked:
            self._cut = True
            return [Interrupted(Refused("permission denied"))]
        if self._listed and self.era != cluster.era:
            self._listed = False
            return [Interrupted(Replaced("another history") if self._knows else Unavailable("lost"))]
        if not self._listed:
            return self._list()
        if self._cut:
            return self._resume()
        return self._follow()

    def _list(self) -> list[Listed | Changed | Interrupted]:
        cluster = self._cluster
        found = [Written(kv) for key, kv in sorted(cluster.store.items()) if key.startswith(self.prefix)]
        self._listed, self._cut, self._knows = True, False, bool(found) and not self._live
        self.era, self.position = cluster.era, cluster.revision
        if len(found) < 2 or cluster.rng.random() < 0.5:
            return [Listed(found, self.position)]
        first = Listed(found[:1], self.position, more=True)
        if cluster.rng.random() < 0.3:
            self._listed = False
            return [first, Interrupted(Unavailable("cut between pages"))]
        return [first, Listed(found[1:], self.position)]

    def _resume(self) -> list[Listed | Changed | Interrupted]:
        self._cut = False
        if not self._knows:
            self._listed = False
            return [Interrupted(Unavailable("lost"))]
        if self.position < self._cluster.compacted:
            self._listed = False
            return [Interrupted(Compacted("compacted"))]
        return [Interrupted(Unavailable("lost")), Changed([], self.position)]

    def _follow(self) -> list[Listed | Changed | Interrupted]:
        later = [(at, e) for at, e in self._cluster.history if at > self.position and _key(e).startswith(self.prefix)]
        if not later:
            return []
        self._knows = self._knows or not self._live
        self.position = later[0][0]
        if self._missing:
            self._missing = False
            return []
        events = [event for at, event in later if at == self.position]
        if len(events) < 2 or self._cluster.rng.random() < 0.5:
            return [Changed(events, self.position)]
        return [Changed(events[:1], self.position, more=True), Changed(events[1:], self.position)]


def _key(event: Written | Deleted) -> bytes:
    return event.key if isinstance(event, Deleted) else event.kv.key
