"""What a chart would change in a Kubernetes cluster, object by object: what is rendered beside what is there.

What is there would become what a server-side apply makes of it, and lose what the release before rendered and this one
does not. Pure but for `find_changes`, which asks the API, and writes nothing there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from clustermesh.errors import ClusterMeshError, DecodeError, Refused, first_of
from clustermesh.joining.objects import Objects
from clustermesh.kube.client import Request
from clustermesh.kube.faults import NotServed
from clustermesh.yaml_file import parse_documents

_ITS_OWN: Final = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
"""What the API writes into metadata."""
_GENERATION: Final = "deprecated.daemonset.template.generation"
"""An annotation that the API writes."""
_HIDDEN: Final = "(hidden)"
_WORDS: Final = 160
_TWICE: Final = "Duplicate value"
"""What the API says where an apply leaves a port of the release before beside the one that has its name now. Helm takes
that away, so the two releases tell what changes."""

Document = Mapping[str, Any]
Place = tuple[str, str, str, str]


class Change(Struct, frozen=True):
    """One object: `sign` is "+" where it is made, "-" where it goes, "~" where `fields` change."""

    sign: str
    kind: str
    name: str
    fields: tuple[str, ...] = ()


class _Kind(Struct, frozen=True):
    name: str = ""
    kind: str = ""
    namespaced: bool = False


class _Kinds(Struct, frozen=True):
    resources: list[_Kind] = []


async def find_changes(objects: Objects, before: str, after: str) -> list[Change]:
    """What it takes from the manifest `before`, of the release that is deployed, to `after`, as the cluster is now.

    Raises ClusterMeshError.
    """
    old, new = (_by_place(each, objects.namespace) for each in (before, after))
    paths = await _read_paths(objects, old.keys() | new.keys())

    async def compare(place: Place) -> Change | None:
        live = await _read(objects, paths[place], place)
        if place not in new:
            return Change("-", place[1], place[3]) if live is not None else None
        if live is None:
            return Change("+", place[1], place[3])
        try:
            applied = await _applied(objects, paths[place], place, new[place])
        except Refused as e:
            if _TWICE not in str(e):
                raise
            applied = live
        fields = tuple(changed_fields(place[1], live, applied, old.get(place), new[place]))
        return Change("~", place[1], place[3], fields) if fields else None

    try:
        async with asyncio.TaskGroup() as group:
            compared = [group.create_task(compare(place)) for place in dict.fromkeys([*new, *old])]
    except* ClusterMeshError as many:
        raise first_of(many) from many
    return [change for each in compared if (change := each.result()) is not None]


def changed_fields(kind: str, live: Document, applied: Document, old: Document | None, new: Document) -> Iterator[str]:
    """A line for each field of an object that changes; what a Secret holds is in none of them."""
    here, there, was, will = (flatten(each) for each in (live, applied, old or {}, new))
    for path in sorted(here.keys() | there.keys() | was.keys()):
        value, becomes = here.get(path), there.get(path)
        if path in was and was[path] != will.get(path) and value == becomes:
            becomes = will.get(path)  # an apply leaves what only the release before said
        if value != becomes:
            value, becomes = _apart(value, becomes)
            yield f"{path}: {_shown(kind, path, value)} -> {_shown(kind, path, becomes)}"


def flatten(document: Any, path: str = "") -> dict[str, Any]:
    """The leaves of `document` by their paths. Of a list, each item that has a name of its own; else it is a leaf."""
    if isinstance(document, Mapping) and document:
        out: dict[str, Any] = {}
        for key, value in document.items():
            if (not path and key == "status") or key == _GENERATION:
                continue
            if path == "metadata" and key in _ITS_OWN:
                continue
            out |= flatten(value, f"{path}.{key}" if path else str(key))
        return out
    if isinstance(document, list) and (named := _named(document)):
        out = {}
        for name, value in named.items():
            out |= flatten(value, f"{path}[{name}]")
        return out
    return {path: document}


def _apart(value: Any, becomes: Any) -> tuple[Any, Any]:
    """Of two long lists what is in one of them alone, where anything is."""
    if not (isinstance(value, list) and isinstance(becomes, list)) or len(json.dumps([value, becomes])) <= 2 * _WORDS:
        return value, becomes
    gone, new = [each for each in value if each not in becomes], [each for each in becomes if each not in value]
    return (gone, new) if gone or new else (value, becomes)


def _named(items: list[Any]) -> dict[str, Any]:
    names = [each.get("name") if isinstance(each, Mapping) else None for each in items]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return {}
    return dict(zip(map(str, names), items, strict=True))


def _shown(kind: str, path: str, value: Any) -> str:
    if value is None:
        return "none"
    if kind == "Secret" and path.startswith(("data", "stringData")):
        return _HIDDEN
    text = json.dumps(value)
    return text if len(text) <= _WORDS else f"{text[:_WORDS]}..."


def _by_place(manifest: str, namespace: str) -> dict[Place, Document]:
    found = dict[Place, Document]()
    for document in parse_documents(manifest.encode(), "manifest"):
        if not isinstance(document, Mapping):
            continue
        about = document.get("metadata") or {}
        version, kind = str(document.get("apiVersion", "")), str(document.get("kind", ""))
        found[version, kind, str(about.get("namespace") or namespace), str(about.get("name", ""))] = document
    return found


async def _read_paths(objects: Objects, places: Iterable[Place]) -> dict[Place, str]:
    """Where the objects are, as the API says of their kinds."""
    places = list(places)
    kinds = {version: await _read_kinds(objects, version) for version in {place[0] for place in places}}
    return {place: _path(kinds, *place) for place in places}


def _path(kinds: Mapping[str, Mapping[str, _Kind]], version: str, kind: str, namespace: str, name: str) -> str:
    if kind not in kinds[version]:
        raise Refused(f"{kind} {name}: the API has no such kind in {version}: install its definition first")
    found = kinds[version][kind]
    within = f"/namespaces/{namespace}" if found.namespaced else ""
    return f"{_root(version)}{within}/{found.name}/{name}"


async def _read_kinds(objects: Objects, version: str) -> dict[str, _Kind]:
    try:
        data = await objects.client.get(_root(version), f"list kinds of {version}", {})
        kinds = msgspec.json.decode(data, type=_Kinds).resources
    except NotServed:
        return {}
    except msgspec.DecodeError as e:
        raise DecodeError(f"kinds of {version}", data[:80], f"must be an APIResourceList: {e}") from e
    return {each.kind: each for each in kinds if "/" not in each.name}


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


async def _read(objects: Objects, path: str, place: Place) -> Document | None:
    try:
        return _decoded(await objects.client.get(path, f"get {place[1]} {place[3]}", {}), place)
    except NotServed:
        return None


async def _applied(objects: Objects, path: str, place: Place, wanted: Document) -> Document:
    what = f"compare {place[1]} {place[3]}"
    params = {"fieldManager": "helm", "force": "true", "dryRun": "All"}
    kind, body = "application/apply-patch+yaml", msgspec.json.encode(wanted)
    request = Request(path=path, what=what, params=params, method="PATCH", body=body, kind=kind)
    return _decoded(await objects.client.send(request), place)


def _decoded(data: bytes, place: Place) -> Document:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as e:
        raise DecodeError(f"{place[1]} {place[3]}", data[:80], f"must be an object: {e}") from e
