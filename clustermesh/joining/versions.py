"""Which releases run in a Kubernetes cluster, and how far they are from each other. Pure but for `read_versions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from clustermesh.joining import names
from clustermesh.joining.member import Version
from clustermesh.joining.objects import Meta, Objects
from clustermesh.joining.reading import Deployment, find_version


async def read_versions(objects: Objects) -> dict[str, Version]:
    """By what runs it, as "deployment/clustermesh-apiserver": all that is of this project, or of Cilium."""
    found = dict[str, Version]()
    for plural in ("deployments", "daemonsets"):
        path = f"/apis/apps/v1/namespaces/{objects.namespace}/{plural}"
        for each in await objects.list(path, Deployment):
            if (each.metadata.labels or {}).get("app.kubernetes.io/part-of") in names.PRODUCTS:
                found[f"{plural[:-1]}/{each.metadata.name}"] = find_version(each)
    return found


async def read_running(objects: Objects) -> dict[str, dict[str, int]]:
    """How many pods of each version there are, by what they are of, as "clustermesh-agent": while an upgrade is under
    way, of two."""
    found = dict[str, dict[str, int]]()
    path = f"/api/v1/namespaces/{objects.namespace}/pods"
    for pod in await objects.list(path, _Pod, f"app.kubernetes.io/part-of in ({','.join(names.PRODUCTS)})"):
        labels = pod.metadata.labels or {}
        versions = found.setdefault(labels.get("k8s-app", pod.metadata.name), {})
        number = labels.get("app.kubernetes.io/version", "unknown")
        versions[number] = versions.get(number, 0) + 1
    return found


class _Pod(Struct, frozen=True):
    metadata: Meta = Meta()


def skews(client: str, servers: Mapping[str, Mapping[str, Version]]) -> Iterator[str]:
    """A sentence for each server, by context, that this client is more than one minor version from."""
    ours = Version("clustermesh", client)
    for context, each in servers.items():
        for name, version in each.items():
            if version.product == ours.product and is_skewed(ours, version):
                older = "this command" if _of(ours) < _of(version) else f"{name} of {context}"
                yield (
                    f"{name} of {context} is {version.number}, this command {client}: more than one minor version "
                    f"apart; upgrade {older}"
                )


def is_skewed(first: Version, second: Version) -> bool:
    """Whether the two are further from each other than one minor version, as far as that can be told."""
    if first.minor is None or second.minor is None or first.product != second.product:
        return False
    distance = apart(first, second)
    return distance is None or abs(distance) > 1


def apart(first: Version, second: Version) -> int | None:
    """How many minor versions `second` is ahead; None where no number tells."""
    if first.minor is None or second.minor is None or first.product != second.product:
        return None
    return second.minor[1] - first.minor[1] if first.minor[0] == second.minor[0] else None


def _of(version: Version) -> tuple[int, int]:
    return version.minor or (0, 0)
