"""Why something is used or not: a mesh state as an agent has it, asked, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.address import parse, parse_prefix
from clustermesh.mesh.authority import Authority, Limits
from clustermesh.mesh.state import MeshState
from clustermesh.model import (
    Affinity,
    Cluster,
    Endpoint,
    Identity,
    Label,
    LocalService,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
)
from clustermesh.why.explain import Answer, explain
from clustermesh.why.facts import ClusterFacts, Facts, FrontendFacts, ServiceCase
from clustermesh.why.findings import Finding
from clustermesh.why.held import Held
from clustermesh.why.subject import OfAddress, OfIdentity, OfLabels, OfService, Subject

HTTP = {"http": Port(protocol=Protocol.TCP, port=8080)}
VIP = parse("10.96.0.1")
IDS = {"alpha": 1, "beta": 2, "gamma": 3}


class Mesh:
    """alpha's view of a mesh with beta and gamma, all of whose pods are in 10.<id>.0.0/16."""

    def __init__(self) -> None:
        self.state = MeshState("alpha")
        self.problems: dict[str, str] = {}
        self.handshakes: dict[str, float] = {}
        self.clusters = {name: ClusterFacts(name=name, own=name == "alpha", state="fresh") for name in IDS}
        for name, number in IDS.items():
            if name != "alpha":
                self.state.authorize(Authority.of(Cluster(name=name, id=number)))
        self.node("alpha")
        self.state.admit_peers()
        self.node("beta")

    def node(self, cluster: str, cidr: str = "") -> None:
        number = IDS[cluster]
        node = Node(
            cluster=cluster,
            cluster_id=number,
            name=f"{cluster}-1",
            addresses=(NodeAddress(type="InternalIP", ip=parse(f"192.0.2.{number}")),),
            pod_cidrs=(parse_prefix(cidr or f"10.{number}.0.0/16"),),
        )
        self.state.put(cluster, "nodes", node.name, node)

    def own_web(self, *backends: str, is_global: bool = True, affinity: Affinity = Affinity.NONE) -> None:
        service = replace(make("alpha", *backends), frontends={VIP: HTTP})
        local = LocalService(service=service, is_global=is_global, affinity=affinity)
        self.state.put("alpha", "local_services", ("demo", "web"), local)

    def web(self, cluster: str, *backends: str, **changes: Any) -> None:
        self.state.put(cluster, "services", ("demo", "web"), replace(make(cluster, *backends), **changes))

    def ask(self, subject: Subject, **changes: Any) -> Answer:
        held = Held(self.state, lambda cluster, node: (self.problems.get(cluster, ""), self.handshakes.get(cluster)))
        facts = Facts(own="alpha", clusters=tuple(self.clusters.values()))
        match subject:
            case OfService(namespace, name):
                facts = replace(facts, services=(held.service(namespace, name),))
            case OfAddress(address):
                facts = replace(facts, address=held.address(address))
            case OfIdentity(number):
                facts = replace(facts, identities=(held.identity(number),))
            case OfLabels(labels):
                facts = replace(facts, identities=tuple(map(held.identity, held.with_labels(labels))))
        return explain(subject, replace(facts, **changes))

    def backend(self, address: str) -> Finding:
        found = self.ask(OfService("demo", "web")).findings
        return next(each for each in found if each.of.startswith(f"backend {address} "))


def make(cluster: str, *backends: str) -> Service:
    return Service(
        cluster=cluster,
        cluster_id=IDS[cluster],
        namespace="demo",
        name="web",
        backends=dict.fromkeys(map(parse, backends), HTTP),
    )


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


def test_backends_of_both_clusters_are_used(mesh: Mesh) -> None:
    mesh.own_web("10.1.0.5")
    mesh.web("beta", "10.2.0.5")
    answer = mesh.ask(OfService("demo", "web"))
    assert answer.used
    assert all(each.used for each in answer.findings)
    assert mesh.backend("10.2.0.5").why == "answers at 10.96.0.1:8080/TCP"


