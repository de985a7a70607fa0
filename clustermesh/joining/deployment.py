"""The chart put into a cluster and taken out of it, by Helm, where anything changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from msgspec import Struct

from clustermesh.errors import Refused
from clustermesh.joining import names
from clustermesh.joining.differences import Change, find_changes
from clustermesh.joining.helm import CHART, Helm, Kept, Release, check_settled, find_release, look_release
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Meta, Objects
from clustermesh.kube.client import Request
from clustermesh.kube.faults import NotServed
from clustermesh.mesh.peer_files import MARK
from clustermesh.standalone.users_file import remote_user, users_in

Definition: TypeAlias = Mapping[str, Any]
"""A CustomResourceDefinition."""
PART_OF: Final = "app.kubernetes.io/part-of"
SERVED: Final = "clustermesh.useAPIServer"
TYPE: Final = "clustermesh.apiserver.service.type"
IMPORTS: Final = "clustermesh.mcsapi.enabled"
SLICES_OF_PEERS: Final = "clustermesh.enableEndpointSliceSynchronization"
_ENDPOINTS: Final = "etcd.endpoints"
_FIXED: Final = ("cluster.name", "cluster.id", "clustermesh.maxConnectedClusters", "etcd.enabled")
"""What other clusters know a cluster by."""
_CLOSED: Final = {SERVED: False, TYPE: "ClusterIP"}
"""How they reach it no more."""
_MADE: Final = {
    **dict.fromkeys((f"clustermesh-apiserver-{leaf}-cert" for leaf in names.LEAVES), "secrets"),
    names.PEERS: "secrets",
    names.COPIED: "secrets",
    names.INVITATIONS: "secrets",
    names.USERS: "configmaps",
}
"""What this project's programs make beside the chart, by name."""


class _Labelled(Struct, frozen=True):
    metadata: Meta = Meta()


class Plan(Struct, frozen=True):
    """What a deployment of the chart would do; `release` is what is there now, and `wanted` what would be.
    `definitions` of kinds are written by us, and come first."""

    name: str
    release: Kept | None
    wanted: Release
    changes: Sequence[Change]
    given: bool
    """Whether other values are given than were, even where nothing in the cluster follows from them, or what was given
    last failed."""
    definitions: Sequence[Definition]
    defined: Sequence[Change]

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.defined or self.changes or self.given)


async def plan(objects: Objects, helm: Helm, values: Sequence[str], *, name: str = "", fresh: bool = True) -> Plan:
    """What `values`, flags of Helm's, would change; `fresh` says that there need not be a release yet.

    Raises Refused for what must not change while clusters are connected, or where Helm refuses; Unavailable.
    """
    release = await look_release(objects) if fresh else await find_release(objects)
    if (
        release is None
        and await objects.look(
            f"/api/v1/namespaces/{objects.namespace}", f"get namespace {objects.namespace}", _Labelled
        )
        is None
    ):
        raise Refused(f"namespace {objects.namespace} is not there: `kubectl create namespace {objects.namespace}`")
    if release is not None:
        check_settled(release, helm)
    if release is not None and name not in ("", release.last.name):
        raise Refused(f"namespace {objects.namespace} has the chart as release {release.last.name}, and not as {name}")
    name = release.last.name if release else name or CHART
    wanted = await helm.render(name, values)
    if release is not None:
        changed = next(find_fixed(release.base, wanted), "")
        await check_alone(objects, f"change {changed}" if changed else "")
    changes = await find_changes(objects, release.base.manifest if release else "", wanted.manifest)
    given = release is None or not release.whole or (release.base.config or {}) != (wanted.config or {})
    definitions = [each for each in await helm.definitions() if await _may_define(objects, each)]
    defined = await find_changes(objects, "", "\n---\n".join(map(json.dumps, definitions)))
    named = {change.name for change in defined}
    kept = [each for each in definitions if each["metadata"]["name"] in named]
    return Plan(name, release, wanted, changes, given, kept, defined)


def find_fixed(before: Release, after: Release) -> Iterator[str]:
    """Values that are to change, and must not while clusters are connected."""
    yield from (key for key in _FIXED if before.value(key) != after.value(key))
    yield from (key for key, closed in _CLOSED.items() if before.value(key) != closed == after.value(key))
    known = set(before.value(_ENDPOINTS) or ())
    if known and known.isdisjoint(after.value(_ENDPOINTS) or ()):
        yield _ENDPOINTS  # others read it at these; a member more or less leaves them one


async def _may_define(objects: Objects, definition: Definition) -> bool:
    """Not where it is there and another's."""
    found = await objects.look(_path(definition), f"get {definition['metadata']['name']}", _Labelled)
    return found is None or (found.metadata.labels or {}).get(PART_OF) == CHART


async def define(objects: Objects, definitions: Iterable[Definition]) -> None:
    """Write them. Raises ClusterMeshError."""
    for each in definitions:
        body, params = json.dumps(each).encode(), {"fieldManager": MANAGER, "force": "true"}
        path, what = _path(each), f"apply {each['metadata']['name']}"
        kind = "application/apply-patch+yaml"
        await objects.client.send(Request(path=path, what=what, params=params, method="PATCH", body=body, kind=kind))


def _path(definition: Definition) -> str:
    return f"/apis/{definition['apiVersion']}/customresourcedefinitions/{definition['metadata']['name']}"


async def check_alone(objects: Objects, what: str) -> None:
    """Refused where `what` is to be done, and this cluster reads another, be it by an entry that nobody understands, or
    is read by one."""
    if not what:
        return
    entries = [await objects.secret(secret) for secret in (names.PEERS, names.COPIED)]
    reads = sorted({name for each in entries for name, data in each.items() if MARK in data})
    users = users_in((await objects.config(names.USERS)).get(names.USERS_KEY, "").encode(), names.USERS)
    prefix = remote_user("")
    read_by = sorted({each.name.removeprefix(prefix) for each in users if each.name.startswith(prefix)} - {*reads})
    told = [f"connected to {', '.join(reads)}"] if reads else []
    told += [f"read by {', '.join(read_by)}"] if read_by else []
    if told:
        raise Refused(f"this cluster is {' and '.join(told)}: `clustermesh disconnect` first, then {what}")


class Leavings(Struct, frozen=True):
    """What is there beside the release, made by our programs (`made`), or kept because others may live by it."""

    made: Sequence[tuple[str, str]]
    authority: bool


async def find_leavings(objects: Objects) -> Leavings:
    """What an uninstallation by Helm alone would leave."""
    made = [(plural, name) for name, plural in _MADE.items() if await _is_ours(objects, plural, name)]
    return Leavings(made, await _is_ours(objects, "secrets", names.AUTHORITY))


async def remove(objects: Objects, plural: str, name: str) -> None:
    """Gone already is success."""
    path = f"/api/v1/namespaces/{objects.namespace}/{plural}/{name}"
    try:
        await objects.send("DELETE", path, f"delete {plural}/{name}", {})
    except NotServed:
        return


async def _is_ours(objects: Objects, plural: str, name: str) -> bool:
    found = await objects.read(plural, name, _Labelled)
    return found is not None and (found.metadata.labels or {}).get(MANAGED_BY) == MANAGER
