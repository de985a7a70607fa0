"""One Kubernetes API for all tests here; each works in a namespace of its own, or with names of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from kube_bed import MISSING, KubeBed

_MET: Final = (
    *(("/api/v1", plural) for plural in ("nodes", "services", "pods")),
    ("/apis/discovery.k8s.io/v1", "endpointslices"),
    ("/apis/apps/v1", "deployments"),
    *(("/apis/rbac.authorization.k8s.io/v1", plural) for plural in ("clusterroles", "clusterrolebindings")),
    ("/apis/scheduling.k8s.io/v1", "priorityclasses"),
    ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if MISSING and not os.environ.get("CI"):  # where everything must run, it fails
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeBed]:
    """A running API without controllers."""
    with KubeBed(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(scope="session")
def other_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeBed]:
    """The API of another cluster."""
    with KubeBed(tmp_path_factory.mktemp("kube-other")) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def swept(bed: KubeBed) -> Iterator[None]:
    """What a file of tests leaves that others would meet there is gone."""
    found = _uids(bed)
    yield
    for at, uid in _uids(bed).items():
        if found.get(at) != uid:
            bed.ask("DELETE", f"{at}?gracePeriodSeconds=0")


def _uids(bed: KubeBed) -> dict[str, str]:
    """Of what is read in all namespaces, or is in none, by path."""
    found = {}
    for prefix, plural in _MET:
        for metadata in (item["metadata"] for item in bed.ask("GET", f"{prefix}/{plural}")["items"]):
            within = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
            found[f"{prefix}{within}/{plural}/{metadata['name']}"] = metadata["uid"]
    return found


@pytest.fixture
def namespace(bed: KubeBed, request: pytest.FixtureRequest) -> str:
    """The name of a new namespace."""
    name = request.node.name.replace("_", "-").partition("[")[0].removeprefix("test-")[:50].strip("-")
    bed.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
