"""The chart put into a real Kubernetes API and taken out of it by commands, with the real Helm."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chart_bed import HELM, MISSING
from click.testing import CliRunner, Result
from kube_bed import KubeBed

from clustermesh.cli import main
from clustermesh.errors import Unavailable
from clustermesh.joining import helm_program
from clustermesh.joining.differences import changed_fields, flatten
from clustermesh.joining.helm import Helm, find_chart

needs_helm = pytest.mark.skipif(bool(MISSING), reason=MISSING or "")
Command = Callable[..., Result]
ALPHA = ("--set", "cluster.name=alpha", "--set", "cluster.id=1", "--set", "clustermesh.apiserver.service.nodePort=0")
SLICES = "/apis/discovery.k8s.io/v1"
FILES = (("trusted-ca-file", "-ca.crt"), ("key-file", ".key"), ("cert-file", ".crt"))
DECLARED = "clustermesh.config.clusters[0]"
MANY = [f"--flag-number-{number}=something" for number in range(20)]


@pytest.fixture
def run(bed: KubeBed, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """`clustermesh` for a namespace of its own."""
    (tmp_path / "helm").symlink_to(HELM)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    config = bed.write_kubeconfig("alpha", cert="admin")

    def clustermesh(*words: str) -> Result:
        flags = ["--kubeconfig", str(config), "--context", "alpha"]
        within = [] if "-n" in words else ["-n", namespace]
        return CliRunner().invoke(main, [*words, *within, *flags])

    yield clustermesh
    flags = ["--kubeconfig", str(config), "-n", namespace]
    subprocess.run(
        [str(HELM), "uninstall", "--ignore-not-found", "clustermesh", *flags], check=True, capture_output=True
    )


def contents(bed: KubeBed, namespace: str) -> dict[str, str]:
    """resourceVersion of everything that the chart, Helm or a command may make."""
    at = f"namespaces/{namespace}"
    lists = [f"/api/v1/{at}/{each}" for each in ("secrets", "configmaps", "services", "serviceaccounts")]
    lists += [f"/apis/apps/v1/{at}/{each}" for each in ("deployments", "daemonsets")]
    lists += [f"/apis/batch/v1/{at}/{each}" for each in ("jobs", "cronjobs")]
    lists += [f"/apis/policy/v1/{at}/poddisruptionbudgets"]
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    lists += [f"{rbac}/{at}/{each}" for each in ("roles", "rolebindings")]
    lists += [f"{rbac}/{each}" for each in ("clusterroles", "clusterrolebindings")]
    found = {
        f"{path.rpartition('/')[2]}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for path in lists
        for item in bed.ask("GET", path)["items"]
    }
    return {key: value for key, value in found.items() if "system:" not in key and key != "configmaps/kube-root-ca.crt"}


def slice_of_beta(bed: KubeBed, namespace: str, name: str, manager: str) -> str:
    """An EndpointSlice of beta's backends in this namespace that `manager` has written; its name."""
    labels = {"endpointslice.kubernetes.io/managed-by": "endpointslice-mesh-controller.cilium.io"}
    made = {"metadata": {"name": name, "labels": labels}, "addressType": "IPv4", "endpoints": []}
    bed.ask("POST", f"{SLICES}/namespaces/{namespace}/endpointslices?fieldManager={manager}", made)
    return name


def slices_of(bed: KubeBed, namespace: str) -> list[str]:
    found = bed.ask("GET", f"{SLICES}/namespaces/{namespace}/endpointslices")["items"]
    return sorted(each["metadata"]["name"] for each in found)


