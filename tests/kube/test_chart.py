"""The chart: Helm renders it, a real Kubernetes API takes every object, and what cannot be is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_bed import (
    ALPHA,
    CHART,
    MISSING,
    Values,
    apply,
    define_others,
    helm,
    merged,
    named,
    nested,
    refused,
    rendered,
)
from kube_bed import KubeBed

from agent.options import Options, parse
from clustermesh.declared.peers import RULES as PEERS_RULES
from clustermesh.kube.hosts import RULES as HOSTS
from clustermesh.kube.rbac import FOLLOW
from clustermesh.multicluster.documents import IMPORT_RULES, SLICE_RULES
from clustermesh.sources.served import RULES
from tools.reference import chart as reference

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
    "beside another CNI": {"cni": {"install": False}, **nested(f"{API}.hostNetwork", False)},
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
    "imports": nested("clustermesh.mcsapi.enabled", True),
    "slices of peers": nested("clustermesh.enableEndpointSliceSynchronization", True),
    "invitations": nested("clustermesh.invitations", {"enabled": True}),
    "invitations at a load balancer": nested(
        "clustermesh.invitations",
        {
            "enabled": True,
            "service": {
                "type": "LoadBalancer",
                "nodePort": 0,
                "annotations": {"a": "b"},
                "loadBalancerClass": "example.com/lb",
                "loadBalancerSourceRanges": ["192.0.2.0/24"],
                "externalTrafficPolicy": "Local",
            },
        },
    ),
    "invitations and a policy": {
        "cni": {"install": False},
        "clustermesh": {
            "invitations": {"enabled": True},
            "apiserver": {"hostNetwork": False, "networkPolicy": {"enabled": True}},
        },
    },
    "no declared peers": nested("clustermesh.declaredPeers.enabled", False),
    "declared peers' trust": nested("clustermesh.declaredPeers.secrets", ["beta-trust"]),
    "as nobody": nested(f"{API}.cutConnections", False),
    "a policy": {"cni": {"install": False}}
    | nested(API, {"hostNetwork": False, "networkPolicy": {"enabled": True}, "metrics": {"port": 9962}}),
    "etcd in memory": nested(f"{API}.etcd.storageMedium", "Memory"),
    "a digest": {"image": {"digest": f"sha256:{'0' * 64}"}, "imagePullSecrets": [{"name": "registry"}]},
    "cilium's nodes": nested(f"{API}.mode", "cilium"),
    "our nodes": nested(f"{API}.mode", "native"),
    "511 clusters": {"cluster": {"name": "alpha", "id": 511}, "clustermesh": {"maxConnectedClusters": 511}},
    "by cert-manager": nested(
        f"{API}.tls.auto",
        {"method": "certmanager", "certManagerIssuerRef": {"kind": "ClusterIssuer", "name": "mesh"}},
    ),
    "monitored": {
        "dashboards": {"enabled": True},
        "prometheus": {"enabled": True, "serviceMonitor": {"enabled": True, "labels": {"a": "b"}}},
        **nested(f"{API}.metrics.serviceMonitor", {"enabled": True, "annotations": {"a": "b"}}),
    },
    "no agents": {"agent": False} | nested("prometheus.port", 9880),
    "agents alone": {"etcd": EXTERNAL, **nested("clustermesh.useAPIServer", False)},
    "agents told more": {
        "devices": ["eth0", "bond+"],
        "loadBalancer": {"acceleration": "best-effort", "snatPorts": "1024-29999"},
        "bpf": {"hostLegacyRouting": True, "lbMapMax": 131072, "ctTcpMax": 524288, "mapDynamicSizeRatio": 0.0025},
        "extraEnv": [{"name": "A", "value": "b"}],
    },
    "WireGuard of the kernel alone": nested("encryption.wireguard.userspaceFallback", False),
    "more to say": nested(API, {"extraArgs": ["--log-format=json"], "extraEnv": [{"name": "A", "value": "b"}]}),
}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_kubernetes_api_takes_every_object(bed: KubeBed, values: Values) -> None:
    define_others(bed)
    apply(bed, rendered(values), dry=True)


@pytest.mark.parametrize("values", [{}, MATRIX["peers as a map"]], ids=["as it is", "peers"])
def test_helm_finds_no_fault(values: Values) -> None:
    done = helm("lint --strict", merged(ALPHA, values))
    assert done.returncode == 0, done.stdout


def test_every_port_of_an_object_is_in_the_reference() -> None:
    """And every one there is of an object, but for those that have no value."""
    values = merged(nested("clustermesh.invitations.enabled", True), MATRIX["monitored"])
    found = set(_ports(rendered(values)))
    usual = yaml.safe_load((CHART / "values.yaml").read_text())
    told = {reduce(getitem, each.key.split("."), usual) for each in reference.PORTS if each.key}
    assert found == told


def _ports(node: Any) -> Iterator[int]:
    """Where anything listens, or a Service leads from."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("containerPort", "nodePort", "port") if isinstance(node.get(key), int))
        node = list(node.values())
    for each in node if isinstance(node, list) else ():
        yield from _ports(each)


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
    (nested("clustermesh.invitations.port", 0), "/clustermesh/invitations/port"),
    (
        nested("clustermesh.invitations.service.externalTrafficPolicy", "local"),
        "/clustermesh/invitations/service/externalTrafficPolicy",
    ),
    (nested("clustermesh.declaredPeers.secrets", ["*"]), "/clustermesh/declaredPeers/secrets/0"),
    (nested("clustermesh.mcsapi", {"enabled": True, "install": True}), "'install' not allowed"),
    (
        {"clustermesh": {"mcsapi": {"enabled": True}, "enableMCSAPISupport": False}},
        "clustermesh.enableMCSAPISupport: must be true while",
    ),
    (
        {
            "clustermesh": {
                "enableEndpointSliceSynchronization": True,
                "apiserver": {"kvstoremesh": {"enabled": False}},
            }
        },
        "clustermesh.apiserver.kvstoremesh.enabled: must be true while clustermesh.enableEndpointSliceSynch",
    ),
    (nested("clustermesh.cacheTTL", "soon"), "/clustermesh/cacheTTL"),
    (nested(f"{API}.repliacs", 1), "'repliacs' not allowed"),
    (nested(f"{API}.replicas", 3), "/clustermesh/apiserver/replicas"),
    (nested(f"{API}.replicas", 2), "clustermesh.apiserver.replicas: 2 need an etcd that both use"),
    (nested(f"{API}.service.type", "Nodeport"), "/clustermesh/apiserver/service/type"),
    (nested(f"{API}.service.nodePort", 70000), "/clustermesh/apiserver/service/nodePort"),
    (nested(f"{API}.tls.auto.method", "helm"), "/clustermesh/apiserver/tls/auto/method"),
    (nested(f"{API}.tls.auto.method", "certmanager"), "tls.auto.certManagerIssuerRef: must name an issuer"),
    (nested(f"{API}.tls.auto.schedule", "weekly"), "/clustermesh/apiserver/tls/auto/schedule"),
    (nested(f"{API}.hostNetwork", False), "clustermesh.apiserver.hostNetwork: must be true while cni.install is"),
    (nested(f"{API}.networkPolicy.enabled", True), "clustermesh.apiserver.networkPolicy.enabled: must be false while"),
    (nested("prometheus.port", 9880), "prometheus.port: 9880 is taken by clustermesh.apiserver.metrics.port already"),
    (nested(f"{API}.etcd.port", 9963), "metrics.etcd.port: 9963 is taken by clustermesh.apiserver.etcd.port already"),
    (
        merged(nested("clustermesh.invitations", {"enabled": True, "port": 9881}), nested("agent", False)),
        "invitations.port: 9881 is taken by clustermesh.apiserver.metrics.kvstoremesh.port already",
    ),
    (
        nested("clustermesh.invitations", {"enabled": True, "metrics": {"port": 9962}}),
        "prometheus.port: 9962 is taken by clustermesh.invitations.metrics.port already",
    ),
    (nested("prometheus.serviceMonitor.enabled", True), "while prometheus.enabled is false"),
    (nested("bpf.lbMapMax", 1000), "/bpf/lbMapMax"),
    (nested("bpf.mapDynamicSizeRatio", 2), "/bpf/mapDynamicSizeRatio"),
    (nested("loadBalancer.acceleration", "generic"), "/loadBalancer/acceleration"),
    (nested("loadBalancer.snatPorts", "10000:29999"), "/loadBalancer/snatPorts"),
    (nested("cni.binPath", "bin"), "/cni/binPath"),
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


