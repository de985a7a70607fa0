"""The brain's conversations with the API, as anyone can read them in transcripts/ (its README is the grammar)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from clustermesh.errors import ClusterMeshError, DecodeError, Refused, Unavailable
from clustermesh.kube import faults
from clustermesh.kube.brain import Brain
from clustermesh.kube.hearing import (
    Abandoned,
    Bad,
    Changed,
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

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
_ERRORS: Mapping[str, type[ClusterMeshError]] = {"Unavailable": Unavailable, "Refused": Refused}
_BARE: Mapping[str, Event[str, str]] = {
    "start": Started(),
    "opened": Opened(),
    "ended": Ended(),
    "due": Due(),
    "abandoned": Abandoned(),
}
_BAD = DecodeError("spec", "?", "must be readable")


class Longest(random.Random):
    def uniform(self, _a: float, b: float) -> float:
        return b


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    brain: Brain[str, str] = Brain(_first_limit(lines), Longest())
    said: list[str] = []
    now = 1000.0
    for number, line in enumerate(lines):
        mark, _, text = line.partition(" ")
        match mark:
            case ">>":
                assert not said, f"before line {number}, {line!r}, and not expected: {said}"
                verb, *words = text.split()
                if verb == "later":
                    now += float(words[0])
                else:
                    said = [_shown(command) for command in brain.hear(_event(verb, words), now)]
            case "<<":
                assert said[:1] == [text], f"line {number}"
                said.pop(0)
            case "==" if text.startswith("drift"):
                assert brain.drift == int(text.split()[1]), f"line {number}"
            case "==":
                assert sorted(brain.refused) == text.split()[1:]
    assert not said


def _first_limit(lines: list[str]) -> int:
    return next(int(line.split()[2]) for line in lines if line.startswith("<< list"))


def _event(verb: str, words: list[str]) -> Event[str, str]:
    if verb in _BARE:
        return _BARE[verb]
    if verb == "probed":
        return Probed(words[0])
    if verb == "fail":
        return Failed(_error(*words))
    token = next((word[5:] for word in words if word.startswith("next=")), "")
    entries = [_entry(word) for word in words[1:] if not word.startswith("next=")]
    if verb in ("page", "compared"):
        return (Page if verb == "page" else Compared)(entries, words[0], token)
    assert verb == "events", f"no such line: {verb}"
    return Received(entries, words[0])


def _error(kind: str, seconds: str = "") -> ClusterMeshError:
    if seconds:
        return faults.Busy("busy", float(seconds))
    return (_ERRORS.get(kind) or getattr(faults, kind))(kind)


def _entry(word: str) -> Entry[str, str]:
    if word.startswith("-"):
        return Gone(word[1:])
    if word.startswith("!"):
        return Bad(word[1:], _BAD)
    key, _, value = word.removeprefix("+").partition("=")
    return Put(key, value)


def _shown(command: Command[str, str]) -> str:
    match command:
        case List(limit, token, fresh, cached):
            marks = [name for name, given in (("fresh", fresh), ("cached", cached)) if given]
            return " ".join(["list", str(limit), *(["from", token] if token else []), *marks])
        case Watch(version, fresh):
            return f"watch {version} fresh" if fresh else f"watch {version}"
        case Wait(seconds):
            return f"wait {seconds:g}"
        case Tell(Interrupted(error)):
            return f"interrupted {type(error).__name__}"
        case Tell(Listed(changes) | Changed(changes) as item):
            shown = (f"-{key}" if value is None else f"+{key}={value}" for key, value in changes.items())
            return " ".join([type(item).__name__.lower(), *shown])
    raise AssertionError(command)
