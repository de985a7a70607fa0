"""What an API server made in users' namespaces, for who takes it away once none is there that would.

Ours is what was written under our name: what Cilium's operator, or another implementation, keeps is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from clustermesh.joining.objects import MANAGER, Managed, Objects
from clustermesh.kube.faults import NotServed
from clustermesh.multicluster.documents import (
    DERIVED,
    EXPORTED,
    MANAGED_BY,
    MESH,
    SERVICE_NAME,
    SERVICES,
    SLICES,
    Place,
    Write,
    derived_name,
    imports_at,
)
from clustermesh.sources import served

_SERVERS: Final = "app.kubernetes.io/part-of=clustermesh,k8s-app=clustermesh-apiserver"  # as the chart has them


class Keeping(Struct, frozen=True):
    """What an API server keeps from now on: `slices` where `imports` are, too."""

    imports: bool = False
    slices: bool = False


class _Meta(Struct, rename="camel"):
    namespace: str
    name: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    managed_fields: list[Managed] | None = None


class _Made(Struct):
    metadata: _Meta


async def find_leavings(objects: Objects, keeping: Keeping, judged: str) -> list[Write]:
    """The deletions of what nobody keeps any more, where the API servers in the namespace `judged` keep no more than
    that: none while another namespace has some, whose all of it may be. Raises ClusterMeshError."""
    found = list[Write]()
    servers = await objects.list("/apis/apps/v1/deployments", _Made, _SERVERS)
    if any(each.metadata.namespace != judged for each in servers):
        return found
    if not keeping.imports:
        if version := await served.exports(objects.client):
            found += await _deletions(objects, imports_at(version), "")
        found += await _deletions(objects, SERVICES, SERVICE_NAME)
    if not (keeping.imports or keeping.slices):
        found += await _deletions(objects, SLICES, f"{MANAGED_BY} in ({MESH},{EXPORTED})")
    return found


async def _deletions(objects: Objects, place: Place, labels: str) -> Sequence[Write]:
    found = await objects.list(f"{place.path}/{place.plural}", _Made, labels)
    return [
        Write("DELETE", place, (each.metadata.namespace, each.metadata.name))
        for each in found
        if _is_ours(place, each.metadata)
    ]


def _is_ours(place: Place, found: _Meta) -> bool:
    if not any(each.manager == MANAGER for each in found.managed_fields or ()):
        return False
    if place == SLICES:
        return True
    if place == SERVICES:
        return found.name == derived_name(found.namespace, (found.labels or {})[SERVICE_NAME])
    return (found.annotations or {}).get(DERIVED) == derived_name(found.namespace, found.name)


async def take_away(objects: Objects, write: Write) -> None:
    """Gone already is success. Raises ClusterMeshError."""
    try:
        await objects.send("DELETE", write.path, f"delete {write.place.plural} {'/'.join(write.name)}", {})
    except NotServed:
        return