@needs_helm
def test_what_is_switched_off_leaves_no_backends_of_other_clusters(run: Command, bed: KubeBed, namespace: str) -> None:
    switch = "clustermesh.enableEndpointSliceSynchronization="
    assert run("install", *ALPHA, "--set", f"{switch}true").exit_code == 0
    ours = slice_of_beta(bed, namespace, "ours", "clustermesh")
    result = run("upgrade")
    assert (result.exit_code, "nothing to do" in result.output) == (0, True), result.output
    assert slices_of(bed, namespace) == [ours]
    result = run("upgrade", "--set", f"{switch}false")
    assert (result.exit_code, f"- EndpointSlice {namespace}/ours" in result.output) == (0, True), result.output
    assert slices_of(bed, namespace) == []
    slice_of_beta(bed, namespace, "ours", "clustermesh")  # as where Helm alone has switched it off
    assert "nothing to do" not in run("upgrade").output
    assert slices_of(bed, namespace) == []


HELD = {"clustermesh.io/cleanup": "held"}
MINE = {"kubernetes.io/os": "linux", "mine": "yes"}
MERGE = "application/merge-patch+json"


def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our command, once Helm has done its part."""
    whole = Helm.uninstall

    async def uninstall(helm: Helm, name: str) -> None:
        await whole(helm, name)
        raise Unavailable("cut off")

    monkeypatch.setattr(Helm, "uninstall", uninstall)


@needs_helm
def test_nodes_are_cleaned_by_pods_once_the_agents_are_gone(
    run: Command, bed: KubeBed, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemons = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
    at = f"{daemons}/clustermesh-cleanup"
    words = ("uninstall", "--cleanup-nodes")

    def names() -> list[str]:
        return [each["metadata"]["name"] for each in bed.ask("GET", daemons)["items"]]

    def selector() -> Any:
        return bed.ask("GET", at)["spec"]["template"]["spec"].get("nodeSelector", {})

    assert run("install", *ALPHA, "--set", "cni.install=true", "--set", "nodeSelector.mine=yes").exit_code == 0
    held = bed.ask("GET", f"{daemons}/clustermesh-agent")
    for number, code in (("0.0.9", 1), ("0.1.0", 0)):
        labels = {"metadata": {"labels": {"app.kubernetes.io/version": number}}}
        bed.ask("PATCH", f"{daemons}/clustermesh-agent", labels, MERGE)
        result = run(*words, "--dry-run")
        assert (result.exit_code, "would go" in result.output) == (code, not code), result.output
        assert ("`clustermesh upgrade` first" in result.output) is bool(code)
        assert "clustermesh-cleanup" not in names()
    with monkeypatch.context() as patched:
        cut_off(patched)
        assert run(*words).exit_code == 1
    assert (names(), selector()) == (["clustermesh-cleanup"], HELD | MINE)
    with ThreadPoolExecutor(1) as threads:
        cleaning = threads.submit(run, *words)
        while selector() != MINE:
            assert not cleaning.done(), cleaning.result().output
            time.sleep(0.05)
        found = bed.ask("GET", at)
        counts = dict.fromkeys(("desiredNumberScheduled", "updatedNumberScheduled", "numberReady"), 2)
        counts |= {"currentNumberScheduled": 2, "numberMisscheduled": 0}
        counts |= {"observedGeneration": found["metadata"]["generation"]}
        bed.ask("PATCH", f"{at}/status", {"status": counts}, MERGE)  # by a controller manager, which is not here
        assert cleaning.result(timeout=60).exit_code == 0
    assert "off 2 nodes" in cleaning.result().output
    assert names() == []
    pod = found["spec"]["template"]["spec"]
    (cleanup, plugin), (rest,) = pod["initContainers"], pod["containers"]
    assert (plugin["args"][-1], cleanup["args"]) == ("--remove", ["node", "cleanup", "--force"])
    assert (rest["command"], pod["automountServiceAccountToken"]) == (["sleep", "infinity"], False)
    result = run(*words)
    assert (result.exit_code, "no node is looked at" in result.output) == (0, True), result.output
    meta = {"name": "clustermesh-agent", "namespace": namespace}
    agents = {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": held["spec"]}
    bed.create(agents)  # by somebody's own hands, as of `helm template`
    result = run(*words)
    bed.delete(agents)
    assert (result.exit_code, "have it deleted by what made it" in result.output) == (1, True), result.output
    assert (names(), selector()) == (["clustermesh-cleanup"], HELD | MINE), "once they are gone, it tells"
    result = run("install", *ALPHA)
    assert (result.exit_code, "- DaemonSet clustermesh-cleanup" in result.output) == (0, True), result.output
    assert "clustermesh-cleanup" not in names()


@needs_helm
def test_the_chart_is_put_in_once_changed_where_asked_and_nothing_of_it_is_left(
    run: Command, bed: KubeBed, namespace: str
) -> None:
    before = contents(bed, namespace)
    result = run("install", *ALPHA, "--dry-run")
    assert (result.exit_code, "+ Deployment clustermesh-apiserver" in result.output) == (0, True), result.output
    assert contents(bed, namespace) == before
    result = run("install", *ALPHA)
    assert (result.exit_code, "is installed" in result.output) == (0, True), result.output
    installed = contents(bed, namespace)
    result = run("install", *ALPHA)
    assert (result.exit_code, "nothing to do" in result.output) == (0, True), result.output
    assert contents(bed, namespace) == installed

    change = (
        "--set",
        "clustermesh.apiserver.service.type=ClusterIP",
        "--set",
        "clustermesh.apiserver.kvstoremesh.enabled=false",
    )
    result = run("upgrade", *change)
    lines = result.output.splitlines()
    assert "~ Service clustermesh-apiserver" in lines
    assert '    spec.type: "NodePort" -> "ClusterIP"' in lines
    assert any("containers[kvstoremesh].image" in line and line.endswith("-> none") for line in lines), result.output
    deployment = bed.ask("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/clustermesh-apiserver")
    assert [each["name"] for each in deployment["spec"]["template"]["spec"]["containers"]] == ["etcd", "apiserver"]

    bed.ask(
        "PATCH",
        f"/apis/apps/v1/namespaces/{namespace}/deployments/clustermesh-apiserver",
        {"spec": {"template": {"spec": {"priorityClassName": "mine"}}}},
        "application/merge-patch+json",
    )
    result = run("upgrade", "--dry-run")  # somebody else's change is seen
    assert 'priorityClassName: "mine" -> "system-cluster-critical"' in result.output, result.output

    for kind, name, manager in (
        ("Secret", "cilium-ca", "clustermesh"),
        ("Secret", "clustermesh-apiserver-server-cert", "clustermesh"),
        ("Secret", "clustermesh-apiserver-admin-cert", "cert-manager"),
        ("ConfigMap", "clustermesh-remote-users", "clustermesh"),
    ):
        meta = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": manager}}
        bed.create({"apiVersion": "v1", "kind": kind, "metadata": meta})
    ours = slice_of_beta(bed, namespace, "ours", "clustermesh")
    ciliums = slice_of_beta(bed, namespace, "ciliums", "cilium-operator")
    result = run("uninstall", "--dry-run")
    assert (result.exit_code, f"- EndpointSlice {namespace}/ours" in result.output) == (0, True), result.output
    assert slices_of(bed, namespace) == [ciliums, ours]
    result = run("uninstall")
    assert (result.exit_code, "- Deployment clustermesh-apiserver" in result.output) == (0, True), result.output
    assert slices_of(bed, namespace) == [ciliums]
    assert "Secret cilium-ca stays" in result.output
    others = {"secrets/clustermesh-apiserver-admin-cert"}
    assert contents(bed, namespace).keys() - before.keys() == {"secrets/cilium-ca", *others}
    assert run("uninstall", "--authority").exit_code == 0
    assert contents(bed, namespace).keys() - before.keys() == others
    result = run("uninstall", "--dry-run")
    assert (result.exit_code, "nothing to do" in result.output) == (0, True), result.output


@needs_helm
def test_who_is_connected_is_not_taken_away_and_no_secret_is_shown(run: Command, bed: KubeBed, namespace: str) -> None:
    secret = "bm90IGZvciBhbnlib2R5"
    key = base64.b64encode(b"not for anybody either" * 3).decode()
    tls = [f"{DECLARED}.tls.{name}={value}" for name, value in (("caCert", secret), ("cert", secret), ("key", key))]
    peers = ["clustermesh.config.enabled=true", f"{DECLARED}.name=beta", f"{DECLARED}.ips[0]=192.0.2.1", *tls]
    declared = [part for each in peers for part in ("--set", each)]
    assert run("install", *ALPHA, *declared).exit_code == 0
    result = run("upgrade", "--set", f"{DECLARED}.tls.key=b3RoZXI=", *declared[:-2])
    assert "data.beta.etcd-client.key: (hidden) -> (hidden)" in result.output, result.output
    assert secret not in result.output
    assert "b3RoZXI" not in result.output
    assert key not in result.output
    assert run("upgrade", *declared).exit_code == 0
    shown = run("config", "view").output
    assert ("name: beta" in shown, secret in shown, key in shown) == (True, True, False)
    result = run("upgrade", "--set", "cluster.id=7")
    assert (result.exit_code, "is connected to beta" in result.output) == (1, True), result.output


@needs_helm
def test_agents_of_a_connected_cluster_are_led_where_the_mirror_and_its_port_are_now(
    run: Command, bed: KubeBed, namespace: str
) -> None:
    mirror, port = "clustermesh.apiserver.kvstoremesh.enabled", "clustermesh.apiserver.etcd.port"
    assert run("install", *ALPHA).exit_code == 0

    def secret(name: str) -> dict[str, str]:
        data = bed.ask("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}").get("data") or {}
        return {key: base64.b64decode(text).decode() for key, text in data.items()}

    def make(name: str, entry: str) -> None:
        meta = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "clustermesh"}}
        data = {"beta": base64.b64encode(entry.encode()).decode()}
        bed.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})

    def entry(url: str, shown: str) -> str:
        files = (f"{key}: /var/lib/cilium/clustermesh/{shown}-etcd-client{end}\n" for key, end in FILES)
        return f"endpoints:\n- {url}\n" + "".join(files)

    there = entry("https://beta.example:2379", "common")
    copies = [entry(f"https://clustermesh-apiserver.{namespace}.svc:{number}", "local") for number in (12379, 3379)]
    make("cilium-clustermesh", copies[0])
    make("cilium-kvstoremesh", there)
    result = run("upgrade", "--set", f"{mirror}=false", "--dry-run")
    assert (result.exit_code, "    agents read beta" in result.output) == (0, True), result.output
    assert secret("cilium-clustermesh") == {"beta": copies[0]}
    for words, says, agents, copied in (
        (("upgrade", "--set", f"{mirror}=false"), "    agents read beta", there, {}),
        (("config", "set", mirror, "true"), "    agents read the copies of beta", copies[0], {"beta": there}),
        (("upgrade", "--set", f"{port}=3379"), "    agents read the copies of beta", copies[1], {"beta": there}),
    ):
        result = run(*words)
        assert (result.exit_code, says in result.output) == (0, True), result.output
        assert (secret("cilium-clustermesh"), secret("cilium-kvstoremesh")) == ({"beta": agents}, copied)

    # Helm by other hands, or ours cut off: the next upgrade leads them.
    flags = ["--kubeconfig", str(bed.write_kubeconfig("alpha", cert="admin")), "-n", namespace]
    argv = [str(HELM), "upgrade", "clustermesh", find_chart(), *flags, "--reuse-values", "--set", f"{mirror}=false"]
    subprocess.run(argv, check=True, capture_output=True)
    assert secret("cilium-clustermesh") == {"beta": copies[1]}
    result = run("upgrade")
    assert (result.exit_code, "agents read beta" in result.output) == (0, True), result.output
    assert (secret("cilium-clustermesh"), secret("cilium-kvstoremesh")) == ({"beta": there}, {})

    users = {"users.yaml": "users: [{name: remote-beta, role: remote}]"}
    meta = {"name": "clustermesh-remote-users", "namespace": namespace}
    bed.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": users})
    result = run("upgrade", "--set", "clustermesh.apiserver.service.nodePort=32111")
    told = "this cluster is read by beta, who would look for it where it was" in result.output
    assert (result.exit_code, told) == (1, True), result.output


@needs_helm
def test_what_a_first_install_left_that_failed_is_finished_by_the_next_or_taken_out(
    run: Command, bed: KubeBed, namespace: str
) -> None:
    before, account = contents(bed, namespace), "clustermesh-apiserver"
    for again in (("install", *ALPHA), ("uninstall",)):
        result = run("install", *ALPHA, "--set", "clustermesh.apiserver.service.nodePort=1")
        assert (result.exit_code, "provided port is not in the valid range" in result.output) == (1, True), (
            result.output
        )
        assert f"serviceaccounts/{account}" in contents(bed, namespace)
        result = run(*again)
        assert (result.exit_code, "nothing to do" in result.output) == (0, False), result.output
        assert ("deployments/clustermesh-apiserver" in contents(bed, namespace)) is (again[0] == "install")
        if again[0] == "install":
            assert "nothing to do" in run(*again).output
            assert run("uninstall").exit_code == 0
        assert contents(bed, namespace).keys() == before.keys()


@needs_helm
def test_a_helm_that_was_cut_off_is_named_with_what_to_do(run: Command, bed: KubeBed, namespace: str) -> None:
    first, second = (f"sh.helm.release.v1.clustermesh.v{number}" for number in (1, 2))
    more = ("clustermesh.apiserver.service.type", "ClusterIP")

    def check(status: str, remedy: str, *words: str) -> None:
        result = run(*words)
        said = f"release clustermesh is {status} since 2" in result.output
        assert (result.exit_code, said, remedy in result.output) == (1, True, True), result.output

    assert run("install", *ALPHA).exit_code == 0
    leave(bed, namespace, first, "uninstalling")
    check("uninstalling", "`clustermesh uninstall`", "install", *ALPHA)
    leave(bed, namespace, first, "deployed")
    assert run("config", "set", *more).exit_code == 0
    leave(bed, namespace, first, "deployed")
    leave(bed, namespace, second, "pending-upgrade")
    remedy = f"{shutil.which('helm')} rollback clustermesh --namespace {namespace} --kube-context alpha"
    remedy = f"KUBECONFIG={bed.write_kubeconfig('alpha', cert='admin')} {remedy}"
    check("pending-upgrade", f"`{remedy}`", "config", "set", *more)
    subprocess.run(["sh", "-c", remedy], check=True, capture_output=True)
    result = run("config", "set", *more)
    assert (result.exit_code, 'spec.type: "NodePort" -> "ClusterIP"' in result.output) == (0, True), result.output
    for number in (1, 2, 3):
        bed.ask("DELETE", f"/api/v1/namespaces/{namespace}/secrets/sh.helm.release.v1.clustermesh.v{number}")
    leave(bed, namespace, "sh.helm.release.v1.clustermesh.v4", "pending-install")
    check("pending-install", "`clustermesh uninstall`", "upgrade")
    result = run("uninstall")
    assert (result.exit_code, "is no longer in alpha" in result.output) == (0, True), result.output


def leave(bed: KubeBed, namespace: str, name: str, status: str) -> None:
    """A revision as a Helm leaves it that is cut off."""
    at = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    kept = base64.b64decode(base64.b64decode(bed.ask("GET", at)["data"]["release"]))
    release = json.loads(gzip.decompress(kept))
    release["info"]["status"] = status
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()
    change = {"metadata": {"labels": {"status": status}}, "data": {"release": packed}}
    bed.ask("PATCH", at, change, "application/merge-patch+json")


DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@needs_helm
def test_definitions_come_with_an_upgrade_too_and_those_of_others_stay(
    run: Command, bed: KubeBed, namespace: str
) -> None:
    assert run("install", *ALPHA).exit_code == 0
    exports, imports, peers = (
        f"{DEFINITIONS}/{each}.{group}"
        for each, group in (
            ("serviceexports", "multicluster.x-k8s.io"),
            ("serviceimports", "multicluster.x-k8s.io"),
            ("clustermeshpeers", "clustermesh.io"),
        )
    )
    bed.ask("DELETE", imports)
    merge = "application/merge-patch+json"
    short = {"spec": {"names": {"shortNames": ["other"]}}}
    bed.ask("PATCH", peers, short, merge)
    bed.ask("PATCH", exports, {**short, "metadata": {"labels": None}}, merge)
    for words, applied in ((("--dry-run",), False), ((), True)):
        result = run("upgrade", *words)
        lines = result.output.splitlines()
        assert result.exit_code == 0, result.output
        assert "+ CustomResourceDefinition serviceimports.multicluster.x-k8s.io" in lines
        assert '    spec.names.shortNames: ["other"] -> ["cmpeer"]' in lines
        assert not any("serviceexports" in line for line in lines)
        assert (bed.ask("GET", peers)["spec"]["names"]["shortNames"] == ["cmpeer"]) is applied
    assert bed.ask("GET", imports)["spec"]["names"]["kind"] == "ServiceImport"
    assert bed.ask("GET", exports)["spec"]["names"]["shortNames"] == ["other"]
    assert "nothing to do" in run("upgrade").output


@needs_helm
def test_without_the_namespace_nothing_is_written(run: Command, bed: KubeBed, namespace: str) -> None:
    before = contents(bed, namespace)
    result = run("install", *ALPHA, "-n", "nowhere")
    assert (result.exit_code, "namespace nowhere is not there: `kubectl create" in result.output) == (1, True)
    assert contents(bed, namespace) == before


def test_without_helm_the_error_says_what_to_run_elsewhere(
    bed: KubeBed, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = bed.write_kubeconfig("alpha", cert="admin")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(helm_program, "PLACES", ())
    flags = ["--kubeconfig", str(config), "-n", namespace, "--context", "alpha"]
    result = CliRunner().invoke(main, ["install", *ALPHA, *flags])
    assert result.exit_code == 1
    assert "there is none in PATH, and none came with this program. Put Helm 3.14" in result.output
    elsewhere = f"run elsewhere: helm upgrade clustermesh {find_chart()} --install --reset-then-reuse-values"
    assert elsewhere in result.output
    assert result.output.endswith(f" --namespace {namespace} --kube-context alpha\n")


def _deployment(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "spec": {"containers": list(containers), **spec}}


@pytest.mark.parametrize(
    ("live", "applied", "old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, ["a: 1 -> 2"]),
        ({"a": 1, "b": 3}, {"a": 1, "b": 3}, {"a": 1}, {"a": 1}, []),  # b is the API's own default
        ({"a": 1, "b": 3}, {"a": 1, "b": 3}, {"a": 1, "b": 3}, {"a": 1}, ["b: 3 -> none"]),
        ({"a": 5}, {"a": 1}, {"a": 1}, {"a": 1}, ["a: 5 -> 1"]),  # somebody changed it
        ({"status": {"x": 1}}, {"status": {"x": 2}}, None, {}, []),
        ({"metadata": {"uid": "1"}}, {"metadata": {"uid": "2"}}, None, {}, []),
        ({"l": [1, 2]}, {"l": [1, 2]}, {"l": [1, 2]}, {"l": [1]}, ["l: [1, 2] -> [1]"]),
        ({"l": [*MANY, "--a=1"]}, {"l": [*MANY, "--a=2"]}, {}, {}, ['l: ["--a=1"] -> ["--a=2"]']),
    ],
)
def test_a_change_is_a_field_that_will_be_otherwise(
    live: Any, applied: Any, old: Any, new: Any, expected: list[str]
) -> None:
    assert list(changed_fields("ConfigMap", live, applied, old, new)) == expected


def test_items_are_known_by_their_names_and_not_by_their_places() -> None:
    one, two = {"name": "x", "image": "1"}, {"name": "y", "image": "2"}
    assert flatten(_deployment(one, two)) == flatten(_deployment(two, one))
    assert flatten(_deployment(one))["spec.containers[x].image"] == "1"
