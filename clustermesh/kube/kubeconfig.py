"""Whether a kubeconfig has the shape that it must have: the package that reads it takes that for granted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clustermesh.errors import Invalid
from clustermesh.yaml_file import mapping, parse_yaml, read_bytes

MOST_BYTES: Final = 8 << 20
"""Hundreds of clusters with their certificates."""
_CLUSTER: Final = ("server", "certificate-authority", "certificate-authority-data", "proxy-url", "tls-server-name")
_USER: Final = ("token", "tokenFile", "client-certificate", "client-key", "client-certificate-data", "client-key-data")
_TEXTS: Final = {
    "cluster": _CLUSTER,
    "user": (*_USER, "username", "password", "as", "as-uid"),
    "context": ("cluster", "user"),
}
_MAPPINGS: Final = ("exec", "auth-provider", "as-user-extra")


def check_kubeconfig(path: Path) -> None:
    """Raises Invalid with file, field and rule, but never a value that may be a secret; Unavailable where it cannot
    be read."""
    document = parse_yaml(read_bytes(path, MOST_BYTES), str(path))
    if not isinstance(document, dict):
        raise Invalid(str(path), _kind(document), "must be a kubeconfig: a mapping with clusters, users and contexts")
    _text(document.get("current-context"), f"{path}: current-context")
    for kind, texts in _TEXTS.items():
        for field, entry in _entries(document, kind, path):
            for name in texts:
                _text(entry.get(name), f"{field}.{name}")
            for name in _MAPPINGS:
                _check(entry.get(name), dict, f"{field}.{name}", "a mapping")
            _texts(entry.get("as-groups"), f"{field}.as-groups")
            for name, values in (entry.get("as-user-extra") or {}).items():
                _text(name, f"{field}.as-user-extra")
                _texts(values, f"{field}.as-user-extra.{name}")


def _texts(values: object, field: str) -> None:
    _check(values, list, field, "a list")
    for number, value in enumerate(values if isinstance(values, list) else ()):
        if not isinstance(value, str):
            raise Invalid(f"{field}[{number}]", _kind(value), "must be text")


def _entries(document: dict[str, Any], kind: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each entry of the list `kind`s that has what its name stands for: where it is, and that."""
    place = f"{path}: {kind}s"
    listed = document.get(f"{kind}s")
    _check(listed, list, place, "a list")
    for number, entry in enumerate(listed or ()):
        field = f"{place}[{number}]"
        _check(entry, dict, field, "a mapping")
        named = mapping(entry, field)
        _text(named.get("name"), f"{field}.name")
        _check(named.get(kind), dict, f"{field}.{kind}", "a mapping")
        yield f"{field}.{kind}", named.get(kind) or {}


def _text(value: object, field: str) -> None:
    _check(value, str, field, "text; put it in quotes if it looks like a number, date or truth value")


def _check(value: object, kind: type, field: str, rule: str) -> None:
    """What is left out, the package speaks of where it is needed."""
    if value is not None and not isinstance(value, kind):
        raise Invalid(field, _kind(value), f"must be {rule}")


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