def told(values: Values) -> Options:
    """What the agent takes from its arguments."""
    spec = named(rendered(values), "DaemonSet", "clustermesh-agent")["spec"]["template"]["spec"]
    (agent,) = [each for each in spec["containers"] if each["name"] == "agent"]
    return parse([each.replace("$(NODE_NAME)", "node1") for each in agent["args"]])


def test_the_agent_is_told_how_to_balance() -> None:
    usual, more = told({}), told(MATRIX["agents told more"])
    assert (usual.bpf_lb_acceleration, usual.bpf_lb_snat_ports) == ("disabled", None)
    assert (more.bpf_lb_acceleration, more.bpf_lb_snat_ports) == ("best-effort", (1024, 29999))
    assert more.devices == ("eth0", "bond+")


def granted(role: Any) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_who_asks_the_kubernetes_api_may_do_what_its_code_does_and_nothing_else() -> None:
    """The whole table; that it is enough, test_chart_runs.py shows, with the accounts' own tokens."""
    source = {(rule.group, rule.resource, verb) for rule in RULES for verb in FOLLOW}
    hosts = {(rule.group, rule.resource, verb) for rule in HOSTS for verb in FOLLOW}
    secrets = {("", "secrets", verb) for verb in ("get", "patch", "create")}
    wanted = {"clustermesh-apiserver": source, "clustermesh-agent": hosts, "clustermesh-certificates": secrets}
    wanted["clustermesh-peers"] = {(rule.group, rule.resource, verb) for rule in PEERS_RULES for verb in rule.verbs}
    objects = rendered({})
    roles = {each["metadata"]["name"]: each for each in objects if each["kind"] in ("Role", "ClusterRole")}
    assert {name: granted(role) for name, role in roles.items()} == wanted
    assert [each["kind"] for each in roles.values()].count("ClusterRole") == 1
    native = named(rendered(MATRIX["our nodes"]), "ClusterRole", "clustermesh-apiserver")
    assert granted(native) == {each for each in source if each[0] != "cilium.io"}
    slices = {(rule.group, rule.resource, verb) for rule in SLICE_RULES for verb in rule.verbs}
    imports = slices | {(rule.group, rule.resource, verb) for rule in IMPORT_RULES for verb in rule.verbs}
    for case, more in (("slices of peers", slices), ("imports", imports)):
        assert granted(named(rendered(MATRIX[case]), "ClusterRole", "clustermesh-apiserver")) == source | more
    for rule in roles["clustermesh-certificates"]["rules"]:
        assert len(rule["resourceNames"]) == 5


