"""An entry that moves from one table of a cluster to its twin is there all along, whichever tells of it first."""

from __future__ import annotations

import random

import pytest

from clustermesh.errors import Invalid
from clustermesh.mesh import messages
from clustermesh.mesh.brain import ReaderBrain
from clustermesh.mesh.reading import MOST_SOUGHT
from clustermesh.mesh.tables import Table, Twin
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys

KINDS = ("told", "own")
SYNCED = b"synced/alpha/tables/"
OTHER = {"told": "own", "own": "told"}


def key_of(kind: str, name: str) -> bytes:
    return f"{kind}/{name}".encode()


def _decode(key: bytes, value: bytes, _cluster: Cluster) -> bytes:
    if key.startswith(b"own/unreadable"):
        raise Invalid("value", value, "must be of a version that is known here")
    return value


TABLES = [
    Table(
        kind=kind,
        prefix=f"{kind}/".encode(),
        canary=SYNCED + kind.encode(),
        name_of=lambda key: key.decode().partition("/")[2],
        decode=_decode,
        twin=Twin(OTHER[kind], lambda name: (key_of("told", name), key_of("own", name))),
    )
    for kind in KINDS
]


class World:
    """A writer that is proven, an etcd that is a dict, and a watch of each table that tells in its own time."""

    def __init__(self) -> None:
        self.revision = 1
        self.store: dict[bytes, int] = {}  # since which revision each is there
        self.history: list[tuple[int, Written | Deleted]] = []
        self.position = dict.fromkeys(KINDS, 0)
        self.born: dict[str, int] = {}  # since when each name is somewhere
        self.told = set[str]()  # names that were heard of since
        self.held: dict[str, dict[str, bytes]] = {kind: {} for kind in KINDS}
        self.asked = list[tuple[bytes, ...]]()
        tables = {**self.held, "refused": {}, "unnamed": {}, "short": {}, "dropped": {}}
        self.brain = ReaderBrain("alpha", lambda _n, _c: TABLES, lambda kind: tables[kind].keys())

    def begin(self) -> None:
        self.hear(messages.Connected())
        self.hear(messages.Configured(ClusterConfig(id=1, synced_canaries=True)))
        canaries = [Written(KeyValue(SYNCED + kind.encode(), b"", 1, 7)) for kind in KINDS]
        self.hear(messages.Heard(SYNCED, Listed(canaries, 1)))
        self.hear(messages.Heard(keys.HEARTBEAT, Changed([Written(KeyValue(keys.HEARTBEAT, b"", 1, 7))], 1)))

    def write(self, **changes: str | None) -> None:
        """`name` stands in the table of that kind, and in no other, or nowhere. Adds come before deletions."""
        for name, kind in changes.items():
            self.born.setdefault(name, self.revision + 1)
            for each in (*([kind] if kind else []), *(other for other in KINDS if other != kind)):
                if (each == kind) != (key_of(each, name) in self.store):
                    self._write(key_of(each, name), there=each == kind)
            if kind is None:
                self.told.discard(name)
                del self.born[name]

    def _write(self, key: bytes, *, there: bool) -> None:
        self.revision += 1
        if there:
            self.store[key] = self.revision
            self.history.append((self.revision, Written(KeyValue(key, b"", self.revision, 7))))
        else:
            del self.store[key]
            self.history.append((self.revision, Deleted(key, self.revision)))

    def tell(self, kind: str) -> bool:
        """What is next in one table; whether there was something."""
        prefix = f"{kind}/".encode()
        later = [(at, event) for at, event in self.history if at > self.position[kind] and _of(event, prefix)]
        if not later:
            return False
        self.position[kind], event = later[0]
        self.hear(messages.Heard(prefix, Changed([event], later[0][0])))
        return True

    def list(self, kind: str) -> None:
        """The watch was cut for long."""
        self.position[kind], prefix = self.revision, f"{kind}/".encode()
        found = [Written(KeyValue(key, b"", at, 7)) for key, at in self.store.items() if key.startswith(prefix)]
        self.hear(messages.Heard(prefix, Interrupted(OSError("cut"))))  # type: ignore[arg-type]
        self.hear(messages.Heard(prefix, Listed(found, self.revision)))

    def attest(self) -> bool:
        if not self.asked:
            return False
        witnesses = dict.fromkeys([keys.HEARTBEAT, *(SYNCED + kind.encode() for kind in KINDS)], 1)
        found = {key: at for key, at in (self.store | witnesses).items() if key in self.asked[0]}
        self.asked.pop(0)
        self.hear(messages.Attested(found, self.revision))
        return True

    def settle(self) -> None:
        while any([*map(self.tell, KINDS), self.attest()]):
            pass

    def hear(self, event: messages.Event) -> None:
        for command in self.brain.hear(event, 1000.0):
            match command:
                case messages.Put(kind, name, value, revision):
                    self.held[kind][name] = value
                    if not 0 < revision < self.born.get(name, self.revision + 1):
                        self.told.add(name)
                case messages.Remove(kind, name, _):
                    self.held[kind].pop(name, None)
                case messages.Attest(asked):
                    assert len(asked) <= 100, "etcd answers for so many at once"
                    self.asked.append(asked)
        there = {key.decode().partition("/")[2] for key in self.store}
        assert self.told & there <= set().union(*self.held.values())


