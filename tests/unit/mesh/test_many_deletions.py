"""What many deletions that come one by one ask of the reader of a cluster, and of its etcd."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any

from clustermesh.mesh.brain import ReaderBrain
from clustermesh.mesh.messages import Attest, Attested, Command, Configured, Connected, Event, Heard, Put, Remove
from clustermesh.mesh.tables import Table
from clustermesh.model import ClusterConfig
from clustermesh.store.follow import Changed, Deleted, Listed
from clustermesh.store.follow import Put as Written
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

MOST = 128  # operations that etcd takes in one transaction, unless it was told otherwise
KINDS = ("a", "b", "c")
CONFIG = ClusterConfig(id=2, synced_canaries=True)


class Counted(dict[Any, Any]):
    """A dict that counts how many of its items were looked at."""

    looked = 0

    def items(self) -> ItemsView[Any, Any]:
        def each() -> Any:
            for item in dict.items(self):
                self.looked += 1
                yield item

        return each()  # type: ignore[return-value]


class Peer:
    """A cluster whose writer is proven, and that has `count` entries of each kind."""

    def __init__(self, count: int) -> None:
        self.held: dict[str, set[Any]] = {kind: set() for kind in (*KINDS, "refused", "unnamed", "short", "dropped")}
        self.brain = ReaderBrain("beta", lambda _n, _c: list(map(make_table, KINDS)), self.held.__getitem__)
        self.revision = 6
        self.question: Attest | None = None
        self.hear(Connected(), Configured(CONFIG))
        canaries = [written(canary(kind)) for kind in KINDS]
        self.hear(Heard(b"synced/beta/", Listed(canaries, 5)))
        for kind in KINDS:
            self.hear(Heard(prefix(kind), Listed([written(key(kind, n)) for n in range(count)], 6)))
        self.hear(Heard(keys.HEARTBEAT, Changed([written(keys.HEARTBEAT)], 7)))

    def hear(self, *events: Event) -> None:
        for event in events:
            for command in self.brain.hear(event, 1.0):
                self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case Put(kind, name):
                self.held[kind].add(name)
            case Remove(kind, name):
                self.held[kind].discard(name)
            case Attest():
                self.question = command

    def delete(self, kind: str, numbers: range) -> None:
        """Each in a revision of its own."""
        for number in numbers:
            self.revision += 1
            self.hear(Heard(prefix(kind), Changed([Deleted(key(kind, number), self.revision)], self.revision)))

    def answer(self) -> Attest:
        """All witnesses stand, and no lease has ended."""
        assert self.question is not None
        asked, self.question = self.question, None
        standing = dict.fromkeys((keys.HEARTBEAT, *map(canary, KINDS)), 1)
        self.hear(Attested(standing, self.revision, frozenset()))
        return asked


def make_table(kind: str) -> Table:
    return Table(
        kind=kind, prefix=prefix(kind), canary=canary(kind), name_of=lambda key: key, decode=lambda _k, v, _c: v
    )


def prefix(kind: str) -> bytes:
    return b"%s/" % kind.encode()


def canary(kind: str) -> bytes:
    return b"synced/beta/" + kind.encode()


def key(kind: str, number: int) -> bytes:
    return prefix(kind) + b"%06d" % number


def written(key: bytes) -> Written:
    return Written(KeyValue(key=key, value=b"", mod_revision=4, lease=7))


def test_what_one_answer_costs_does_not_grow_with_what_waits() -> None:
    peer = Peer(8_000)
    peer.delete("a", range(8_000))
    peer.answer()
    (reading,) = [each for each in peer.brain._tables.values() if each.gone]
    waiting = reading.gone = Counted(reading.gone)
    peer.answer()
    assert len(waiting) > 5_000
    assert waiting.looked < 5_000


def test_deletions_of_all_tables_are_asked_about_together_until_all_are_believed() -> None:
    peer, asked = Peer(200), list[Attest]()
    for kind in KINDS:
        peer.delete(kind, range(200))
    while peer.question is not None:
        asked.append(peer.answer())
    assert max(len(each.deletions) for each in asked) <= MOST, "in one transaction"
    assert {deleted[:2] for deleted in asked[1].deletions.values()} == set(map(prefix, KINDS)), "none waits for another"
    assert len(asked) <= 10, "not one by one"
    assert not any(peer.held[kind] for kind in KINDS)