def test_nobody_has_the_service(mesh: Mesh) -> None:
    answer = mesh.ask(OfService("demo", "web"))
    assert not answer.used
    assert "no cluster has it" in answer.says


def test_only_another_cluster_has_the_service(mesh: Mesh) -> None:
    mesh.web("beta", "10.2.0.5")
    answer = mesh.ask(OfService("demo", "web"))
    assert not answer.used
    assert "cluster alpha has no Service demo/web" in answer.says
    assert "make a Service demo/web there" in answer.findings[0].remedy


def test_not_global(mesh: Mesh) -> None:
    mesh.own_web("10.1.0.5", is_global=False)
    mesh.web("beta", "10.2.0.5")
    found = mesh.backend("10.2.0.5")
    assert not found.used
    assert "is not global" in found.why
    assert 'service.cilium.io/global: "true"' in found.remedy
    assert mesh.backend("10.1.0.5").used


def test_affinity_is_told_for_the_side_that_waits(mesh: Mesh) -> None:
    mesh.web("beta", "10.2.0.5")
    mesh.own_web("10.1.0.5", affinity=Affinity.LOCAL)
    assert "affinity is local" in mesh.backend("10.2.0.5").why
    mesh.own_web("10.1.0.5", affinity=Affinity.REMOTE)
    assert mesh.backend("10.2.0.5").used
    assert "affinity is remote" in mesh.backend("10.1.0.5").why
    mesh.own_web(affinity=Affinity.LOCAL)
    assert mesh.backend("10.2.0.5").used


