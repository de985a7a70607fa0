"""A reader's conversations with its cluster, as anyone can read them in transcripts/ (its README is the grammar)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.errors import Invalid, Refused, Unavailable
from clustermesh.mesh import messages
from clustermesh.mesh.authority import Limits
from clustermesh.mesh.brain import Phase, ReaderBrain
from clustermesh.mesh.tables import Table
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.faults import Compacted, Oversized, Replaced
from clustermesh.store.follower import Changed, Deleted, Interrupted, Listed
from clustermesh.store.follower import Put as Written
from clustermesh.store.operations import Digest, KeyValue, Renewals
from clustermesh.wire import keys

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
FAILURES = {
    "lost": Unavailable("lost"),
    "refused": Refused("permission denied"),
    "oversized": Oversized("too large"),
    "compacted": Compacted("compacted"),
    "replaced": Replaced("another history"),
}
SYNCED = b"synced/beta/tables/"


def make_table(kind: str) -> Table:
    required = kind != "stamps"
    return Table(
        kind=kind,
        prefix=f"{kind}/".encode(),
        canary=SYNCED + kind.encode() if required else None,
        name_of=_name_of,
        decode=_decode,
        required=required,
    )


def _name_of(key: bytes) -> str:
    name = key.decode().partition("/")[2]
    if not name.isalnum():
        raise Invalid("key", name, "must be a name")
    return name


def _decode(_key: bytes, value: bytes, cluster: Cluster) -> str:
    if value == b":bad":
        raise Invalid("value", value, "cannot be decoded")
    if value == b":bug":
        raise ZeroDivisionError
    if value == b":numbering":
        return f"by {cluster.max_clusters}"
    return value.decode()


class NoJitter(random.Random):
    def uniform(self, a: float, _b: float) -> float:
        return a


class Play:
    """A brain, its clock, and what a sink holds that does what it is told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.held: dict[str, dict[Any, Any]] = {
            "nodes": {},
            "services": {},
            "stamps": {},
            "refused": {},
            "unnamed": {},
            "short": {},
            "dropped": {},
        }
        tables = [make_table(kind) for kind in ("nodes", "services", "stamps")]
        terms = messages.Terms(limits=Limits(value_bytes=10), audit=1e9)
        self.brain = ReaderBrain(
            "beta", lambda _n, _c: tables, lambda kind: self.held[kind].keys(), terms, rng=NoJitter()
        )

    def say(self, text: str) -> list[str]:
        """Let `text` be heard; what the brain wants done, and what it wanted while time passed."""
        verb, *words = text.split()
        commands: list[messages.Command] = []
        if verb == "sleep":
            self.now += float(words[0])
        elif verb == "terms":
            self.brain.terms = replace(
                self.brain.terms, **{each.partition("=")[0]: float(each.partition("=")[2]) for each in words}
            )
        elif verb in ("room", "dropped"):
            self.held["short" if verb == "room" else verb][words[0]] = None
        elif verb == "wait":
            end = self.now + float(words[0])
            while (due := self.brain.due()) is not None and due <= end:
                self.now = max(self.now, due)
                commands += self._do(messages.Tick())
            self.now = end
        else:
            commands += self._do(self._event(verb, words))
        return _shown(commands)

    def _do(self, event: messages.Event) -> Sequence[messages.Command]:
        commands = self.brain.hear(event, self.now)
        for command in commands:
            match command:
                case messages.Put(kind, name, value, _):
                    self.held[kind][name] = value
                case messages.Remove(kind, name, _):
                    self.held[kind].pop(name, None)
                case messages.Refuse(what, why):
                    self.held["refused"][what] = why
                case messages.Accept(what):
                    self.held["refused"].pop(what, None)
                case messages.Relisting(kind, whole):
                    if not whole:
                        del self.held["short"][kind]
                case messages.Withdraw(kind):
                    self.held[kind].clear()
                case messages.Drain():
                    for table in self.held.values():
                        table.clear()
                case _:
                    pass
        return commands

    def _event(self, verb: str, words: list[str]) -> messages.Event:  # noqa: PLR0911, PLR0912 one line of the grammar each
        match verb, words:
            case "connect", []:
                return messages.Connected()
            case "removed", []:
                return messages.Removed()
            case "broken", why:
                return messages.Broken(" ".join(why))
            case "restored", [cluster_id, *pairs]:
                self.held["services"] = dict(pair.split("=") for pair in pairs)
                return messages.Restored(_config([cluster_id]))
            case "witnesses", ["unread"]:
                return messages.Attested(None)
            case "witnesses", [revision, *pairs]:
                created = dict(pair.split("=") for pair in pairs)
                ends = frozenset(map(int, created.pop("ends", "").split(",") if "ends" in created else ()))
                ages = [each.split("@") for each in created.pop("renewed", "").split(",") if each]
                term = int(created.pop("term", 1))
                renewals = Renewals({int(lease): float(age) for lease, age in ages}, term)
                found = {_place(key): int(at) for key, at in created.items()}
                return messages.Attested(found, int(revision), ends, renewals)
            case "digests", ["unread"]:
                return messages.Audited(None)
            case "digests", [kind, revision, number, *written]:
                names = dict(each.split("@") for each in written)
                when = {f"{kind}/{name}".encode(): int(at) for name, at in names.items()}
                return messages.Audited({f"{kind}/".encode(): Digest(int(revision), int(number), when)})
            case "config", ["unread", *why]:
                return messages.Unread(" ".join(why))
            case "config", ["none"]:
                return messages.Configured(None)
            case "config", ["objection", *why]:
                return messages.Configured(_config([]), " ".join(why))
            case "config", options:
                return messages.Configured(_config(options))
            case "heartbeat", ["gone"]:
                return messages.Heard(keys.HEARTBEAT, Changed([Deleted(keys.HEARTBEAT)], 9))
            case "heartbeat", ["missing"]:
                return messages.Heard(keys.HEARTBEAT, Listed([], 9))
            case "heartbeat", [lease] if lease.isdigit():
                return messages.Heard(keys.HEARTBEAT, Listed([_written(keys.HEARTBEAT, b"", lease)], 9))
            case "beat", [beat]:
                lease, _, revision = beat.partition("@")
                event = _written(keys.HEARTBEAT, b"", lease, int(revision or 9))
                return messages.Heard(keys.HEARTBEAT, Changed([event], event.kv.mod_revision))
            case "canary", [kind, "gone"]:
                return messages.Heard(SYNCED, Changed([Deleted(SYNCED + kind.encode())], 9))
            case "canary", [kind, "written", canary]:
                lease, _, revision = canary.partition("@")
                event = _written(SYNCED + kind.encode(), b"", lease, int(revision or 9))
                return messages.Heard(SYNCED, Changed([event], event.kv.mod_revision))
            case "canary", [kind, canary]:
                lease, _, revision = canary.partition("@")
                event = _written(SYNCED + kind.encode(), b"", lease, int(revision or 9))
                return messages.Heard(SYNCED, Listed([event], 9))
            case place, [failure] if failure in FAILURES:
                prefix = keys.HEARTBEAT if place == "heartbeat" else f"{place}/".encode()
                return messages.Heard(prefix, Interrupted(FAILURES[failure]))
            case kind, [listed, *pairs] if listed.startswith("listed"):
                more = pairs[-1:] == ["more"]
                events = [_event(kind, f"+{pair}") for pair in (pairs[:-1] if more else pairs)]
                return messages.Heard(f"{kind}/".encode(), Listed(events, int(listed.partition("@")[2] or 9), more))
            case kind, ["changed", *changes]:
                events = [_event(kind, change, self._is_new(kind, change)) for change in changes]
                return messages.Heard(f"{kind}/".encode(), Changed(events, 9))
        raise AssertionError(f"no such line: {verb} {words}")

    def _is_new(self, kind: str, change: str) -> bool:
        return change[0] != "~" and change[1:].partition("=")[0] not in self.held[kind]

    def state(self) -> str:
        behind = f" behind {' '.join(sorted(self.brain.behind))}" if self.brain.behind else ""
        return f"{self.brain.session.state}{behind}"


