"""Documents of a manifest, or the API's JSON -> objects. Unknown fields pass; known ones are strict.

Checked here is what the API server of Kubernetes would refuse outright (types, names, labels). What can be refused in
part, such as one address of many, is left to `services`, `nodes` and `pods`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Final

import msgspec

from clustermesh.errors import DecodeError, Invalid
from clustermesh.sources.documents import parse_json
from clustermesh.sources.objects import KINDS, Kind, Namespace, Object, Ref, Service
from clustermesh.sources.rules import check_dns_label, check_dns_subdomain, check_labels

_TEXT_MAPS: Final = frozenset(
    ["labels", "annotations", "selector", "security-labels", "exportedLabels", "exportedAnnotations"]
)
_PATH: Final = re.compile(r" - at `(?:key in )?\$?\.?(.*)`$")
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def decode_json(kind: Kind, data: bytes | msgspec.Raw) -> Object:
    """One object as the API writes it, which has checked it already. Raises DecodeError."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decoder(kind.type).decode(data)
    document = parse_json(bytes(data))  # perhaps it was only for a null, which Go writes for an empty list
    if not isinstance(document, dict):
        raise DecodeError(kind.name, document, "must be an object")
    return _convert(document, kind.type)


def ref_of(kind: Kind, found: Object) -> Ref:
    """What names `found`."""
    namespace = (found.metadata.namespace or "default") if kind.namespaced else ""
    return Ref(kind.name, namespace, found.metadata.name)


@lru_cache
def _decoder(kind: type[Object]) -> msgspec.json.Decoder[Object]:
    return msgspec.json.Decoder(kind)


def decode_objects(document: object) -> Iterator[tuple[Ref, Object] | Invalid]:
    """The objects of one document, a List's items each by itself; kinds that no mesh is made of are passed over."""
    if not isinstance(document, dict):
        yield DecodeError("document", document, "must be a mapping with apiVersion, kind and metadata")
        return
    kind, items = document.get("kind"), document.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        for number, item in enumerate(items):
            yield from _decode_item(f"items[{number}].", _with_kind(item, document, kind.removesuffix("List")))
    else:
        yield from _decode_item("", document)


def _with_kind(item: object, parent: Mapping[str, object], kind: str) -> object:
    """Items of a typed list (ServiceList) may leave out what the list has said."""
    if not (isinstance(item, dict) and kind):
        return item
    return {"apiVersion": parent.get("apiVersion"), "kind": kind, **item}


def _decode_item(prefix: str, document: object) -> Iterator[tuple[Ref, Object] | Invalid]:
    try:
        found = _decode(document)
    except Invalid as e:
        yield DecodeError(prefix + e.field, e.value, e.rule)
        return
    if found is not None:
        yield found


def _decode(document: object) -> tuple[Ref, Object] | None:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise DecodeError("kind", document, "must be there, beside apiVersion and metadata")
    name = document["kind"]
    kind = KINDS.get(name)
    group, _, version = str(document.get("apiVersion", "")).rpartition("/")
    if kind is None or (group != kind.group and version):
        return None
    if version not in kind.versions:
        expected = f"{kind.group}/{kind.versions[0]}".lstrip("/")
        raise DecodeError("apiVersion", document.get("apiVersion"), f"must be {expected} for a {name}")
    found = _convert(document, kind.type)
    ref = ref_of(kind, found)
    _check(found, kind, ref.namespace)
    return ref, found


def _check(found: Object, kind: Kind, namespace: str) -> None:
    check_name = check_dns_label if kind.type in (Namespace, Service) else check_dns_subdomain
    check_name("metadata.name", found.metadata.name)
    if kind.namespaced:
        check_dns_label("metadata.namespace", namespace)
    check_labels("metadata.labels", found.metadata.labels)
    if isinstance(found, Service):
        check_labels("spec.selector", found.spec.selector)


def _convert(document: dict[str, object], kind: type[Object]) -> Object:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError:
        pass  # perhaps only for a null, which Kubernetes takes as "absent"; documents without one never pay for this
    plain = _without_nulls(document, text_map=False)
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as e:
        raise _explain(str(e), plain) from e


def _without_nulls(value: object, *, text_map: bool) -> object:
    """Nulls left out; in a map of texts, as labels are, a null is the empty text."""
    if isinstance(value, dict):
        if text_map:
            return {key: "" if item is None else item for key, item in value.items()}
        return {k: _without_nulls(v, text_map=k in _TEXT_MAPS) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item, text_map=False) for item in value]
    return value


def _explain(message: str, document: object) -> DecodeError:
    """msgspec's sentence ("Expected `int`, got `str` - at `$.spec.ports[0].port`") as field, value and rule."""
    found = _PATH.search(message)
    path = found.group(1) if found else ""
    rule = (message[: found.start()] if found else message).replace("`", "")
    value, shown = _follow(document, path)
    if isinstance(value, bool | int | float) and "Expected str" in rule:
        rule += " (write it in quotes)"
    return DecodeError(shown or "document", value, rule[0].lower() + rule[1:])


def _follow(value: object, path: str) -> tuple[object, str]:
    """The value at `path`, and the path with msgspec's "[...]" (some key of a map) made the first key at fault."""
    shown = ""
    for name, index in _STEP.findall(path):
        if index == "..." and isinstance(value, dict):
            key = next((k for k, v in value.items() if not isinstance(v, str)), "")
            value, shown = value.get(key), f"{shown}[{key}]"
        elif index and isinstance(value, list):
            value, shown = value[int(index)], f"{shown}[{index}]"
        elif isinstance(value, dict):
            value, shown = value.get(name), f"{shown}.{name}" if shown else name
    return value, shown
