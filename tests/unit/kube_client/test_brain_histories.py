"""The brain against a simple API server that forgets, fails and starts anew: what was told ends as what there is."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from clustermesh.errors import DecodeError, Unavailable
from clustermesh.kube.brain import Brain
from clustermesh.kube.faults import Expired, Unauthorized
from clustermesh.kube.hearing import (
    Abandoned,
    Bad,
    Command,
    Compared,
    Due,
    Ended,
    Entry,
    Event,
    Failed,
    Gone,
    Interrupted,
    List,
    Listed,
    Opened,
    Page,
    Probed,
    Put,
    Received,
    Started,
    Tell,
    Wait,
    Watch,
)

KEYS = "abcde"


class Server:
    """Objects with a history; `compact` forgets it, `restore` begins another one."""

    def __init__(self) -> None:
        self.version, self.compacted = 1, 0
        self.objects: dict[str, str] = {}
        self._history: list[tuple[int, Entry[str, str]]] = []
        self._snapshots: dict[int, dict[str, str]] = {1: {}}

    def change(self, key: str, value: str | None) -> None:
        self.version += 1
        if value is None:
            if self.objects.pop(key, None) is not None:
                self._history.append((self.version, Gone(key)))
        else:
            self.objects[key] = value
            self._history.append((self.version, Put(key, value)))
        self._snapshots[self.version] = dict(self.objects)

    def lose(self) -> None:
        """The last event is told to nobody who has not heard it yet."""
        del self._history[-1:]

    def compact(self) -> None:
        self.compacted = self.version

    def restore(self, version: int) -> None:
        version = max(version, min(self._snapshots))
        self.objects = dict(self._snapshots[version])
        self.version = self.compacted = version
        self._history = []
        self._snapshots = {version: dict(self.objects)}

    def page(self, limit: int, token: str, cached: bool) -> Page[str, str] | Failed:
        """What is asked of its cache is as old as can be."""
        newest = min(v for v in self._snapshots if v >= self.compacted) if cached else self.version
        version, _, after = token.partition("/") if token else (str(newest), "", "")
        if int(version) < self.compacted or int(version) not in self._snapshots:
            return Failed(Expired("compacted"))
        snapshot = self._snapshots[int(version)]
        keys = sorted(key for key in snapshot if key > after)
        more = f"{version}/{keys[limit - 1]}" if len(keys) > limit else ""
        return Page([Put(key, snapshot[key]) for key in keys[:limit]], version, more)

    def since(self, version: int) -> Received[str, str] | Failed | None:
        if version < self.compacted:
            return Failed(Expired("compacted"))
        news = [(at, entry) for at, entry in self._history if at > version]
        return Received([entry for _, entry in news], str(news[-1][0])) if news else None


class Shell:
    """Does what the brain commands; `state` is what it told."""

    def __init__(self, server: Server) -> None:
        self.server, self.brain = server, Brain[str, str](limit=2, rng=random.Random(1))
        self.state: dict[str, str] = {}
        self.listed = False
        self.now = 0.0
        self.request: Command[str, str] | None = None
        self.at = 0  # how far the open watch has told
        self.watching = False
        self.comparing: List | None = None
        self.hear(Started())

    def hear(self, event: Event[str, str]) -> None:
        self.now += 1.5
        for command in self.brain.hear(event, self.now):
            match command:
                case List() if isinstance(event, Due | Compared):
                    self.comparing = command
                case Wait(seconds):
                    assert seconds > 0
                case Tell(Interrupted()):
                    self.watching = False
                case Tell(item):
                    self.listed |= isinstance(item, Listed)
                    assert self.listed, "nothing is told before the first complete list"
                    self._take(item.changes)
                case request:
                    self.request, self.watching = request, False

    def _take(self, changes: dict[str, str | None]) -> None:
        for key, value in changes.items():
            if value is None:
                del self.state[key]  # told gone only what was told there
            else:
                assert self.state.get(key) != value, "told twice"
                self.state[key] = value

    def step(self) -> None:
        """The server does what was asked, or tells what the watch has not told."""
        match self.request:
            case List(limit, token, _, cached):
                self.hear(self.server.page(limit, token, cached))
            case Watch(version) if not self.watching:
                self.watching, self.at = True, int(version)
                self.hear(Opened())
            case Watch():
                news = self.server.since(self.at)
                if news is not None:
                    self.at = int(news.version) if isinstance(news, Received) else self.at
                    self.hear(news)

    def compare(self) -> None:
        """Begin a comparison, or go on with it."""
        before, self.comparing = self.comparing, None
        if before is None:
            self.hear(Due())
        elif isinstance(page := self.server.page(before.limit, before.next, cached=False), Failed):
            self.hear(Abandoned())
        else:
            self.hear(Compared(page.entries, page.version, page.next))

    def bookmark(self) -> None:
        """The watch has nothing left to tell."""
        if self.watching and self.server.since(self.at) is None:
            self.at = self.server.version
            self.hear(Received([], str(self.server.version)))

    def probe(self) -> None:
        """Before anything is written to what was restored; later nobody could tell, as Kubernetes' manual says."""
        if isinstance(self.request, Watch):
            if not self.watching:
                self.step()
            self.hear(Probed(str(self.server.version)))


