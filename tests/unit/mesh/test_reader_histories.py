"""Whatever befalls a cluster, its reader takes away only what was not the cluster's any more, and ends at the truth."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sim_cluster import KINDS, SYNCED, SimCluster, SimMirror, SimStream

from clustermesh.mesh import messages
from clustermesh.mesh.brain import Phase, ReaderBrain
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import Table
from clustermesh.model import ClusterConfig
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import DigestOf, Renewals
from clustermesh.wire import keys

TABLES = [
    Table(
        kind=kind,
        prefix=f"{kind}/".encode(),
        canary=SYNCED + kind.encode(),
        name_of=lambda key: key,
        decode=lambda _key, value, _cluster: value,
    )
    for kind in KINDS
]


class World:
    """A cluster, a reader's brain, its streams, and a sink that does what it is told, and looks what it is."""

    def __init__(self, seed: int, cluster: type[SimCluster] = SimCluster) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.cluster = cluster(self.rng)
        self.held: dict[str, dict[bytes, bytes]] = {kind: {} for kind in KINDS}
        self.streams: dict[bytes, SimStream] = {}
        self.asked = False
        self.attesting: messages.Attest | None = None
        self.auditing: tuple[DigestOf, ...] = ()
        self.told: dict[bytes, int] = {}  # the lease of each key, as it was heard last
        self.vanished: dict[bytes, tuple[int, int]] = {}  # when each name was last told, or seen in a list, to be gone
        self.restart()

    def restart(self) -> None:
        """The agent is started anew, with what it had kept on disk."""
        held = {**self.held, "refused": {}, "unnamed": {}, "short": {}, "dropped": {}}
        terms = messages.Terms(audit=100.0)
        self.brain = ReaderBrain("beta", lambda _n, _c: TABLES, lambda kind: held[kind].keys(), terms, rng=self.rng)
        self.streams, self.asked, self.attesting, self.auditing = {}, False, None, ()
        self.hear(messages.Restored(ClusterConfig(id=2)))

    # -- what may happen -----------------------------------------------------------------------------------------------

    def act(self, verb: str) -> None:  # noqa: PLR0912 one line each
        cluster = self.cluster
        match verb:
            case "change" | "work" | "compact":
                getattr(cluster, verb)()
            case "beat" | "come_back" | "empty" | "die" | "end_lease" | "promote":
                getattr(cluster, verb)(self.now)
            case "revoke_lease":
                cluster.revoke_lease(self.now, self.told)
            case "configure":
                mcs = self.rng.choice([None, False, True])
                cluster.config = replace(cluster.config, service_exports_enabled=mcs)
            case "revoke":
                cluster.revoked = not cluster.revoked
            case "cut":
                for stream in self.streams.values():
                    if self.rng.random() < 0.5:
                        stream.cut()
            case "restart":
                self.restart()
            case "keep_silent":
                self.keep_silent()
            case "tell":
                self.tell()
            case "wait":
                self.wait(self.rng.choice([1.0, 5.0, 20.0, 70.0, 310.0]))
            case "sleep":
                self.sleep()
            case "decline":
                self.decline()
            case "wipe":
                self.wipe()
            case "hang":
                self.hang()

    def tell(self) -> None:
        """One step of the shell: an attempt begins, an answer comes, or a stream tells what is next."""
        if self.brain.phase is Phase.IDLE:
            self.hear(messages.Connected())
        elif self.asked and self.rng.random() < 0.5:
            self.asked = False
            lost = self.cluster.revoked or self.rng.random() < 0.1
            self.hear(messages.Unread("no") if lost else messages.Configured(self.cluster.config))
        elif self.attesting and self.rng.random() < 0.5:
            self.attest()
        elif self.auditing and self.rng.random() < 0.5:
            self.answer()
        elif self.streams:
            self.tell_of(self.rng.choice(sorted(self.streams)))

    def attest(self) -> None:
        wanted, self.attesting = self.attesting, None
        assert wanted is not None
        if self.cluster.revoked or self.rng.random() < 0.1:
            self.hear(messages.Attested(None))
            return
        created = {key: self.cluster.created[key] for key in wanted.keys if key in self.cluster.created}
        ends = self.cluster.lease_ends(wanted.deletions, wanted.living)
        renewals = Renewals(self.cluster.renewals(wanted.leases, self.now), self.cluster.term)
        self.hear(messages.Attested(created, self.cluster.revision, ends, renewals))

    def answer(self) -> None:
        questions, self.auditing = self.auditing, ()
        lost = self.cluster.revoked or self.rng.random() < 0.1
        digests = {each.prefix: self.cluster.digest(each) for each in questions}
        readable = {prefix: digest for prefix, digest in digests.items() if digest is not None}
        self.hear(messages.Audited(None if lost or len(readable) < len(digests) else readable))

    def tell_of(self, prefix: bytes) -> bool:
        """Whether there was something to tell."""
        stream = self.streams[prefix]
        parts = stream.next()
        for part in parts:
            if self.streams.get(prefix) is stream:
                self.note(prefix, part, (stream.era, stream.position))
                self.hear(messages.Heard(prefix, part))
        return bool(parts)

    def note(self, prefix: bytes, part: Listed | Changed | Interrupted, moment: tuple[int, int]) -> None:
        if not isinstance(part, Interrupted):
            self.told |= {event.kv.key: event.kv.lease for event in part.events if isinstance(event, Written)}
        if isinstance(part, Changed):
            self.vanished.update((event.key, moment) for event in part.events if isinstance(event, Deleted))
        elif isinstance(part, Listed):
            held = [name for table in self.held.values() for name in table if name.startswith(prefix)]
            self.vanished.update((name, moment) for name in held if name not in self.cluster.store)

    def wait(self, seconds: float) -> None:
        """Time passes, and nothing is late by more than a few seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 5.0)
            self.cluster.pass_time(self.now)
            if (due := self.brain.due()) is not None and due <= self.now:
                self.hear(messages.Tick())
            if self.attesting:
                self.attest()
            if self.auditing:
                self.answer()
            for prefix in self.rng.sample(sorted(self.streams), len(self.streams)):
                while prefix in self.streams and not self.cluster.revoked and self.tell_of(prefix):
                    pass

    def sleep(self) -> None:
        """This machine is suspended: the world goes on, what it says waits."""
        for _ in range(20):
            self.now += 60.0
            self.cluster.pass_time(self.now)
            self.act(self.rng.choice(["change", "work", "die", "end_lease", "end_lease", "come_back", "compact"]))
        for _ in range(8):
            self.tell()

    def decline(self) -> None:
        """The writer dies; before its leases end the agent may be started anew, and then it may come back in time."""
        self.cluster.die(self.now)
        self.wait(310.0)
        for verb in self.rng.sample(["restart", "come_back", "cut", "wait"], 2):
            self.act(verb)
        for _ in range(12):
            self.tell()
        self.act("end_lease")
        for _ in range(8):
            self.tell()
        if self.rng.random() < 0.5:
            self.wait(70.0)  # somebody else may beat on

    @property
    def all_held(self) -> dict[bytes, bytes]:
        return {key: value for table in self.held.values() for key, value in table.items()}

    def keep_silent(self) -> None:
        """What changes next in the tables is not told."""
        self.wait(self.rng.choice([0.0, 10.0, 60.0]))
        for stream in self.streams.values():
            if not stream.prefix.startswith((SYNCED, keys.HEARTBEAT)):
                stream.miss()
        self.cluster.change()
        self.cluster.finish()
        for _ in range(self.rng.randrange(10)):
            self.tell()

    def hang(self) -> None:
        """A mirror hangs, some of its leases end, and it goes on, while the agent may be started anew."""
        assert isinstance(self.cluster, SimMirror)
        self.cluster.hang(self.now)
        self.wait(200.0)
        self.act("end_lease")
        for verb in self.rng.sample(["restart", "wait", "end_lease"], 2):
            self.act(verb)
        self.wait(self.rng.choice([0.0, 70.0]))

    def wipe(self) -> None:
        """All keys go at once, soon after a beat was heard."""
        self.wait(10.0)
        self.cluster.beat(self.now)
        for _ in range(8):
            self.tell()
        if self.rng.random() < 0.3:
            self.act("cut")
        self.cluster.wipe(self.now)
        for _ in range(30):
            self.tell()
            if self.rng.random() < 0.3:
                self.cluster.work()

    # -- what is done --------------------------------------------------------------------------------------------------

    def hear(self, event: messages.Event) -> None:
        for command in self.brain.hear(event, self.now):
            match command:
                case messages.Put(kind, name, value, _):
                    self.held[kind][name] = value
                case messages.Remove(kind, name, _):
                    moment = self.vanished[name]
                    held = name in self.held[kind]  # what was never heard of may be told to be gone
                    assert not held or not self.cluster.has_had(name, moment), f"{name!r} was still there at {moment}"
                    self.held[kind].pop(name, None)
                case messages.Follow(prefix, live):
                    self.streams[prefix] = SimStream(self.cluster, prefix, live)
                case messages.Attest():
                    self.attesting = command
                case messages.Audit(questions):
                    self.auditing = questions
                case messages.Ask():
                    self.asked = True
                case messages.Again():
                    self.streams, self.asked, self.attesting, self.auditing = {}, False, None, ()
                    break
                case messages.Drain():
                    raise AssertionError("nobody has a reason to")

    def settle(self) -> None:
        """All is well at last, and quiet."""
        self.cluster.revoked = False
        self.wait(400.0 if isinstance(self.cluster, SimMirror) else 0.0)  # it may hang
        self.cluster.come_back(self.now)
        for _ in range(50):
            for _ in range(10):
                self.tell()
            self.wait(10.0)
        assert self.brain.session.state is State.FRESH, self.brain.session.error
        assert self.all_held == self.cluster.truth


ACTIONS = [
    *("tell",) * 8,
    *("work", "wait", "change", "end_lease") * 3,
    *("die", "come_back", "beat", "cut", "restart") * 2,
    *("compact", "empty", "wipe", "configure", "revoke", "sleep", "decline", "promote"),
    *("keep_silent", "revoke_lease") * 2,
]


@settings(max_examples=600, deadline=None)
@example(0, ["wipe", "keep_silent", "empty", "tell", "tell", "wait"])
@given(st.integers(0, 1 << 30), st.lists(st.sampled_from(ACTIONS), max_size=80))
def test_nothing_is_taken_away_that_was_still_there_and_the_end_is_the_truth(seed: int, actions: list[str]) -> None:
    world = World(seed)
    for verb in actions:
        world.act(verb)
    world.settle()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.sampled_from([*ACTIONS, "hang", "hang"]), max_size=80))
def test_no_copy_is_taken_away_that_was_still_there_and_the_end_is_the_truth(seed: int, actions: list[str]) -> None:
    world = World(seed, SimMirror)
    for verb in actions:
        world.act(verb)
    world.settle()


CHANGES = 4  # about one deletion among them


def make_busy(world: World, rate: int, seconds: int) -> None:
    """So many deletions a second."""
    for _ in range(seconds * rate):
        for _ in range(CHANGES):
            world.cluster.change()
        world.wait(1 / rate)


def follow_from_the_start(seed: int) -> World:
    world = World(seed)
    for _ in range(60):
        world.tell()
    return world


def assert_fresh_and_true(world: World) -> None:
    assert world.brain.session.state is State.FRESH, world.brain.session.error
    world.cluster.finish()
    world.wait(35.0)  # an answer that was lost is asked for again
    assert world.all_held == world.cluster.truth


@pytest.mark.long
@pytest.mark.parametrize("rate", [1, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_tables_that_never_rest_are_believed_as_any(rate: int, seed: int) -> None:
    world = follow_from_the_start(seed)
    make_busy(world, rate, 200)
    assert_fresh_and_true(world)