def test_a_backend_that_no_node_of_its_cluster_has(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("gamma", "10.3.0.5")
    found = mesh.backend("10.3.0.5")
    assert (found.used, found.why) == (
        False,
        "no Node of gamma has that address, or a pod CIDR around it",
    )


def test_a_backend_whose_node_is_refused_names_the_node_and_its_reason(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.node("gamma", cidr="10.2.0.0/16")
    mesh.web("gamma", "10.2.0.9")
    found = mesh.backend("10.2.0.9")
    assert not found.used
    assert "Node gamma-1 of gamma, whose it would be, is refused" in found.why
    assert "is node beta-1 of cluster beta's" in found.why


def test_a_backend_at_another_clusters_address(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("gamma", "10.2.0.5")
    assert mesh.backend("10.2.0.5").why == "the address is Node beta-1 of beta's"


def test_ports_that_do_not_meet(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", backends={parse("10.2.0.5"): {"web": Port(protocol=Protocol.TCP, port=8080)}})
    assert "its ports are web/TCP, and the service's are http/TCP: ports meet by name" in mesh.backend("10.2.0.5").why


def test_a_family_the_service_does_not_have(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.node("beta", cidr="fd02::/48")
    mesh.web("beta", "fd02::5")
    assert "no IPv6 address" in mesh.backend("fd02::5").why


def test_no_tunnel_and_no_handshake(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", "10.2.0.5")
    mesh.handshakes["beta"] = 0.0
    assert "never shaken hands with Node beta-1 of beta" in mesh.backend("10.2.0.5").why
    mesh.problems["beta"] = "has no WireGuard key yet"
    assert "no way to Node beta-1 of beta: it has no WireGuard key yet" in mesh.backend("10.2.0.5").why


def test_a_cluster_that_waits_at_the_gate(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", "10.2.0.5")
    mesh.state.withheld.add("beta")
    mesh.clusters["beta"] = replace(mesh.clusters["beta"], withheld=True)
    assert "wait for the first WireGuard handshake" in mesh.backend("10.2.0.5").why


def test_a_stale_cluster_is_used_and_said_to_be_stale(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", "10.2.0.5")
    mesh.clusters["beta"] = replace(mesh.clusters["beta"], state="stale", error="connection refused")
    found = mesh.backend("10.2.0.5")
    assert found.used
    assert "beta is stale: connection refused" in found.why


def test_an_unread_cluster_may_be_why_there_is_nothing(mesh: Mesh) -> None:
    mesh.clusters["beta"] = replace(mesh.clusters["beta"], state="connecting", error="connection refused")
    found = mesh.ask(OfService("demo", "web")).findings[-1]
    assert found.of == "cluster beta"
    assert "troubleshoot beta" in found.remedy


def test_an_agent_that_is_not_ready_says_so(mesh: Mesh) -> None:
    found = mesh.ask(OfService("demo", "web"), node="n1", waiting="no etcd").findings
    assert any("is not ready: no etcd" in each.why for each in found)


def test_too_many_backends(mesh: Mesh) -> None:
    mesh.state.authorize(Authority.of(Cluster(name="beta", id=2), limits=Limits(service_backends=1)))
    mesh.own_web()
    mesh.web("beta", "10.2.0.5", "10.2.0.6")
    found = mesh.backend("10.2.0.5")
    assert "the limit is 1" in found.why
    assert "clustermesh-limits" in found.remedy


def test_no_room_for_the_service(mesh: Mesh) -> None:
    mesh.state.authorize(Authority.of(Cluster(name="beta", id=2), limits=Limits(keys={"services": 0})))
    mesh.own_web("10.1.0.5")
    mesh.web("beta", "10.2.0.5")
    found = mesh.ask(OfService("demo", "web")).findings[0]
    assert "there is no room for it: beta has more than 0 services" in found.why


def test_a_value_that_cannot_be_understood(mesh: Mesh) -> None:
    mesh.own_web("10.1.0.5")
    mesh.state.refuse("beta", "cilium/state/services/v1/beta/demo/web", "it is no JSON")
    found = mesh.ask(OfService("demo", "web")).findings[0]
    assert found == Finding("Service demo/web of beta", False, "cannot be understood: it is no JSON", found.remedy)


def test_another_service_has_the_frontend(mesh: Mesh) -> None:
    mesh.own_web("10.1.0.5")
    local = mesh.state.views["alpha"].local_services["demo", "web"]
    mesh.state.put("alpha", "local_services", ("demo", "a"), replace(local, service=replace(local.service, name="a")))
    found = mesh.ask(OfService("demo", "web")).findings[0]
    assert not found.used
    assert found.why == "is claimed by demo/a, too, and demo/a is served"


def test_the_kernel_lacks_a_backend() -> None:
    at = FrontendFacts(at="10.96.0.1:80/TCP", wanted=("10.1.0.5:80 alpha",), kernel=(), error="the map is full")
    case = ServiceCase(namespace="demo", name="web", frontends=(at,))
    found = explain(OfService("demo", "web"), Facts(own="alpha", node="n1", services=(case,))).findings
    lacking = next(each for each in found if each.of.startswith("frontend"))
    assert not lacking.used
    assert "the kernel lacks 10.1.0.5:80 alpha: the map is full" in lacking.why


def test_an_endpoint_with_its_labels(mesh: Mesh) -> None:
    mesh.state.put(
        "beta", "identities", 131074, Identity(id=131074, labels=(Label(source="k8s", key="app", value="db"),))
    )
    mesh.state.put("beta", "endpoints", parse("10.2.0.7"), endpoint("10.2.0.7"))
    answer = mesh.ask(OfAddress(parse("10.2.0.7")))
    assert answer.used
    assert answer.findings[0].why == "has identity 131074 (k8s:app=db)"
    assert answer.findings[0].of == "pod demo/db-0 at 10.2.0.7 of beta"


def test_an_endpoint_of_a_cluster_that_does_not_hold_the_address(mesh: Mesh) -> None:
    mesh.state.put("gamma", "endpoints", parse("10.2.0.7"), endpoint("10.2.0.7"))
    found = mesh.ask(OfAddress(parse("10.2.0.7"))).findings
    assert (found[0].used, found[0].why) == (False, "the address is Node beta-1 of beta's")
    assert found[1].of == "Node beta-1 of beta, in whose pod CIDR 10.2.0.7 is"


def test_the_ipcache_of_an_asked_kernel_decides(mesh: Mesh) -> None:
    mesh.state.put("beta", "endpoints", parse("10.2.0.7"), endpoint("10.2.0.7"))
    held = replace(Held(mesh.state).address(parse("10.2.0.7")), asked_kernel=True)
    found = mesh.ask(OfAddress(parse("10.2.0.7")), address=held).findings[0]
    assert not found.used
    assert "the ipcache has nothing there instead of identity 131074" in found.why


def test_an_address_that_is_a_backend_a_frontend_or_a_node(mesh: Mesh) -> None:
    mesh.own_web("10.1.0.5")
    mesh.web("beta", "10.2.0.5")
    assert "backend 10.2.0.5 of beta, Service demo/web" in [
        f.of for f in mesh.ask(OfAddress(parse("10.2.0.5"))).findings
    ]
    assert "backend 10.1.0.5 of alpha, Service demo/web" in [
        f.of for f in mesh.ask(OfAddress(parse("10.1.0.5"))).findings
    ]
    (at,) = mesh.ask(OfAddress(VIP)).findings
    assert at.of == "frontend 10.96.0.1:8080/TCP, Service demo/web"
    (node,) = mesh.ask(OfAddress(parse("192.0.2.2"))).findings
    assert (node.of, node.used) == ("Node beta-1 of beta at 192.0.2.2", True)


def test_an_address_that_nobody_knows(mesh: Mesh) -> None:
    answer = mesh.ask(OfAddress(parse("203.0.113.9")))
    assert not answer.used
    assert "no cluster has a pod, a node, a pod CIDR or a service there" in answer.says


def test_identities_by_number_and_by_labels(mesh: Mesh) -> None:
    mesh.state.put(
        "beta", "identities", 131074, Identity(id=131074, labels=(Label(source="k8s", key="app", value="db"),))
    )
    assert "no address has it" in mesh.ask(OfIdentity(131074)).says
    mesh.state.put("beta", "endpoints", parse("10.2.0.7"), endpoint("10.2.0.7"))
    for subject in (OfIdentity(131074), OfLabels(("app=db",)), OfLabels(("k8s:app=db",))):
        answer = mesh.ask(subject)
        assert answer.used
        assert answer.findings[0].why == "is k8s:app=db of beta; 1 addresses have it"
    assert not mesh.ask(OfIdentity(131075)).used
    assert not mesh.ask(OfLabels(("app=web",))).used
    assert "is reserved" in mesh.ask(OfIdentity(2)).findings[0].why


def test_a_garbled_identity(mesh: Mesh) -> None:
    mesh.state.refuse("beta", "cilium/cache/identities/v1/beta/id/131074", "it has no cluster label")
    answer = mesh.ask(OfIdentity(131074))
    assert not answer.used
    assert "it has no cluster label" in answer.says


def endpoint(address: str) -> Endpoint:
    return Endpoint(ip=parse(address), identity=131074, host_ip=parse("192.0.2.2"), namespace="demo", pod_name="db-0")


def test_backends_of_a_service_that_is_nowhere_to_be_called(mesh: Mesh) -> None:
    mesh.web("beta", "10.2.0.5")
    assert mesh.backend("10.2.0.5").why == "cluster alpha has no Service demo/web"


def test_a_service_that_its_cluster_does_not_share(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", "10.2.0.5", shared=False)
    assert mesh.backend("10.2.0.5").why == "beta does not share it"


def test_a_backend_at_port_zero(mesh: Mesh) -> None:
    mesh.own_web()
    mesh.web("beta", backends={parse("10.2.0.5"): {"http": Port(protocol=Protocol.TCP, port=0)}})
    assert "all of its ports are 0" in mesh.backend("10.2.0.5").why
