"""The global Service that tests of two clusters share: `web` in the namespace `mesh`."""

from __future__ import annotations

from lab.kubernetes.cluster import Cluster, at_once, clustermesh
from lab.kubernetes.demo import annotate, enable, until_connected
from lab.kubernetes.workloads import call, run_client, run_web

Both = tuple[Cluster, Cluster]


def share(both: Both) -> None:
    """Open to each other at ports of their nodes, connected, the Service global, a client in each. Again: the same."""
    at_once(enable, both)
    clustermesh("connect", "--context=alpha", "--destination-context=beta")
    at_once(until_connected, both)
    for cluster in both:
        run_web(cluster, "mesh")
        run_client(cluster, "mesh")
        annotate(cluster, "mesh", "global=true", "shared=true", "affinity=none")
    at_once(lambda cluster: cluster.until_running("mesh"), both)
    for cluster in both:
        until_answered_by(cluster, "alpha", "beta")


def rolled_out(cluster: Cluster, *what: str) -> None:
    """Until no pod of before is left of what the chart runs, or of `what`."""
    for each in what or ("daemonset/clustermesh-agent", "deployment/clustermesh-apiserver"):
        cluster.kubectl("rollout", "status", each, "--namespace=kube-system", "--timeout=240s")


def until_answered_by(cluster: Cluster, *names: str) -> None:
    """These, and no others, answer the client's calls."""
    cluster.until(lambda: call(cluster, "mesh").answers.keys() == {*names}, f"answers of {names} alone")
