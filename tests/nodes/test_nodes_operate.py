"""What is done with real clusters while they are used: certificates are replaced, an archive for support is made."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

from mesh_web import Both, until_answered_by

from lab.kubernetes.cluster import Cluster, clustermesh
from lab.kubernetes.demo import scale
from lab.kubernetes.workloads import Load


def authority(of: Cluster) -> str:
    return str(of.plane.get("/api/v1/namespaces/kube-system/secrets/cilium-ca")["data"]["ca.crt"])


def restarts(of: Cluster) -> dict[str, int]:
    """By container of the API server's pod."""
    (pod,) = of.pods("kube-system", "k8s-app=clustermesh-apiserver")
    return {each["name"]: each["restartCount"] for each in pod["status"]["containerStatuses"]}


def test_an_authority_is_replaced_while_services_are_called_across_clusters(shared: Both) -> None:
    alpha, beta = shared
    before, restarted = [authority(each) for each in shared], restarts(beta)
    load = Load(alpha, "mesh")
    with load.running():
        clustermesh("certs", "rotate", "--ca", "--settle", "8s", "--context", "beta", "--destination-context", "alpha")
        time.sleep(5.0)  # until its etcd was started again
        begun = len(load.records)
        alpha.until(lambda: len(load.records) > begun + 100, "requests afterwards")
    assert load.traffic.failed == 0, load.traffic
    assert load.traffic.answers.keys() == {"alpha", "beta"}
    assert [authority(each) == old for each, old in zip(shared, before, strict=True)] == [True, False]
    clustermesh("certs", "status", "--context", "beta")
    # What comes later is heard by what was read anew.
    with load.running():
        beta.kubectl("scale", "deployment", "web", "--namespace=mesh", "--replicas=0")
        alpha.until(lambda: {each.cluster for each in load.records[-100:]} == {"alpha"}, "beta's backend is gone")
    scale(beta, "mesh", 1)
    until_answered_by(alpha, "alpha", "beta")
    assert restarts(beta) == restarted, "etcd is started again in its container"


def test_an_archive_has_logs_of_all_containers_and_the_tables_of_nodes(shared: Both, tmp_path: Path) -> None:
    clustermesh("sysdump", "--context", "alpha", "--output-file", str(tmp_path / "a.tgz"))
    with tarfile.open(tmp_path / "a.tgz") as archive:
        found = {each.name.partition("/")[2]: archive.extractfile(each) for each in archive}
        files = {name: file.read() for name, file in found.items() if file}
    index = json.loads(files["index.json"])
    assert [name for name in index["missing"] if not name.endswith("-release")] == [], index["missing"]
    wanted = ("agent", "hosts", "wireguard", "etcd", "apiserver", "kvstoremesh", "etcd-init", "cni-install")
    assert {f"{each}.log" for each in wanted} <= {name.rpartition("/")[2] for name in files if name.startswith("logs/")}
    for node in {name.split("/")[1] for name in files if name.startswith("nodes/")}:
        assert json.loads(files[f"nodes/{node}/status.json"])
        frontends = json.loads(files[f"nodes/{node}/service-list.json"])
        assert "mesh/web" in {each["service"] for each in frontends}
    assert any(name.endswith("/apiserver.metrics") for name in files)
