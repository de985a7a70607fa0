"""One of two connected clusters goes back to an earlier version and up again, by its chart, while both are used: for a
while each hears of the other in the words of another version, and its agents of their API server and mirror."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import older_image
import pytest
from mesh_web import Both, rolled_out

from clustermesh.errors import Unavailable
from lab.kubernetes.cluster import Cluster, clustermesh
from lab.kubernetes.workloads import Load

_LEAST = 200  # requests of each direction while versions differ


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("older") / "tree"
    try:
        older_image.check_out(tree)
    except Unavailable as e:
        pytest.skip(str(e))
    return tree


def test_no_request_fails_on_the_way_back_to_the_version_before_and_up_again(shared: Both, older: Path) -> None:
    alpha, _ = shared
    older_image.give(alpha, older)
    before = {name: _started(alpha, name) for name in ("clustermesh-agent", "clustermesh-wireguard")}
    loads = [Load(cluster, "mesh", rate=50.0) for cluster in shared]
    with loads[0].running(), loads[1].running():
        _change(alpha, loads, "--chart", str(older / "charts" / "clustermesh"), "--set", f"image.tag={older_image.TAG}")
        _change(alpha, loads, "--set", "image.tag=")
    for load in loads:
        assert load.traffic.failed == 0, load.traffic
        assert load.traffic.answers.keys() == {"alpha", "beta"}
    assert _started(alpha, "clustermesh-wireguard") == before["clustermesh-wireguard"]
    assert not _started(alpha, "clustermesh-agent").keys() & before["clustermesh-agent"].keys()


def _started(cluster: Cluster, app: str) -> dict[str, str]:
    """When the first container of each pod was started, by the pod's uid."""
    return {
        pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
        for pod in cluster.pods("kube-system", f"k8s-app={app}")
    }


def _change(cluster: Cluster, loads: Sequence[Load], *words: str) -> None:
    """The agents first; both clusters are called while they are of another version than their API server and mirror,
    and once these are of theirs."""
    _roll_out(cluster, "pause")
    assert "DaemonSet clustermesh-agent" in clustermesh("upgrade", "--context", cluster.name, *words)
    rolled_out(cluster, "daemonset/clustermesh-agent")
    assert _images(cluster, "clustermesh-agent").isdisjoint(_images(cluster, "clustermesh-apiserver"))
    _go_on(cluster, loads)
    _roll_out(cluster, "resume")
    rolled_out(cluster)
    assert _images(cluster, "clustermesh-agent") == _images(cluster, "clustermesh-apiserver")
    _go_on(cluster, loads)


def _roll_out(cluster: Cluster, verb: str) -> None:
    cluster.kubectl("rollout", verb, "deployment/clustermesh-apiserver", "--namespace=kube-system")


def _images(cluster: Cluster, app: str) -> set[str]:
    return {
        each["image"] for pod in cluster.pods("kube-system", f"k8s-app={app}") for each in pod["spec"]["containers"]
    }


def _go_on(cluster: Cluster, loads: Sequence[Load]) -> None:
    """Until each has been answered so often again, by both clusters."""
    begun = [len(load.records) for load in loads]

    def answered(load: Load, since: int) -> bool:
        later = load.records[since:]
        return len(later) > _LEAST and {each.cluster for each in later} >= {"alpha", "beta"}

    cluster.until(lambda: all(map(answered, loads, begun)), "answers of both clusters to both")
