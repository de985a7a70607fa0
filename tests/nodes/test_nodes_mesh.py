"""Two real clusters made one mesh by our commands, and used through kubectl: what a user does, in the user's order."""

from __future__ import annotations

import json

from mesh_web import Both, rolled_out, until_answered_by

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
    loads = [Load(cluster, "mesh", rate=50.0) for cluster in shared]
    with loads[0].running(), loads[1].running():
        scale(alpha, "mesh", 0)
        until_answered_by(alpha, "beta")
        scale(alpha, "mesh", 1)
        until_answered_by(alpha, "alpha", "beta")
    for load in loads:
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
    invitations = "--set=clustermesh.invitations.enabled=true"
    assert "Deployment clustermesh-invitations" in clustermesh("upgrade", "--context=beta", invitations)
    rolled_out(beta, "deployment/clustermesh-invitations")
    token = clustermesh("invite", "create", "--context=beta", "--to=alpha").strip()
    clustermesh("join", f"--kubeconfig={alpha.plane.kubeconfig}", "--context=alpha", token)  # which does not know beta
    at_once(until_connected, shared)
    for cluster in shared:
        until_answered_by(cluster, "alpha", "beta")
