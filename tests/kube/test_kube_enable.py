"""The API server of a cluster switched on and off by the real Helm, with the real chart, on a real Kubernetes API."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from chart_bed import HELM, MISSING, ROOT
from click.testing import CliRunner, Result
from joined_bed import Cluster
from kube_bed import KubeBed
from ports import free_port

from clustermesh.cli import main

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "")
Command = Callable[..., Result]


@pytest.fixture
def run(bed: KubeBed, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`clustermesh` for the cluster alpha, whose namespace has the chart, closed to others."""
    (tmp_path / "helm").symlink_to(HELM)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = bed.write_kubeconfig("alpha", cert="admin")
    flags = ["--kubeconfig", str(config), "-n", namespace]
    values = ["cluster.name=alpha", "cluster.id=1", "clustermesh.apiserver.service.type=ClusterIP"]
    sets = [part for value in values for part in ("--set", value)]
    argv = [str(HELM), "install", "mesh", str(ROOT / "charts" / "clustermesh"), *flags, *sets]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def clustermesh(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, *flags, "--context", "alpha"])

    yield clustermesh
    subprocess.run([str(HELM), "uninstall", "mesh", *flags], check=True, capture_output=True)


def revisions(bed: KubeBed, namespace: str) -> int:
    found = bed.ask("GET", f"/api/v1/namespaces/{namespace}/secrets?labelSelector=owner=helm")
    return len(found["items"])


def test_a_cluster_is_opened_once_and_closed_once_nobody_is_connected(
    run: Command, bed: KubeBed, namespace: str
) -> None:
    service = f"/api/v1/namespaces/{namespace}/services/clustermesh-apiserver"
    assert bed.ask("GET", service)["spec"]["type"] == "ClusterIP"
    for _ in range(2):
        result = run("enable", "--service-type", "NodePort")
        assert result.exit_code == 0, result.output
        assert bed.ask("GET", service)["spec"]["type"] == "NodePort"
        assert revisions(bed, namespace) == 2
    result = run("config", "set", "clustermesh.apiserver.service.annotations", '{"a": "b"}')
    assert result.exit_code == 0, result.output
    assert bed.ask("GET", service)["metadata"]["annotations"]["a"] == "b"
    given = json.loads(run("config", "view", "-o", "json").output)["values"]
    assert given["clustermesh"]["apiserver"]["service"] == {"annotations": {"a": "b"}, "type": "NodePort"}

    entry = "endpoints: [https://b:1]\ntrusted-ca-file: a\ncert-file: b\nkey-file: c\n"
    beta = base64.b64encode(entry.encode()).decode()
    alpha = Cluster(bed, namespace, "alpha", 1, free_port())
    alpha.make("Secret", "cilium-clustermesh", data={"beta": beta})
    before = revisions(bed, namespace)
    for refused in (
        ("disable",),
        ("config", "set", "cluster.id", "7"),
        ("config", "set", "cluster", '{"name": "gamma", "id": 7}'),
        ("config", "set", "clustermesh.apiserver.service", '{"type": "ClusterIP"}'),
        ("upgrade", "--set", "clustermesh.apiserver.service.type=ClusterIP"),
        ("config", "set", "etcd", '{"enabled": true, "endpoints": ["https://etcd.example:2379"]}'),
    ):
        result = run(*refused)
        assert (result.exit_code, "is connected to beta" in result.output) == (1, True), result.output
    bed.ask("DELETE", f"/api/v1/namespaces/{namespace}/secrets/cilium-clustermesh")
    users = yaml.safe_dump({"users": [{"name": "remote-gamma", "role": "remote"}]})
    spoilt = base64.b64encode(b"endpoints: [https://z:1]\n").decode()
    for kind, plural, name, data, says in (
        ("ConfigMap", "configmaps", "clustermesh-remote-users", {"users.yaml": users}, "is read by gamma: "),
        ("Secret", "secrets", "cilium-clustermesh", {"zeta": spoilt}, "is connected to zeta: "),
        ("Secret", "secrets", "cilium-kvstoremesh", {"zeta": spoilt}, "is connected to zeta: "),
    ):
        alpha.make(kind, name, data=data)
        for refused in (("disable",), ("uninstall",)):
            result = run(*refused)
            assert (result.exit_code, says in result.output) == (1, True), result.output
        bed.ask("DELETE", f"/api/v1/namespaces/{namespace}/{plural}/{name}")
    assert revisions(bed, namespace) == before
    result = run("disable")
    assert (result.exit_code, '    spec.type: "NodePort" -> "ClusterIP"' in result.output) == (0, True), result.output
    assert bed.ask("GET", service)["spec"]["type"] == "ClusterIP"
    result = run("enable")
    assert (result.exit_code, "is a ClusterIP" in result.output) == (1, True), result.output
    result = run("enable", "--service-type", "ClusterIP")
    assert (result.exit_code, "is open to other clusters already" in result.output) == (0, True), result.output


def test_invitations_with_cert_manager_need_the_key_of_the_authority(run: Command) -> None:
    tls = "clustermesh.apiserver.tls.auto"
    sets = (
        "clustermesh.invitations.enabled=true",
        f"{tls}.method=certmanager",
        f"{tls}.certManagerIssuerRef.name=mesh",
    )
    result = run("upgrade", *(part for value in sets for part in ("--set", value)))
    assert (result.exit_code, "ca.key of the Secret cilium-ca" in result.output) == (1, True), result.output


def test_what_helm_refuses_is_said_in_its_words_and_nothing_changes(run: Command, bed: KubeBed, namespace: str) -> None:
    result = run("config", "set", "clustermesh.apiserver.service.type", "Nowhere")
    assert (result.exit_code, "helm: " in result.output, "service/type" in result.output) == (1, True, True), (
        result.output
    )
    for key in ("", ".", "a..b"):
        result = run("config", "set", key, "1")
        assert (result.exit_code, "must be names with dots" in result.output) == (2, True), result.output
    result = run("install", "--release", "other")
    assert (result.exit_code, "as release mesh, and not as other" in result.output) == (1, True), result.output
    assert revisions(bed, namespace) == 1


def test_a_namespace_without_the_chart_is_told_how_to_have_it(bed: KubeBed, namespace: str) -> None:
    config = bed.write_kubeconfig("alpha", cert="admin")
    result = CliRunner().invoke(main, ["enable", "--kubeconfig", str(config), "--context", "alpha", "-n", namespace])
    assert (result.exit_code, "clustermesh install" in result.output) == (1, True), result.output
