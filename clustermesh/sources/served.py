"""What a cluster's API serves of the kinds that a mesh is made of, and in which versions: asked for, once."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from clustermesh.errors import Unavailable
from clustermesh.kube.client import KubeClient
from clustermesh.kube.faults import Forbidden, NotServed
from clustermesh.kube.rbac import Rule
from clustermesh.sources.objects import KINDS
from clustermesh.sources.translate import EXPORT

BOTH: Final = ("Namespace", "Service", "EndpointSlice")
NATIVE: Final = (*BOTH, "Node", "Pod")
CILIUM: Final = (*BOTH, "CiliumNode", "CiliumIdentity", "CiliumEndpoint")
CILIUM_SLICES: Final = (*BOTH, "CiliumNode", "CiliumIdentity", "CiliumEndpointSlice")
RULES: Final = tuple(
    Rule(kind.group, kind.plural) for name, kind in KINDS.items() if name in {*NATIVE, *CILIUM, *CILIUM_SLICES, EXPORT}
)
"""All that this source may have to do at the API."""
_SLICES: Final = "ciliumendpointslices"

T = TypeVar("T")


class _ApiVersion(Struct):
    version: str


class _ApiGroup(Struct):
    versions: list[_ApiVersion] = []


class _ApiResource(Struct):
    name: str


class _ApiResources(Struct):
    resources: list[_ApiResource] | None = None


class _SomeList(Struct):
    items: list[Raw] | None = None


class Wanted(Struct, frozen=True, kw_only=True):
    """What somebody says is to be followed: `mode` is auto, native or cilium; whether Cilium's agents write `slices` of
    endpoints instead of endpoints, None to find that out; whether ServiceExports are looked for (`mcs`)."""

    mode: str = "auto"
    slices: bool | None = None
    mcs: bool = True


async def offered(client: KubeClient, wanted: Wanted) -> dict[str, str]:
    """The kinds to follow, each with its version, but for exports. Raises ClusterMeshError."""
    mode, slices = wanted.mode, wanted.slices
    served = {version: await _served(client, version) for version in ("v2", "v2alpha1") if mode != "native"}
    if mode == "native" or (mode == "auto" and not await _has_cilium(client, served["v2"])):
        return _first_versions(NATIVE)
    for version, names in served.items():
        if slices is not False and _SLICES in names and (slices or await _any(client, version, _SLICES)):
            return {**_first_versions(CILIUM_SLICES), "CiliumEndpointSlice": version}
    if slices:
        raise Unavailable(f"{_SLICES}.cilium.io are not served, which --enable-cilium-endpoint-slice says are in use")
    return _first_versions(CILIUM)


async def _has_cilium(client: KubeClient, served: Set[str]) -> bool:
    """Unavailable where that cannot be told: its resources outlive Cilium, and are there before its first agent is."""
    if not {"ciliumnodes", "ciliumidentities", "ciliumendpoints"} <= served:
        return False
    if not await _any(client, "v2", "ciliumnodes"):
        why = "Cilium's resources are served, but no node is a CiliumNode: Cilium is not there yet, or not any more"
        raise Unavailable(f"{why}; waiting for one (--mode native or --mode cilium decides)")
    return True


def _first_versions(kinds: Iterable[str]) -> dict[str, str]:
    return {name: KINDS[name].versions[0] for name in kinds}


async def _served(client: KubeClient, version: str, group: str = "cilium.io") -> frozenset[str]:
    """What the API has of a group, Cilium's if no other."""
    try:
        body = await client.get(f"/apis/{group}/{version}", f"ask for resources of {group}", {})
    except NotServed:
        return frozenset()
    return frozenset(each.name for each in _decode(body, _ApiResources).resources or ())


async def exports(client: KubeClient) -> str:
    """The best version in which ServiceExports are served, "" for none."""
    kind = KINDS[EXPORT]
    try:
        body = await client.get(f"/apis/{kind.group}", "ask for ServiceExports", {})
    except (NotServed, Forbidden):
        return ""
    served = {each.version for each in _decode(body, _ApiGroup).versions}
    for version in kind.versions:
        if version in served and kind.plural in await _served(client, version, kind.group):
            return version
    return ""


async def _any(client: KubeClient, version: str, plural: str) -> bool:
    body = await client.get(f"/apis/cilium.io/{version}/{plural}", f"list {plural}.cilium.io", {"limit": "1"})
    return bool(_decode(body, _SomeList).items)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as e:
        raise Unavailable(f"the Kubernetes API answers in a way that cannot be read: {e}") from e
