"""YAML or JSON text -> plain documents, each on its own, so that a broken one costs nothing but itself.

The C parser of libyaml delivers events; the values are built here and not by PyYAML's constructor because Kubernetes
reads YAML differently (no dates, no sexagesimal numbers, keys are text, a key given twice is an error), because aliases
have to be counted as what they expand to (the "billion laughs"), and because it takes a third less time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import yaml
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # the stubs know it only by way of the loaders
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from clustermesh.errors import DecodeError

MAX_NODES: Final = 500_000
"""Scalars, lists and mappings one document may hold, aliases counted as often as they are used."""
MAX_DEPTH: Final = 64

_MARKER: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_CONTENT: Final = re.compile(r"^[^\S\n]*[^\s#.%]", re.MULTILINE)
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OTHER_INTEGER: Final = re.compile(r"[-+]?0(o?[0-7]+|x[0-9a-fA-F]+)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS: Final = frozenset(["", "~", "null", "Null", "NULL"])
_BOOLS: Final = {
    word: value
    for value, words in ((True, ("true", "yes", "on")), (False, ("false", "no", "off")))
    for lower in words
    for word in (lower, lower.title(), lower.upper())
}
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_COLLECTION_TAGS: Final = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Document(NamedTuple):
    """One document of a file: its number counted from 1, the line it begins at counted from 0, and its text."""

    number: int
    line: int
    text: str


def split_documents(text: str) -> Iterator[Document]:
    """The documents of a YAML stream that hold anything. "---" at the start of a line separates, wherever it stands."""
    begin, line, number = 0, 0, 0
    for marker in [*_MARKER.finditer(text), None]:
        end = len(text) if marker is None else marker.start()
        part = text[begin:end]
        if _CONTENT.search(part):
            number += 1
            yield Document(number, line, part)
        line += part.count("\n")
        begin = len(text) if marker is None else marker.end()


def parse_json(data: bytes) -> object:
    """The value of a JSON file. DecodeError when it is none."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise DecodeError("JSON", bytes(data[:40]), str(e)) from e


def parse_yaml(document: Document) -> object:
    """The value of one YAML document: None, bool, int, float, str, list, dict with text keys. DecodeError otherwise."""
    try:
        return _Builder(document.text).build()
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = document.line + (mark.line if mark else 0)
        raise DecodeError(f"line {line + 1}", _line(document, mark), str(getattr(e, "problem", None) or e)) from e
    except (_NotAllowed, ValueError) as e:
        raise DecodeError("document", document.text.strip()[:60], str(e)) from e


def _line(document: Document, mark: Any) -> str:
    lines = document.text.splitlines()
    return lines[mark.line].strip() if mark is not None and mark.line < len(lines) else ""


class _NotAllowed(Exception):
    """Well-formed YAML that this project does not take; the argument is the rule."""


class _Builder:
    """Builds one value out of the parser's events; depth and size are bounded by rules, not by the stack or memory."""

    def __init__(self, text: str) -> None:
        self._next: Callable[[], Any] = CParser(text).get_event
        self._anchors: dict[str, tuple[object, int]] = {}
        self._nodes = 0

    def build(self) -> object:
        while True:
            event = self._next()
            if isinstance(event, StreamEndEvent):
                return None
            if isinstance(event, DocumentStartEvent):
                value = self._value(self._next(), 0)
                self._refuse_a_second_document()
                return value

    def _refuse_a_second_document(self) -> None:
        self._next()
        if not isinstance(self._next(), StreamEndEvent):
            raise _NotAllowed("documents must be separated by a line of '---'")

    def _value(self, event: Any, depth: int) -> object:
        kind = type(event)
        if kind is AliasEvent:
            return self._alias(event.anchor)
        before = self._nodes
        self._count(1)
        value: object
        if kind is ScalarEvent:
            value = _scalar(event)
        else:
            if depth >= MAX_DEPTH:
                raise _NotAllowed(f"must not be nested deeper than {MAX_DEPTH} levels")
            if event.tag not in _COLLECTION_TAGS:
                raise _NotAllowed(f"the tag {event.tag} is not allowed")
            value = self._mapping(depth + 1) if kind is MappingStartEvent else self._sequence(event, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _mapping(self, depth: int) -> dict[str, object]:
        mapping: dict[str, object] = {}
        merged: dict[str, object] = {}
        while type(event := self._next()) is not MappingEndEvent:
            key = self._alias(event.anchor) if type(event) is AliasEvent else getattr(event, "value", None)
            if not isinstance(key, str):
                raise _NotAllowed("a key must be plain text")
            if key in mapping:
                raise _NotAllowed(f"the key {key!r} is given twice")
            value = self._value(self._next(), depth)
            if key == "<<":
                merged = _merge(value)
            else:
                mapping[key] = value
        return {**merged, **mapping} if merged else mapping

    def _sequence(self, event: Any, depth: int) -> list[object]:
        assert type(event) is SequenceStartEvent  # the only kind left
        items: list[object] = []
        while type(item := self._next()) is not SequenceEndEvent:
            items.append(self._value(item, depth))
        return items

    def _alias(self, anchor: str | None) -> object:
        if anchor is None or anchor not in self._anchors:
            raise _NotAllowed(f"the alias *{anchor} has no anchor before it")
        value, size = self._anchors[anchor]
        self._count(size)
        return value

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _NotAllowed(f"must not hold more than {MAX_NODES} values, aliases expanded")


def _merge(value: object) -> dict[str, object]:
    """What "<<" brings in: a mapping, or several of which the first counts."""
    merged: dict[str, object] = {}
    for mapping in reversed(value) if isinstance(value, list) else [value]:
        if not isinstance(mapping, dict):
            raise _NotAllowed("'<<' must bring in mappings")
        merged |= mapping
    return merged


def _scalar(event: Any) -> object:
    """What Kubernetes makes of a scalar: only plain text becomes a number, a bool or null."""
    text: str = event.value
    if event.tag not in (None, "!", _STRING_TAG):
        raise _NotAllowed(f"the tag {event.tag} is not allowed")
    if event.tag is not None or not event.implicit[0]:
        return text
    first = text[:1]
    if first.isalpha() or first in "~":
        return None if text in _NULLS else _BOOLS.get(text, text)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OTHER_INTEGER.fullmatch(text):
        return _other_integer(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text


def _other_integer(text: str) -> int:
    digits = text.lstrip("+-")
    base = 16 if digits[1] in "xX" else 8
    return int(digits[1:].lstrip("ox"), base) * (-1 if text[0] == "-" else 1)
