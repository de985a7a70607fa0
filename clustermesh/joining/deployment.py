"""The chart put into a cluster and taken out of it, by Helm, where anything changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from certs.names import leaf_secret
from clustermesh.errors import Refused
from clustermesh.joining import names
from clustermesh.joining.connect import find_declared, find_readers, read_site
from clustermesh.joining.differences import Change, find_changes
from clustermesh.joining.helm import CHART, Helm, Kept, Release, check_settled, find_release, look_release
from clustermesh.joining.leading import Entries, misled
from clustermesh.joining.links import replaced
from clustermesh.joining.objects import MANAGED_BY, MANAGER, Meta, Objects
from clustermesh.kube.client import Request
from clustermesh.kube.faults import NotServed
from clustermesh.mesh.peer_files import MARK

Definition: TypeAlias = Mapping[str, Any]
"""A CustomResourceDefinition."""
PART_OF: Final = "app.kubernetes.io/part-of"
SERVED: Final = "clustermesh.useAPIServer"
TYPE: Final = "clustermesh.apiserver.service.type"
IMPORTS: Final = "clustermesh.mcsapi.enabled"
SLICES_OF_PEERS: Final = "clustermesh.enableEndpointSliceSynchronization"
_MIRROR: Final = "clustermesh.apiserver.kvstoremesh.enabled"
_PORT: Final = "clustermesh.apiserver.etcd.port"
_NODE_PORT: Final = "clustermesh.apiserver.service.nodePort"
_ENDPOINTS: Final = "etcd.endpoints"
_FIXED: Final = ("cluster.name", "cluster.id", "clustermesh.maxConnectedClusters", "etcd.enabled")
"""What other clusters know a cluster by."""
_CLOSED: Final = {SERVED: False, TYPE: "ClusterIP"}
"""How they reach it no more."""
_MADE: Final = {
    **dict.fromkeys(map(leaf_secret, names.LEAVES), "secrets"),
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
    misled: Mapping[str, Entries]
    """Peers that agents are to read another way then."""

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.defined or self.changes or self.given or self.misled)


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
        await _check_unread(objects, next(find_moved(release.base, wanted), ""))
    changes = await find_changes(objects, release.base.manifest if release else "", wanted.manifest)
    given = release is None or not release.whole or (release.base.config or {}) != (wanted.config or {})
    definitions = [each for each in await helm.definitions() if await _may_define(objects, each)]
    defined = await find_changes(objects, "", "\n---\n".join(map(json.dumps, definitions)))
    named = {change.name for change in defined}
    kept = [each for each in definitions if each["metadata"]["name"] in named]
    lost: dict[str, Entries] = {}
    if release is not None and release.whole:
        with suppress(Refused):  # what cannot be read of the cluster may be what is to be put right; it is asked again
            lost = await find_misled(objects, wanted)
    return Plan(name, release, wanted, changes, given, kept, defined, lost)


def find_fixed(before: Release, after: Release) -> Iterator[str]:
    """Values that are to change, and must not while clusters are connected."""
    yield from (key for key in _FIXED if before.value(key) != after.value(key))
    yield from (key for key, closed in _CLOSED.items() if before.value(key) != closed == after.value(key))
    known = set(before.value(_ENDPOINTS) or ())
    if known and known.isdisjoint(after.value(_ENDPOINTS) or ()):
        yield _ENDPOINTS  # others read it at these; a member more or less leaves them one


def find_moved(before: Release, after: Release) -> Iterator[str]:
    """Values that are to change by which others, who read this cluster, find it: each of them was told once."""
    if after.value("etcd.enabled"):
        return
    was, is_to_be = before.value(TYPE), after.value(TYPE)
    if was == "NodePort":
        if (port := after.value(_NODE_PORT)) and port != before.value(_NODE_PORT):
            yield _NODE_PORT
    elif was != is_to_be and was == "LoadBalancer":
        yield TYPE
    elif before.value(_PORT) != after.value(_PORT):
        yield _PORT


async def find_misled(objects: Objects, release: Release) -> dict[str, Entries]:
    """The peers that agents do not read the way that `release` has it, each with what leads there; but for those of
    ClusterMeshPeers, which the API server leads. Raises ClusterMeshError."""
    if not any(MARK in data for data in (await objects.secret(names.PEERS)).values()):
        return {}
    member = (await read_site(objects, "")).member
    mirrored = bool(release.value(SERVED) and release.value(_MIRROR))
    member = replace(member, mirrored=mirrored, port=release.value(_PORT) or member.port)
    found = misled(member)
    return {name: each for name, each in found.items() if not await find_declared(objects, member, name)}


async def lead(objects: Objects, found: Mapping[str, Entries]) -> None:
    """Write them: who is to be read before who reads there. Raises ClusterMeshError."""
    mirrored = any(mirror for _, mirror in found.values())
    writes = [(names.PEERS, {name: agents for name, (agents, _) in found.items()})]
    writes.append((names.COPIED, {name: mirror for name, (_, mirror) in found.items()}))
    for secret, files in reversed(writes) if mirrored else writes:
        await objects.change_secret(secret, partial(_led, files))


def _led(files: Mapping[str, Mapping[str, bytes]], data: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for peer, its in files.items():
        data = replaced(data, peer, its)
    return data


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
    read_by = sorted(await find_readers(objects) - set(reads))
    told = [f"connected to {', '.join(reads)}"] if reads else []
    told += [f"read by {', '.join(read_by)}"] if read_by else []
    if told:
        raise Refused(f"this cluster is {' and '.join(told)}: `clustermesh disconnect` first, then {what}")


async def _check_unread(objects: Objects, moved: str) -> None:
    """Refused where the value `moved` is to change, and others know this cluster by it."""
    if moved and (readers := ", ".join(sorted(await find_readers(objects)))):
        raise Refused(
            f"this cluster is read by {readers}, who would look for it where it was: `clustermesh disconnect` first, "
            f"then change {moved}, and connect again"
        )


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
