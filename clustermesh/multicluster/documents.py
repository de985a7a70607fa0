"""Objects as the Kubernetes API has them, and the writes that make of one what it should be. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from clustermesh.errors import DecodeError
from clustermesh.kube.rbac import FOLLOW, Rule
from clustermesh.kube.resource import Resource

Document: TypeAlias = dict[str, Any]
"""An object as JSON has it. In one that is wanted, None is a field that should not be there."""
Name = tuple[str, str]
"""Namespace and name."""

GROUP: Final = "multicluster.x-k8s.io"
SERVICE_NAME: Final = "multicluster.kubernetes.io/service-name"
SOURCE_CLUSTER: Final = "multicluster.kubernetes.io/source-cluster"
DERIVED: Final = "multicluster.kubernetes.io/derived-service"
MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
MESH: Final = "endpointslice-mesh-controller.cilium.io"
"""Of backends elsewhere."""
EXPORTED: Final = "endpointslice-export.clustermesh.io"
"""Of backends here, of what is exported without a selector."""

WRITE: Final = ("create", "patch", "delete")
SLICE_RULES: Final = (
    Rule("", "services"),
    Rule("", "namespaces"),
    Rule("discovery.k8s.io", "endpointslices", (*FOLLOW, *WRITE)),
)
"""What keeping EndpointSlices of backends elsewhere takes."""
IMPORT_RULES: Final = (
    Rule("", "services", (*FOLLOW, *WRITE)),
    Rule(GROUP, "serviceexports"),
    Rule(GROUP, "serviceexports/status", ("patch",)),
    Rule(GROUP, "serviceimports", (*FOLLOW, *WRITE)),
    Rule(GROUP, "serviceimports/status", ("patch",)),
)
"""What keeping ServiceImports takes besides."""


class Place(Struct, frozen=True):
    """Where the API has a kind of objects: `api` is what its apiVersion says."""

    api: str
    kind: str
    plural: str

    @property
    def path(self) -> str:
        return f"/{'apis' if '/' in self.api else 'api'}/{self.api}"


SERVICES: Final = Place("v1", "Service", "services")
SLICES: Final = Place("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")


def exports_at(version: str) -> Place:
    return Place(f"{GROUP}/{version}", "ServiceExport", "serviceexports")


def imports_at(version: str) -> Place:
    return Place(f"{GROUP}/{version}", "ServiceImport", "serviceimports")


class Write(Struct, frozen=True):
    """One request: POST, a merge PATCH of the object or of its `part`, or DELETE."""

    method: str
    place: Place
    name: Name
    body: Document | None = None
    part: str = ""

    @property
    def path(self) -> str:
        namespace, name = self.name
        at = f"{self.place.path}/namespaces/{namespace}/{self.place.plural}"
        return at if self.method == "POST" else f"{at}/{name}{self.part}"


def followed(place: Place, labels: str = "") -> Resource[Name, Document]:
    """Those of every namespace that have the `labels`."""
    group, _, version = place.api.rpartition("/")
    return Resource(
        group=group,
        version=version,
        plural=place.plural,
        decode=decode,
        key=lambda namespace, name: (namespace, name),
        labels=labels,
    )


def decode(raw: Raw | bytes) -> tuple[Name, Document]:
    """An object as the API tells of it. Raises DecodeError."""
    try:
        found = msgspec.json.decode(raw, type=Document)
        metadata = found["metadata"]
        metadata.pop("managedFields", None)
        return (metadata["namespace"], metadata["name"]), found
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError) as e:
        raise DecodeError("object", bytes(raw)[:80].decode(errors="replace"), str(e)) from e


def derived_name(namespace: str, name: str) -> str:
    """Of the Service that an import is served by: the same in every cluster, and as other implementations derive it
    (sigs.k8s.io/mcs-api, controllers/common.go), for backends of other clusters are found by it."""
    digest = hashlib.sha256(f"{namespace}/{name}".encode()).digest()
    return f"derived-{short(digest)}"


def short(digest: bytes) -> str:
    """Ten characters of a name."""
    return base64.b32hexencode(digest).decode().lower()[:10]


def labels_of(held: Document | None) -> Mapping[str, str]:
    return {} if held is None else held["metadata"].get("labels") or {}


def annotations_of(held: Document | None) -> Mapping[str, str]:
    return {} if held is None else held["metadata"].get("annotations") or {}


def whole(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The map that is to have what `wanted` has, and nothing else of what `held` has."""
    return dict.fromkeys(held) | dict(wanted)


def owned_by(place: Place, name: str, uid: str) -> list[Document]:
    """The ownerReferences of what goes with that object, whoever takes it away."""
    return [{"apiVersion": place.api, "kind": place.kind, "name": name, "uid": uid, "controller": True}]


def settle(place: Place, name: Name, held: Document | None, wanted: Document, part: str = "") -> list[Write]:
    """The write that makes `held` have what `wanted` says; none where it has."""
    if held is None:
        about = {"metadata": {"namespace": name[0], "name": name[1]}, "apiVersion": place.api, "kind": place.kind}
        return [Write("POST", place, name, _merged(about, _present(wanted)))]
    patch = _difference(held, wanted)
    return [Write("PATCH", place, name, patch, part)] if patch else []


def _present(value: Document) -> Document:
    return {key: _present(each) if isinstance(each, dict) else each for key, each in value.items() if each is not None}


def _merged(one: Document, other: Document) -> Document:
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


def _difference(held: Mapping[str, Any], wanted: Document) -> Document:
    """As a JSON merge patch."""
    patch: Document = {}
    for key, value in wanted.items():
        before = held.get(key)
        if isinstance(value, dict):
            if inner := _difference(before if isinstance(before, dict) else {}, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
