"""Two real clusters made one mesh by our commands, and used through kubectl: what a user does, in the user's order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh_web import Both, until_answered_by

from lab.kubernetes import ground
from lab.kubernetes.cluster import at_once, clustermesh
from lab.kubernetes.demo import annotate, scale, until_connected
from lab.kubernetes.workloads import Load, call


def test_a_pod_is_answered_by_both_clusters_once_the_service_is_global(shared: Both) -> None:
    for cluster in shared:
        traffic = call(cluster, "mesh", requests=200)
        assert traffic.answers.keys() == {"alpha", "beta"}
        assert traffic.failed == 0


def test_no_request_fails_while_the_pods_of_a_cluster_go_and_come_back(shared: Both) -> None:
    alpha, _ = shared
    load = Load(alpha, "mesh")
    with load.running():
        scale(alpha, "mesh", 0)
        until_answered_by(alpha, "beta")
        scale(alpha, "mesh", 1)
        until_answered_by(alpha, "alpha", "beta")
    assert load.traffic.failed == 0, load.traffic


def test_affinity_and_sharing_follow_the_annotations(shared: Both) -> None:
    alpha, beta = shared
    for said, answering in (
        ("affinity=local", ["alpha"]),
        ("affinity=remote", ["beta"]),
        ("affinity=none", ["alpha", "beta"]),
    ):
        annotate(alpha, "mesh", said)
        until_answered_by(alpha, *answering)
    annotate(beta, "mesh", "shared=false")
    until_answered_by(alpha, "alpha")
    until_answered_by(beta, "alpha", "beta")
    annotate(beta, "mesh", "shared=true")
    until_answered_by(alpha, "alpha", "beta")


def test_connecting_again_changes_nothing_and_status_is_well(shared: Both) -> None:
    assert "nothing to do" in clustermesh("connect", "--context=alpha", "--destination-context=beta")
    for cluster in shared:
        found = json.loads(clustermesh("status", "--context", cluster.name, "-o", "json"))
        assert found["errors"] == []


def test_what_is_disconnected_serves_itself_and_by_invitation_it_is_back(shared: Both) -> None:
    alpha, beta = shared
    load = Load(alpha, "mesh")
    with load.running():
        clustermesh("disconnect", "--context=alpha", "--destination-context=beta")
        until_answered_by(alpha, "alpha")
        until_answered_by(beta, "beta")
    assert load.traffic.failed == 0, load.traffic
    with _inviting("alpha") as address:
        token = clustermesh("invite", "create", "--context=alpha", "--address", address, "--to=beta").strip()
        clustermesh("join", "--context=beta", token)
    at_once(until_connected, shared)
    for cluster in shared:
        until_answered_by(cluster, "alpha", "beta")


@contextmanager
def _inviting(name: str) -> Iterator[str]:
    """Where newcomers are answered."""
    address = f"{ground.NETWORK[1]}:9443"
    argv = [str(Path(sys.executable).with_name("clustermesh")), "invite", "serve", "--context", name]
    kubeconfig = ["--kubeconfig", str(ground.FOLDER / "kubeconfig")]
    with subprocess.Popen([*argv, *kubeconfig, "--listen", address]) as server:
        try:
            yield address
        finally:
            server.terminate()