@pytest.mark.parametrize("clusters", [list, dict])
def test_a_cluster_that_is_listed_and_not_enabled_is_not_connected(clusters: type) -> None:
    port = {"port": 1}
    listed: Any = {
        "beta": port,
        "gamma": {"enabled": True, **port},
        "delta": {"enabled": False},
        "alpha": {"enabled": False},
    }
    listed = listed if clusters is dict else [{"name": name, **one} for name, one in listed.items()]
    objects = rendered(nested("clustermesh.config", {"enabled": True, "clusters": listed}))
    for name in ("cilium-clustermesh", "cilium-kvstoremesh"):
        assert sorted(named(objects, "Secret", name)["data"]) == ["beta", "gamma"]
    users = yaml.safe_load(named(objects, "ConfigMap", "clustermesh-remote-users")["data"]["users.yaml"])
    assert [user["name"] for user in users["users"]] == ["remote-beta", "remote-gamma"]


def test_the_token_of_an_account_is_where_its_program_is_and_nowhere_else() -> None:
    """Of the API server's pod and the agent's; the job is one program."""
    found = set()
    for kind, name in (("Deployment", "clustermesh-apiserver"), ("DaemonSet", "clustermesh-agent")):
        objects = rendered({})
        assert named(objects, "ServiceAccount", name)["automountServiceAccountToken"] is False
        spec = named(objects, kind, name)["spec"]["template"]["spec"]
        for container in [*spec["initContainers"], *spec["containers"]]:
            found |= {container["name"] for mount in container["volumeMounts"] if mount["name"] == "token"}
    assert found == {"apiserver", "hosts"}


