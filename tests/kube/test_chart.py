"""The chart: Helm renders it, a real Kubernetes API takes every object, and what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from chart_bed import ALPHA, MISSING, Values, apply, helm, merged, named, nested, refused, rendered
from kube_bed import KubeBed

from clustermesh.kube.rbac import FOLLOW
from clustermesh.sources.served import RULES

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

API = "clustermesh.apiserver"
PEERS = {"enabled": True, "clusters": [{"name": "beta", "port": 32379, "ips": ["192.0.2.7"]}]}
PAIR = {"caCert": "Y2E=", "cert": "Y2VydA==", "key": "a2V5"}
EXTERNAL = {"enabled": True, "endpoints": ["https://etcd-0.example:2379", "https://etcd-1.example:2379"]}
MATRIX: dict[str, Values] = {
    "as it is": {},
    "a load balancer": nested(
        f"{API}.service",
        {"type": "LoadBalancer", "annotations": {"a": "b"}, "loadBalancerSourceRanges": ["192.0.2.0/24"]}
        | {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "loadBalancerIP": "192.0.2.9"},
    ),
    "a cluster address": nested(f"{API}.service.type", "ClusterIP"),
    "beside another CNI": nested(f"{API}.hostNetwork", False) | {},
    "no kube-proxy": {"k8sServiceHost": "192.0.2.1", "k8sServicePort": 6443},
    "two and an etcd": {"etcd": EXTERNAL} | nested(f"{API}.replicas", 2),
    "an etcd without TLS": {"etcd": {"enabled": True, "ssl": False, "endpoints": ["http://192.0.2.3:2379"]}},
    "no mirror": nested(f"{API}.kvstoremesh.enabled", False),
    "own certificates": nested(f"{API}.tls.auto.enabled", False),
    "names of the server": nested(f"{API}.tls.server", {"extraDnsNames": ["a.example"], "extraIpAddresses": ["::2"]}),
    "peers": nested("clustermesh.config", PEERS),
    "peers without a mirror": merged(nested("clustermesh.config", PEERS), nested(f"{API}.kvstoremesh.enabled", False)),
    "peers as a map": nested(
        "clustermesh.config",
        {"enabled": True, "clusters": {"beta": {"address": "beta.example", "tls": PAIR}, "gamma": {"port": 1}}},
    ),
    "as nobody": nested(f"{API}.cutConnections", False),
    "a policy": nested(f"{API}.networkPolicy.enabled", True),
    "etcd in memory": nested(f"{API}.etcd.storageMedium", "Memory"),
    "a digest": {"image": {"digest": f"sha256:{'0' * 64}"}, "imagePullSecrets": [{"name": "registry"}]},
    "cilium's nodes": nested(f"{API}.mode", "cilium"),
    "our nodes": nested(f"{API}.mode", "native") | {},
    "511 clusters": {"cluster": {"name": "alpha", "id": 511}, "clustermesh": {"maxConnectedClusters": 511}},
    "more to say": nested(API, {"extraArgs": ["--log-format=json"], "extraEnv": [{"name": "A", "value": "b"}]}),
}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_kubernetes_api_takes_every_object(bed: KubeBed, values: Values) -> None:
    apply(bed, rendered(values), dry=True)


@pytest.mark.parametrize("values", [{}, MATRIX["peers as a map"]], ids=["as it is", "peers"])
def test_helm_finds_no_fault(values: Values) -> None:
    done = helm("lint --strict", merged(ALPHA, values))
    assert done.returncode == 0, done.stdout


REFUSED: list[tuple[Values, str]] = [
    ({"cluster": {"name": "", "id": 1}}, "/cluster/name"),
    ({"cluster": {"name": "Alpha", "id": 1}}, "/cluster/name"),
    ({"cluster": {"name": "default", "id": 1}}, "/cluster/name"),
    ({"cluster": {"name": "a" * 33, "id": 1}}, "/cluster/name"),
    ({"cluster": {"name": "alpha", "id": 0}}, "/cluster/id"),
    ({"cluster": {"name": "alpha", "id": "1"}}, "/cluster/id"),
    ({"cluster": {"name": "alpha", "id": 512}}, "/cluster/id"),
    ({"cluster": {"name": "alpha", "id": 256}}, "cluster.id: 256 must be at most 255 while"),
    (nested("clustermesh.maxConnectedClusters", 300), "/clustermesh/maxConnectedClusters"),
    (nested("clustermesh.cacheTTL", "soon"), "/clustermesh/cacheTTL"),
    (nested(f"{API}.repliacs", 1), "'repliacs' not allowed"),
    (nested(f"{API}.replicas", 3), "/clustermesh/apiserver/replicas"),
    (nested(f"{API}.replicas", 2), "clustermesh.apiserver.replicas: 2 need an etcd that both use"),
    (nested(f"{API}.service.type", "Nodeport"), "/clustermesh/apiserver/service/type"),
    (nested(f"{API}.service.nodePort", 70000), "/clustermesh/apiserver/service/nodePort"),
    (nested(f"{API}.tls.auto.method", "helm"), "/clustermesh/apiserver/tls/auto/method"),
    (nested(f"{API}.tls.auto.method", "certmanager"), "tls.auto.certManagerIssuerRef: must name an issuer"),
    (nested(f"{API}.tls.auto.schedule", "weekly"), "/clustermesh/apiserver/tls/auto/schedule"),
    (nested("etcd.enabled", True), "etcd.endpoints: must name at least one"),
    ({"etcd": {"enabled": True, "endpoints": ["etcd:2379"]}}, "/etcd/endpoints/0"),
    (nested("clustermesh.useAPIServer", False), "clustermesh.useAPIServer: false leaves"),
    (nested("clustermesh.config.clusters", [{"name": "beta", "port": 1}]), "clustermesh.config.enabled is false"),
    (nested("clustermesh.config", {"enabled": True, "clusters": [{"port": 1}]}), "/clustermesh/config/clusters"),
    (nested("clustermesh.config", {"enabled": True, "clusters": [{"name": "B", "port": 1}]}), "/clusters/0/name"),
    (nested("clustermesh.config", {"enabled": True, "clusters": [{"name": "beta"}]}), "beta has neither port nor"),
    (nested("clustermesh.config", {"enabled": True, "clusters": {"alpha": {"port": 1}}}), "alpha is this cluster"),
    (
        nested(
            "clustermesh.config", {"enabled": True, "clusters": [{"name": "b", "port": 1}, {"name": "b", "port": 2}]}
        ),
        "b is named twice",
    ),
]


@pytest.mark.parametrize(("values", "says"), REFUSED, ids=[f"{n}-{says[:24]}" for n, (_, says) in enumerate(REFUSED)])
def test_what_cannot_be_is_refused_by_the_name_of_its_key(values: Values, says: str) -> None:
    assert says in refused(merged(ALPHA, values))


def granted(role: Any) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_api_server_may_do_what_its_source_does_and_nothing_else() -> None:
    wanted = {(rule.group, rule.resource, verb) for rule in RULES for verb in FOLLOW}
    for values, without in (({}, set()), (MATRIX["our nodes"], {"cilium.io"})):
        role = named(rendered(values), "ClusterRole", "clustermesh-apiserver")
        assert granted(role) == {each for each in wanted if each[0] not in without}


def test_a_job_has_another_name_when_it_is_told_otherwise() -> None:
    """For a Job cannot be changed, and Helm would fail to."""
    jobs = {
        next(each["metadata"]["name"] for each in rendered(values) if each["kind"] == "Job")
        for values in ({}, {"image": {"tag": "new"}}, MATRIX["names of the server"])
    }
    assert len(jobs) == 3


def test_the_programs_run_as_nobody_but_for_one_that_says_why() -> None:
    roots = set()
    for each in rendered({}):
        template = each.get("spec", {}).get("template") or each.get("spec", {}).get("jobTemplate", {}).get("spec", {})
        spec = template.get("template", template).get("spec", {}) if isinstance(template, dict) else {}
        for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"]["drop"] == ["ALL"]
            if not context.get("runAsNonRoot"):
                roots.add((container["name"], *context["capabilities"]["add"]))
    assert roots == {("apiserver", "NET_ADMIN")}