def _of(event: Written | Deleted, prefix: bytes) -> bool:
    return (event.key if isinstance(event, Deleted) else event.kv.key).startswith(prefix)


@pytest.fixture
def world() -> World:
    world = World()
    world.write(web="told")
    world.begin()
    for kind in KINDS:
        world.list(kind)
    return world


@pytest.mark.parametrize("first", ["tell", "list"])
def test_what_is_gone_from_one_table_is_kept_until_it_is_heard_of_in_the_other(world: World, first: str) -> None:
    world.write(web="own")
    getattr(world, first)("told")
    while world.attest():
        assert "web" in world.held["told"]
    world.tell("own")
    world.settle()
    assert (set(world.held["told"]), set(world.held["own"])) == (set(), {"web"})


def test_what_is_in_neither_goes(world: World) -> None:
    world.write(web=None)
    world.settle()
    assert world.held == {"told": {}, "own": {}}


def test_more_go_and_move_than_are_sought_at_once(world: World) -> None:
    moving = [f"moving{number}" for number in range(2 * MOST_SOUGHT)]
    going = [f"going{number}" for number in range(2 * MOST_SOUGHT + 7)]
    world.write(**dict.fromkeys([*moving, *going], "told"))
    world.settle()
    world.write(**dict.fromkeys(moving, "own"), **dict.fromkeys(going))
    world.list("told")
    world.settle()
    assert (set(world.held["told"]), set(world.held["own"])) == ({"web"}, set(moving))


@pytest.mark.parametrize("count", [1, MOST_SOUGHT, 3 * MOST_SOUGHT + 1])
def test_what_moved_to_a_value_that_cannot_be_read_is_kept_and_holds_up_nothing(world: World, count: int) -> None:
    unreadable = [f"unreadable{number}" for number in range(count)]
    world.write(**dict.fromkeys(unreadable, "told"))
    world.settle()
    world.write(**dict.fromkeys(unreadable, "own"))
    world.settle()
    assert world.held == {"told": dict.fromkeys(["web", *unreadable], b""), "own": {}}
    world.write(web=None)
    world.settle()
    assert world.held == {"told": dict.fromkeys(unreadable, b""), "own": {}}
    world.write(**dict.fromkeys(unreadable))
    world.settle()
    assert world.held == {"told": {}, "own": {}}


@pytest.mark.parametrize("count", [1, MOST_SOUGHT, 3 * MOST_SOUGHT + 1])
def test_all_that_moved_and_cannot_be_read_is_looked_for_in_turn(world: World, count: int) -> None:
    unreadable = [f"unreadable{number}" for number in range(count)]
    world.write(**dict.fromkeys(unreadable, "told"))
    world.settle()
    world.write(**dict.fromkeys(unreadable, "own"))
    world.settle()
    world.write(**{unreadable[-1]: None})
    for number in range(4):
        world.write(**{f"other{number}": "told"})  # with whatever is heard some are looked for
        world.settle()
    assert unreadable[-1] not in world.held["told"]
    assert world.held["told"].keys() >= set(unreadable[:-1])


@pytest.mark.parametrize("seed", range(50))
def test_no_name_is_missing_while_it_is_somewhere_and_the_end_is_the_truth(seed: int) -> None:
    world, rng = World(), random.Random(seed)
    world.begin()
    for kind in KINDS:
        world.list(kind)
    for _ in range(360):
        kind, name = rng.choice(KINDS), rng.choice("ab")
        match rng.choice(["write", "tell", "list", "attest"]):
            case "write":
                world.write(**{name: rng.choice([kind, kind, None])})
            case "tell":
                world.tell(kind)
            case "list":
                world.list(kind)
            case _:
                world.attest()
    world.settle()
    assert {key_of(kind, name) for kind in KINDS for name in world.held[kind]} == world.store.keys()
