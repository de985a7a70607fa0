"""Every field of the custom resources that the chart defines, of its definitions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from msgspec.structs import asdict

from clustermesh.mesh.authority import Limits
from tools.reference import ROOT, code, table

_FOLDER: Final = ROOT / "charts" / "clustermesh" / "crds"
_BOUNDS: Final = {
    "minimum": "{} or more",
    "maximum": "at most {}",
    "minItems": "{} or more",
    "maxItems": "at most {}",
    "maxLength": "at most {} characters",
}


_LIMITS: Final = {**Limits().keys, **{name: value for name, value in asdict(Limits()).items() if name != "keys"}}
"""How much a peer may have where its ClusterMeshPeer does not say."""


def section() -> str:
    return "\n\n".join(["## Custom resources", *map(_resource, sorted(_FOLDER.glob("*.yaml")))])


def _resource(path: Any) -> str:
    found = yaml.safe_load(path.read_text())["spec"]
    served = [each["name"] for each in found["versions"] if each["served"]]
    schema = found["versions"][-1]["schema"]["openAPIV3Schema"]
    assert all(each["schema"]["openAPIV3Schema"] == schema for each in found["versions"])
    names = ", ".join(code(each) for each in (found["names"]["plural"], *found["names"]["shortNames"]))
    rows = [row for field in schema["properties"] for row in _rows(field, schema["properties"][field], schema)]
    says = schema["description"].rstrip(".")
    return f"""### {found["names"]["kind"]}

`{found["group"]}`, {" and ".join(map(code, served))}; {names}. {says}.

{table(("field", "type", "rule", "what it says"), rows)}"""


def _rows(field: str, schema: Mapping[str, Any], parent: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Of it and of what is in it."""
    items = schema.get("items", {})
    kind = f"list of {items['type']}s" if items else schema["type"]
    if "additionalProperties" in schema:
        kind = f"map of {schema['additionalProperties']['type']}s"
    name = field.rpartition(".")[2]
    rules = ["required"] if name in parent.get("required", ()) else []
    if field == f"spec.limits.{name}":
        rules.append(f"usually `{_LIMITS[_snake(name)]}`")
    yield code(field), kind, "; ".join([*rules, *_rules(schema), *_rules(items)]), schema.get("description", "")
    inner, within = (items, f"{field}[]") if items.get("properties") else (schema, field)
    for each, below in inner.get("properties", {}).items():
        yield from _rows(f"{within}.{each}", below, inner)


def _snake(name: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name)


def _rules(schema: Mapping[str, Any]) -> Iterator[str]:
    if "default" in schema:
        yield f"usually {code(json.dumps(schema['default']))}"
    if "enum" in schema:
        yield ", ".join(code(str(each)) for each in schema["enum"])
    if {"minimum", "maximum"} <= schema.keys():
        yield f"{schema['minimum']} to {schema['maximum']}"
    else:
        yield from (says.format(schema[name]) for name, says in _BOUNDS.items() if name in schema)
    yield from (each["message"] for each in schema.get("x-kubernetes-validations", ()))
