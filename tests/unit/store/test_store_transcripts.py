"""The follower's conversations with etcd, as anyone can read them in transcripts/ (its README is the grammar)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.faults import Compacted, Replaced
from clustermesh.store.follower import (
    Changed,
    Deleted,
    Event,
    Follower,
    Interrupted,
    ListAll,
    Listed,
    Prove,
    Put,
    WatchFrom,
    WatchMessage,
)
from clustermesh.store.operations import KeyValue, Listing

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
FAILURES = {"lost": Unavailable("lost"), "rewound": Replaced("future revision")}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    follower = Follower()
    told: list[str] = []
    for where, mark, text in _lines(path):
        if mark == ">>":
            assert not told, f"{where}: told before, and not expected: {told}"
            told = _say(follower, text)
        elif mark == "<<":
            assert told[:1] == [text], where
            told.clear()
        else:
            assert not told, f"{where}: told before, and not expected: {told}"
            assert _step(follower) == text, where
    assert not told


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line and not line.startswith("#"):
            mark, _, text = line.partition(" ")
            assert mark in {">>", "<<", "=="}
            yield f"{path.name}:{number}", mark, text.strip()


def _say(follower: Follower, text: str) -> list[str]:
    """Let etcd say `text`; what the follower tells."""
    try:
        told = _hear(follower, *text.split())
    except ClusterMeshError as error:
        told = follower.interrupted(error)
    return [] if told is None else [_shown(told)]


def _hear(follower: Follower, verb: str, *words: str) -> Listed | Changed | None:
    if verb in FAILURES:
        raise FAILURES[verb]
    cluster = next((int(word[8:]) for word in words if word.startswith("cluster=")), 0)
    words = tuple(word for word in words if not word.startswith("cluster="))
    if verb == "proof":
        follower.proved(None if words == ("none",) else _kv(words[0]))
        return None
    if verb == "compacted" and isinstance(follower.step(), Prove):
        raise Compacted("compacted")
    if verb == "refused" and not isinstance(follower.step(), WatchFrom):
        raise Refused("permission denied")
    if verb == "list":
        return follower.listed(Listing(int(words[0]), [_kv(word) for word in words[1:]], cluster))
    return follower.received(_message(verb, words, cluster))


def _message(verb: str, words: tuple[str, ...], cluster: int) -> WatchMessage:
    if verb == "refused":
        return WatchMessage(9, canceled=True, created=True, reason="rpc error: etcdserver: permission denied")
    revision, events = int(words[0]), tuple(_event(word) for word in words[1:])
    match verb:
        case "created":
            return WatchMessage(revision, cluster, created=True)
        case "alive":
            return WatchMessage(revision, own=False)
        case "compacted":
            return WatchMessage(revision, canceled=True, compact_revision=revision)
        case "events" | "fragment" | "progress":
            return WatchMessage(revision, fragment=verb == "fragment", events=events)
    raise AssertionError(f"no such line: {verb}")


def _kv(word: str) -> KeyValue:
    key, _, rest = word.partition("=")
    value, _, mod = rest.partition("@")
    return KeyValue(key.encode(), value.encode(), int(mod))


def _event(word: str) -> tuple[int, Event]:
    if word.startswith("-"):
        key, _, mod = word[1:].partition("@")
        return int(mod), Deleted(key.encode())
    kv = _kv(word.removeprefix("+"))
    return kv.mod_revision, Put(kv)


def _shown(item: Listed | Changed | Interrupted) -> str:
    if isinstance(item, Interrupted):
        return f"interrupted {type(item.error).__name__}"
    events = (
        f"+{event.kv.key.decode()}={event.kv.value.decode()}" if isinstance(event, Put) else f"-{event.key.decode()}"
        for event in item.events
    )
    return " ".join([type(item).__name__.lower(), str(item.revision), *events])


def _step(follower: Follower) -> str:
    match follower.step():
        case ListAll():
            return "list"
        case WatchFrom(revision):
            return f"watch from {revision}"
        case Prove(key, revision):
            return f"prove {key.decode()} at {revision}"