ACTIONS = st.one_of(
    st.tuples(st.just("change"), st.sampled_from(KEYS), st.one_of(st.none(), st.sampled_from("123"))),
    st.tuples(st.sampled_from(["step", "step", "compact", "cut", "unauthorized", "ended"])),
    st.tuples(st.sampled_from(["compare", "bookmark"])),
    st.tuples(st.just("restore"), st.integers(1, 3)),
)


RESTORED_AFTER_A_COMPARISON = [("compare",), ("change", "a", "1"), ("compare",), ("restore", 1)]


@example([("step",), ("step",), *RESTORED_AFTER_A_COMPARISON])
@given(st.lists(ACTIONS, max_size=60))
def test_what_was_told_ends_as_what_there_is(actions: list[tuple[str, ...]]) -> None:
    server = Server()
    shell = Shell(server)
    play(shell, server, actions)
    server.change("z", "end")
    for _ in range(20):
        shell.step()
    assert shell.state == server.objects == shell.brain.known
    if not any(action[0] == "restore" for action in actions):
        assert not shell.brain.drift, "nothing was lost"


@given(st.lists(ACTIONS.filter(lambda action: action[0] != "restore"), max_size=30), st.integers(1, 3))
def test_what_the_watch_has_lost_is_found(actions: list[tuple[str, ...]], lost: int) -> None:
    server = Server()
    shell = Shell(server)
    play(shell, server, actions)
    for _ in range(20):
        shell.step()
    for number in range(lost):
        server.change(KEYS[number], None if KEYS[number] in server.objects else "lost")
        server.lose()
    for _ in range(20):
        shell.compare()
        shell.bookmark()
    assert shell.state == server.objects == shell.brain.known
    assert shell.brain.drift == lost


def play(shell: Shell, server: Server, actions: list[tuple[str, ...]]) -> None:
    for action in actions:
        match action:
            case ("change", key, value):
                server.change(key, value)
            case ("restore", back):
                server.restore(server.version - int(back))
                shell.probe()
            case ("compact",):
                server.compact()
            case ("cut",):
                shell.hear(Failed(Unavailable("cut")))
            case ("unauthorized",):
                shell.hear(Failed(Unauthorized("expired")))
            case ("ended",) if shell.watching:
                shell.hear(Ended())
            case ("compare",):
                shell.compare()
            case ("bookmark",):
                shell.bookmark()
            case _:
                shell.step()


def test_an_object_without_a_name_may_be_any_that_a_comparison_does_not_find() -> None:
    for entries, gone in (((), True), ((Bad(None, DecodeError("thing", "?", "must be one")),), False)):
        brain: Brain[str, int] = Brain()
        for event in (Started(), Page((Put("a", 1),), "5", ""), Opened(), Due(), Compared(entries, "6", "")):
            brain.hear(event, 0.0)
        brain.hear(Received((), "7"), 1.0)
        assert ("a" not in brain.known) is gone
