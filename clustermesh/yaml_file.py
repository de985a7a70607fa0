"""Small YAML files written by people: read with bounds, so that no file can crash, hang or exhaust the reader."""

from __future__ import annotations

import os
import reprlib
import stat
from pathlib import Path
from typing import Any, Final

import yaml

from clustermesh.errors import Invalid, Unavailable, printable

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 50
_OPENING: Final = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_CLOSING: Final = (yaml.SequenceEndEvent, yaml.MappingEndEvent)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """A regular file's contents. Raises Unavailable when it cannot be read, Invalid when it is no file or too long."""
    try:
        # Without O_NONBLOCK, a named pipe in the place of a file would hold the reader for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Invalid(printable(str(path)), "not a regular file", "must be a regular file")
            data = file.read(limit + 1)
    except OSError as e:
        raise Unavailable(f"{printable(str(path))}: {e.strerror}") from e
    if len(data) > limit:
        raise Invalid(printable(str(path)), f"more than {limit} bytes", f"must be at most {limit} bytes")
    return data


def parse_yaml(data: bytes, field: str) -> Any:
    """The one document in `data`; Invalid (with `field` and the line) for anything else, of whatever kind."""
    documents = parse_documents(data, field)
    if len(documents) > 1:
        raise Invalid(field, f"{len(documents)} documents", "must hold one YAML document")
    return documents[0] if documents else None


def parse_documents(data: bytes, field: str) -> list[Any]:
    """Every document in `data`; Invalid when one is not YAML or nests deeper than 50."""
    try:
        _check_depth(data, field)
        return list(yaml.load_all(data, _Loader))
    except Invalid:
        raise
    except yaml.MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise Invalid(field, f"{line}{e.problem}", "must be YAML") from e
    except Exception as e:  # PyYAML's constructors let anything through: ValueError, IndexError, AttributeError, ...
        raise Invalid(field, str(e), "must be YAML") from e


def mapping(document: object, field: str) -> dict[str, Any]:
    """`document` as a mapping with text keys; Invalid otherwise. An empty file is an empty mapping."""
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise Invalid(field, shown(document), "must be a mapping with text keys")
    return document


def text(value: object, field: str) -> str:
    """`value` as text; Invalid otherwise, with the reason YAML so often gives."""
    if not isinstance(value, str):
        raise Invalid(
            field, shown(value), "must be text; put it in quotes if it looks like a number, date or truth value"
        )
    return value


def number(value: object, field: str) -> int:
    """`value` as a whole number; Invalid otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Invalid(field, shown(value), "must be a whole number")
    return value


def dump_yaml(document: object) -> bytes:
    """`document` as block YAML, keys in the order given."""
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1000).encode()


def shown(value: object) -> object:
    """`value`, or for a container a short text of it: aliases make small files of which repr() is gigabytes long."""
    return reprlib.repr(value) if isinstance(value, dict | list | set | tuple) else value


class _Loader(yaml.CSafeLoader):
    """Refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_depth(data: bytes, field: str) -> None:
    # libyaml's events come one by one, but its tree is built by recursion in C: depth must be known before, or it
    # ends the process.
    depth = 0
    for event in yaml.parse(data, yaml.CSafeLoader):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        if depth > MAX_DEPTH:
            raise Invalid(field, f"nested deeper than {MAX_DEPTH}", f"must nest at most {MAX_DEPTH} deep")