def test_a_job_has_another_name_when_it_is_told_otherwise() -> None:
    """For a Job cannot be changed, and Helm would fail to."""
    jobs = {
        next(each["metadata"]["name"] for each in rendered(values) if each["kind"] == "Job")
        for values in ({}, {"image": {"tag": "new"}}, MATRIX["names of the server"])
    }
    assert len(jobs) == 3


def test_the_api_server_does_not_come_back_to_a_node_that_is_drained_and_ends_after_the_others_there() -> None:
    pods = [
        each["spec"]["template"]["spec"] for each in rendered(MATRIX["invitations"]) if each["kind"] == "Deployment"
    ]
    for pod in pods:
        assert {each.get("key") for each in pod["tolerations"]}.isdisjoint({None, "node.kubernetes.io/unschedulable"})
        assert {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"} in pod[
            "tolerations"
        ]
    (server,) = [pod for pod in pods if len(pod["containers"]) == 3]
    assert all(each["lifecycle"]["preStop"]["sleep"]["seconds"] for each in server["containers"])


def containers_of(values: Values) -> Iterator[Any]:
    for each in rendered(values):
        spec = each.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template", {})
        pod = template.get("spec", {}) if each["kind"] in ("Deployment", "DaemonSet", "Job", "CronJob") else {}
        yield from [*pod.get("initContainers", []), *pod.get("containers", [])]


def test_the_programs_run_as_nobody_and_without_privileges_but_for_those_that_say_why() -> None:
    roots: dict[str, set[str]] = {}
    for container in containers_of({}):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context.get("privileged")
        assert context["capabilities"]["drop"] == ["ALL"]
        if not context.get("runAsNonRoot"):
            roots[container["name"]] = set(context["capabilities"].get("add", []))
        else:
            assert not context["allowPrivilegeEscalation"]
            assert "add" not in context["capabilities"]
    net = {"NET_ADMIN"}
    assert roots == {
        "apiserver": net,
        "cni-install": set(),
        "agent": net | {"SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"},
        "wireguard": net,
    }
    for file, added in (("daemonset", roots["agent"]), ("wireguard", net)):
        text = (CHART / "templates" / "agent" / f"{file}.yaml").read_text()
        assert all(re.search(rf"- {name}  # \w", text) for name in added)


def test_where_only_the_kernels_wireguard_is_wanted_nobody_has_the_device_of_another() -> None:
    assert "wireguard" in {each["name"] for each in containers_of({})}
    found = list(containers_of(MATRIX["WireGuard of the kernel alone"]))
    assert not {"wireguard"} & {each["name"] for each in found}
    assert not {"tun", "wireguard"} & {mount["name"] for each in found for mount in each["volumeMounts"]}
    assert told(MATRIX["WireGuard of the kernel alone"]).wireguard_starter is None


def test_every_program_with_a_port_is_probed() -> None:
    for container in containers_of({}):
        assert ("livenessProbe" in container) == ("startupProbe" in container) == ("ports" in container)
        assert "requests" in container.get("resources", {"requests": {}})


@pytest.mark.parametrize("path", sorted((CHART / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_a_dashboard_asks_for_metrics_that_there_are(path: Path) -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", (CHART.parents[1] / "docs" / "metrics.md").read_text(), re.MULTILINE))
    known |= {"process_resident_memory_bytes", "process_cpu_seconds_total"}
    panels = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for expression in asked:
        names = set(re.findall(r"\b(?:cilium|clustermesh|process)_\w+", expression))
        assert names
        assert {name.removesuffix("_bucket") for name in names} <= known, expression


def test_the_dashboards_arrive_whole() -> None:
    objects = rendered(MATRIX["monitored"])
    for path in (CHART / "dashboards").glob("*.json"):
        data = named(objects, "ConfigMap", f"{path.stem}-dashboard")["data"]
        assert json.loads(data[path.name]) == json.loads(path.read_text())


def test_every_value_is_known_to_the_schema_and_every_key_of_the_schema_is_in_the_manual() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(said: Any, rule: Any, at: str) -> None:
        if rule.get("additionalProperties") is False and isinstance(said, dict):
            assert said.keys() == rule["properties"].keys() - ({"global"} if not at else set()), at
            for key in said:
                compare(said[key], rule["properties"][key], f"{at}/{key}")

    compare(values, schema, "")