def _place(witness: str) -> bytes:
    return keys.HEARTBEAT if witness == "heartbeat" else SYNCED + witness.encode()


def _config(options: list[str]) -> ClusterConfig:
    given = dict(option.partition("=")[::2] for option in options)
    return ClusterConfig(
        id=int(given.get("id", 2)),
        synced_canaries="no" not in given,
        max_connected_clusters=int(given.get("max", 255)),
        cached="cached" in given,
    )


def _written(key: bytes, value: bytes, lease: str = "0", revision: int = 9, new: bool = False) -> Written:
    return Written(KeyValue(key, value, revision, int(lease), 1 if new else 2))


def _event(kind: str, text: str, new: bool = False) -> Written | Deleted:
    name, _, value = text[1:].partition("=")
    key = f"{kind}/{name}".encode()
    if text[0] == "-":
        name, _, revision = text[1:].partition("@")
        return Deleted(f"{kind}/{name}".encode(), int(revision or 10))
    value, _, lease = value.partition("/")
    return _written(key, b"x" * 11 if value == ":huge" else value.encode(), lease or "0", new=new)


def _shown(commands: Sequence[messages.Command]) -> list[str]:
    """One line for each run of commands of one kind, about one table."""
    lines = []
    for head, run in groupby(commands, _head):
        words = [_word(command) for command in run]
        lines.append(" ".join([head, *(sorted(words) if head == "follow" else words)]).strip())
    return lines


def _head(command: messages.Command) -> str:
    if isinstance(command, messages.Put | messages.Remove):
        return command.kind
    return {messages.Again: "again in"}.get(type(command), type(command).__name__.lower())


def _word(command: messages.Command) -> str:  # noqa: PLR0911 one command each
    match command:
        case messages.Put(_, name, value, _):
            return f"+{name}={value}"
        case messages.Remove(_, name, _):
            return f"-{name}"
        case messages.Refuse(what, why):
            return f"{what} {why}"
        case messages.Accept(what) | messages.Withdraw(what):
            return what
        case messages.Relisting(kind, whole):
            return f"{kind} {'whole' if whole else 'begins'}"
        case messages.Again(after):
            return f"{after:g}"
        case messages.Audit(wanted):
            return " ".join(each.prefix.decode().strip("/") for each in wanted)
        case messages.Follow(prefix, _):
            return {keys.HEARTBEAT: "heartbeat", SYNCED: "canaries"}.get(prefix, prefix.decode().strip("/"))
    return ""


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    play, told = Play(), list[str]()
    for where, mark, text in _lines(path):
        if mark == "<<":
            assert told[:1] == [text], where
            told.pop(0)
            continue
        assert not told, f"{where}: wanted before, and not expected: {told}"
        if mark == ">>":
            told = play.say(text)
        else:
            assert play.state() == text, where
    assert not told


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            mark, _, text = line.partition(" ")
            assert mark in {">>", "<<", "=="}
            yield f"{path.name}:{number}", mark, text.strip()


def test_what_cannot_happen_raises() -> None:
    play = Play()
    with pytest.raises(RuntimeError, match="Tick while idle"):
        play.brain.hear(messages.Tick(), 0.0)
    play.say("connect")
    with pytest.raises(RuntimeError, match="Connected while asking"):
        play.brain.hear(messages.Connected(), 0.0)
    assert play.brain.phase is Phase.ASKING
