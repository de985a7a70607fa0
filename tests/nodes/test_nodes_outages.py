"""What ends without being asked to, under traffic: an API, pods of the mesh itself, a whole cluster. The last leaves
one cluster of the two, so these tests come last, and in this order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mesh_web import Both, rolled_out, until_answered_by

from lab.kubernetes.cluster import Cluster, at_once, clustermesh
from lab.kubernetes.demo import annotate
from lab.kubernetes.workloads import PORT, Load, parse, service_address
from lab.records import Record, summarize

_DOWN_SECONDS = float(os.environ.get("NODES_DOWN_SECONDS", "20"))


@contextmanager
def load_without_api(cluster: Cluster) -> Iterator[list[Record]]:
    """Requests of a process that nobody is connected with, so that it goes on without an API; read at the end."""
    address = service_address(cluster, "mesh")
    script = f"python3 -I /scripts/client.py {address} {PORT} --rate=50 --seconds=600 --wait=15"
    words = ["exec", "--namespace=mesh", "client", "--", "sh", "-c"]
    found: list[Record] = []
    cluster.kubectl(*words, f"{script} >/tmp/records 2>&1 & echo $! >/tmp/pid")
    yield found
    cluster.kubectl(*words, "kill -TERM $(cat /tmp/pid)")
    cluster.until(lambda: '"done"' in cluster.kubectl(*words, "tail -n 1 /tmp/records"), "the end of the load")
    found += parse(cluster.kubectl(*words, "cat /tmp/records").encode())


def test_no_request_fails_while_both_apis_are_down(shared: Both) -> None:
    alpha, _ = shared
    with load_without_api(alpha) as records:
        for cluster in shared:
            cluster.plane.stop_server()
        time.sleep(_DOWN_SECONDS)
        for cluster in shared:
            cluster.plane.start_server()
        for cluster in shared:
            cluster.plane.until_ready()
            cluster.plane.start_clients()
        time.sleep(2)
    traffic = summarize(records)
    assert traffic.failed == 0, traffic
    assert traffic.answers.keys() == {"alpha", "beta"}
    assert traffic.requests > 40 * _DOWN_SECONDS


def test_no_request_fails_while_api_servers_with_their_etcds_are_made_anew_in_both_at_once(shared: Both) -> None:
    load = Load(shared[0], "mesh")
    with load.running():
        at_once(_restart_api_server, shared)
    assert load.traffic.failed == 0, load.traffic
    assert load.traffic.answers.keys() == {"alpha", "beta"}


def _restart_api_server(cluster: Cluster) -> None:
    cluster.kubectl("rollout", "restart", "deployment/clustermesh-apiserver", "--namespace=kube-system")
    rolled_out(cluster, "deployment/clustermesh-apiserver")


def test_a_cluster_that_is_gone_without_a_word_harms_nobody_who_prefers_the_own_and_can_be_left(shared: Both) -> None:
    alpha, beta = shared
    annotate(alpha, "mesh", "affinity=local")
    until_answered_by(alpha, "alpha")
    load = Load(alpha, "mesh")
    with load.running():
        beta.stop()
        time.sleep(5)
        clustermesh("disconnect", "--context=alpha", "--peer=beta")
    assert load.traffic.failed == 0, load.traffic
    assert load.traffic.answers.keys() == {"alpha"}
    annotate(alpha, "mesh", "affinity=none")
    until_answered_by(alpha, "alpha")
    clustermesh("status", "--context=alpha", "--wait")
