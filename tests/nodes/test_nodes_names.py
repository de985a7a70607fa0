"""Names of Services of all clusters, asked of a real CoreDNS: it reads what the API server writes into the Kubernetes
API, and is reached through our network and its Service."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any, Final

import pytest
from mesh_web import Both

from lab.kubernetes.cluster import Cluster, at_once
from lab.kubernetes.ground import BUILD
from lab.kubernetes.node import DNS
from lab.kubernetes.workloads import call, run_client, run_web

pytestmark = pytest.mark.skipif(not (BUILD / "coredns").exists(), reason="no CoreDNS here: tools/setup-kube builds it")

_COREFILE: Final = """
.:5353 {
  errors
  ready
  kubernetes cluster.local clusterset.local {
    multicluster clusterset.local
  }
}
"""
_RESOLVE: Final = """
import json, socket, sys
try:
    print(json.dumps(socket.gethostbyname_ex(sys.argv[1])[2]))
except OSError:
    print("[]")
"""
_KEEP_ASKING: Final = """
import json, socket, sys, time
name = b"".join(bytes([len(each)]) + each.encode() for each in "web.names.svc.cluster.local".split("."))
question = bytes.fromhex("000101000001000000000000") + name + bytes.fromhex("0000010001")
asking, errors, last, begun = socket.socket(type=socket.SOCK_DGRAM), [], False, time.monotonic()
asking.settimeout(0.5)
asking.connect((sys.argv[1], 53))
while time.monotonic() - begun < 25 or not last and time.monotonic() - begun < 60:
    last = False
    try:
        asking.send(question)
        last = len(asking.recv(512)) > 12
    except TimeoutError:
        pass
    except OSError as e:
        if e.errno != 111:  # nobody answers just now
            errors.append(str(e))
    time.sleep(0.2)
print(json.dumps({"last": last, "errors": errors}))
"""
_READ: Final = (
    ("", ["endpoints", "services", "pods", "namespaces"]),
    ("discovery.k8s.io", ["endpointslices"]),
    ("multicluster.x-k8s.io", ["serviceimports"]),
)


@pytest.fixture(scope="module")
def named(shared: Both) -> Both:
    """CoreDNS in each; `web` in the namespace `names` exported by both, and a headless `heads` that is global."""
    for cluster in shared:
        cluster.apply(*_coredns())
        run_web(cluster, "names")
        run_client(cluster, "names")
        export = {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport"}
        heads = {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 8080}]}
        annotated = {"name": "heads", "namespace": "names", "annotations": {"service.cilium.io/global": "true"}}
        cluster.apply(
            export | {"metadata": {"name": "web", "namespace": "names"}},
            {"apiVersion": "v1", "kind": "Service", "metadata": annotated, "spec": heads},
        )
    at_once(lambda cluster: cluster.until_running("names"), shared)
    at_once(lambda cluster: cluster.until_running("kube-system", "k8s-app=kube-dns"), shared)
    return shared


@pytest.mark.parametrize("which", [0, 1])
def test_an_exported_service_is_called_by_its_name_in_the_clusterset(named: Both, which: int) -> None:
    cluster, name = named[which], "web.names.svc.clusterset.local"
    cluster.until(lambda: bool(_addresses(cluster, name)), f"an address of {name}")
    cluster.until(lambda: call(cluster, "names", name).answers.keys() == {"alpha", "beta"}, "answers of both")
    own = call(cluster, "names", "web.names.svc.cluster.local")
    assert own.answers == {cluster.name: own.requests}


@pytest.mark.parametrize("which", [0, 1])
def test_a_headless_global_service_names_the_pods_of_both_clusters(named: Both, which: int) -> None:
    cluster, name = named[which], "heads.names.svc.cluster.local"
    cluster.until(lambda: len(_addresses(cluster, name)) == 2, f"two addresses of {name}")
    found = [ip_address(each) for each in _addresses(cluster, name)]
    assert all(any(each in ip_network(cidr) for each in found) for cidr in ("10.1.0.0/16", "10.2.0.0/16"))


def test_a_connected_udp_socket_outlives_the_backend_that_it_had(named: Both) -> None:
    """CoreDNS' pod is another one after it; whoever asks keeps its socket."""
    cluster, words = named[0], ["exec", "--namespace=names", "client", "--", "python3", "-c", _KEEP_ASKING, DNS]
    with ThreadPoolExecutor(1) as beside:
        asking = beside.submit(cluster.kubectl, *words)
        before = {each["metadata"]["name"] for each in cluster.pods("kube-system", "k8s-app=kube-dns")}
        cluster.kubectl("rollout", "restart", "deployment/coredns", "--namespace=kube-system")
        cluster.until(lambda: before.isdisjoint(_names(cluster)), "CoreDNS' old pod gone")
        answers = json.loads(asking.result())
    assert answers == {"last": True, "errors": []}


def _names(cluster: Cluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.pods("kube-system", "k8s-app=kube-dns")}


def _addresses(cluster: Cluster, name: str) -> list[str]:
    """What a pod finds; nothing is a name that is not known."""
    words = ["exec", "--namespace=names", "client", "--", "python3", "-c", _RESOLVE, name]
    return list(json.loads(cluster.kubectl(*words)))


def _coredns() -> list[dict[str, Any]]:
    where = {"name": "coredns", "namespace": "kube-system"}
    labels = {"k8s-app": "kube-dns"}
    rbac = "rbac.authorization.k8s.io"
    role = {"apiGroup": rbac, "kind": "ClusterRole", "name": "coredns"}
    container = {
        "name": "coredns",
        "image": "localhost.local/coredns:1",
        "imagePullPolicy": "Never",
        "command": ["/coredns", "-conf", "/etc/coredns/Corefile"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    volumes = [{"name": "config", "configMap": {"name": "coredns"}}]
    pod = {"serviceAccountName": "coredns", "dnsPolicy": "Default", "containers": [container], "volumes": volumes}
    template = {"metadata": {"labels": labels}, "spec": pod}
    port = {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": where},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "coredns"},
            "rules": [{"apiGroups": [g], "resources": kinds, "verbs": ["list", "watch"]} for g, kinds in _READ],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", **where}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": where, "data": {"Corefile": _COREFILE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": where,
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS, "selector": labels, "ports": [port]},
        },
    ]
