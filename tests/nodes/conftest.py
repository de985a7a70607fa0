"""Two real clusters of one real node each, with our chart, which later are one mesh: made once for all tests here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from mesh_web import Both, share

from lab.kubernetes.cluster import Cluster, at_once, clusters
from lab.kubernetes.ground import missing

VALUES = ("clustermesh.mcsapi.enabled=true", "clustermesh.enableEndpointSliceSynchronization=true")
_ROOT = Path(__file__).parents[2]
_NODES_OWN = ("/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/lib/clustermesh", "/etc/cni", "/opt/cni")


@cache
def _reason() -> str:
    return missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.nodes)
            if _reason() and not os.environ.get("CI"):  # where everything must run, it fails
                item.add_marker(pytest.mark.skip(reason=f"no real kubelet can run here: {_reason()}"))


@pytest.fixture(scope="session")
def both() -> Iterator[Both]:
    """alpha and beta, whose agents run, and which do not know of each other."""
    subprocess.run([sys.executable, "-m", "tools.release.node_images"], cwd=_ROOT, check=True)  # of what is tested
    had = [each for each in _NODES_OWN if Path(each).exists()]
    with clusters("alpha", "beta") as made:
        at_once(lambda cluster: cluster.install(*VALUES), made)
        at_once(Cluster.until_installed, made)
        alpha, beta = made
        yield alpha, beta
    assert [each for each in _NODES_OWN if Path(each).exists()] == had, "this machine gets none of a node's folders"


@pytest.fixture(scope="session")
def shared(both: Both) -> Both:
    """Connected, with a Service of both: each test leaves them so, but the last."""
    share(both)
    return both
