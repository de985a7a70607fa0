"""A Service and what belongs to it, as a LocalService: annotations, endpoints from slices, endpoints from pods."""

from __future__ import annotations

from typing import Any

import kube
import pytest

from clustermesh.address import parse
from clustermesh.model import Affinity, BackendDetail, LocalService, Port, Protocol
from clustermesh.sources.translate import translate

HTTP = {"http": Port(protocol=Protocol.TCP, port=8080)}


def one(*manifests: dict[str, Any]) -> LocalService:
    snapshot, faults = translate(kube.ALPHA, kube.decode(*manifests))
    assert faults == []
    return snapshot.services["shop", "cart"]


def faults(*manifests: dict[str, Any]) -> list[str]:
    return [f"{ref.name}: {sentence}" for ref, sentence in translate(kube.ALPHA, kube.decode(*manifests))[1]]


def _annotations(**annotations: str) -> dict[str, Any]:
    service = kube.service("cart", global_=False)
    service["metadata"]["annotations"] = {k.replace("__", "/").replace("_", "."): v for k, v in annotations.items()}
    return service


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, (False, False, Affinity.NONE)),
        ({"service_cilium_io__global": "true"}, (True, True, Affinity.NONE)),
        ({"service_cilium_io__global": "TRUE"}, (True, True, Affinity.NONE)),
        ({"service_cilium_io__global": "yes"}, (False, False, Affinity.NONE)),
        ({"io_cilium__global-service": "true"}, (True, True, Affinity.NONE)),
        ({"service_cilium_io__global": "false", "io_cilium__global-service": "true"}, (False, False, Affinity.NONE)),
        ({"service_cilium_io__global": "true", "service_cilium_io__shared": "false"}, (True, False, Affinity.NONE)),
        ({"service_cilium_io__global": "true", "io_cilium__shared-service": "false"}, (True, False, Affinity.NONE)),
        (
            {
                "service_cilium_io__global": "true",
                "service_cilium_io__shared": "true",
                "io_cilium__shared-service": "no",
            },
            (True, True, Affinity.NONE),
        ),
        ({"service_cilium_io__shared": "true"}, (False, False, Affinity.NONE)),
        ({"service_cilium_io__global": "true", "service_cilium_io__affinity": "local"}, (True, True, Affinity.LOCAL)),
        ({"service_cilium_io__global": "true", "io_cilium__service-affinity": "remote"}, (True, True, Affinity.REMOTE)),
        ({"service_cilium_io__affinity": "local"}, (False, False, Affinity.NONE)),
    ],
)
def test_annotations_and_their_aliases(annotations: dict[str, str], expected: tuple[bool, bool, Affinity]) -> None:
    found = one(_annotations(**annotations))
    assert (found.is_global, found.service.shared, found.affinity) == expected


def test_an_unknown_affinity_is_a_problem_and_none() -> None:
    service = kube.annotated(kube.service("cart"), affinity="nearest")
    snapshot, found = translate(kube.ALPHA, kube.decode(service))
    assert snapshot.services["shop", "cart"].affinity is Affinity.NONE
    assert [fault.sentence for fault in found] == [
        "metadata.annotations[service.cilium.io/affinity]: 'nearest': must be local, remote or none; taken as none"
    ]


@pytest.mark.parametrize(("text", "is_global"), [(None, True), ("true", True), ("false", False), ("False", False)])
def test_a_namespace_may_keep_its_services_at_home(text: str | None, is_global: bool) -> None:
    found = one(kube.service("cart"), kube.namespace("shop", global_=text))
    assert (found.is_global, found.service.shared) == (is_global, is_global)


@pytest.mark.parametrize(
    ("namespaces", "is_global"),
    [([], False), ([kube.namespace("shop")], False), ([kube.namespace("shop", global_="True")], True)],
)
def test_where_namespaces_stay_at_home_one_takes_part_that_says_so(
    namespaces: list[dict[str, Any]], is_global: bool
) -> None:
    objects = kube.decode(kube.service("cart"), kube.pod("a", "10.1.0.5", {}), *namespaces)
    snapshot, _ = translate(kube.ALPHA, objects, in_mesh=False)
    found = snapshot.services["shop", "cart"]
    assert (found.is_global, found.service.shared, len(snapshot.endpoints)) == (is_global, is_global, int(is_global))


def test_frontends_are_the_cluster_ips_with_all_ports_by_name() -> None:
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    found = one(kube.service("cart", clusterIP="10.96.0.1", clusterIPs=["10.96.0.1", "FD00::0001"], ports=ports))
    expected = {"http": Port(protocol=Protocol.TCP, port=80), "dns": Port(protocol=Protocol.UDP, port=53)}
    assert found.service.frontends == {parse("10.96.0.1"): expected, parse("fd00::1"): expected}


def test_a_headless_service_has_backends_and_no_frontend() -> None:
    found = one(kube.service("cart", clusterIP="None"), kube.endpoint_slice("cart-1", "cart", ["10.1.0.5"]))
    assert (found.service.frontends, found.service.backends) == ({}, {parse("10.1.0.5"): HTTP})


def test_an_external_name_is_no_service_of_ours() -> None:
    snapshot, found = translate(kube.ALPHA, kube.decode(kube.service("cart", type="ExternalName")))
    assert (snapshot.services, found) == ({}, [])


@pytest.mark.parametrize(
    ("conditions", "answers"),
    [
        ({}, True),
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({"ready": None, "serving": None}, True),
        ({"ready": False, "serving": True, "terminating": True}, True),
        ({"ready": False, "serving": False, "terminating": True}, False),
        ({"ready": True, "serving": False}, True),
    ],
)
def test_ready_or_serving_endpoints_count(conditions: dict[str, Any], answers: bool) -> None:
    endpoints = [{"addresses": ["10.1.0.5"], "conditions": conditions}]
    found = one(kube.service("cart"), kube.endpoint_slice("cart-1", "cart", [], endpoints=endpoints))
    assert bool(found.service.backends) is answers


def test_slices_are_united_with_hostnames_and_hints() -> None:
    first = kube.endpoint_slice("cart-1", "cart", ["10.1.0.6"])
    endpoint = {"addresses": ["10.1.0.5"], "hostname": "cart-0", "zone": "z1", "hints": {"forZones": [{"name": "z2"}]}}
    second = kube.endpoint_slice("cart-2", "cart", [], endpoints=[endpoint])
    third = kube.endpoint_slice("cart-3", "cart", ["10.1.0.5"], ports=[{"name": "admin", "port": 9000}])
    names = kube.endpoint_slice("cart-4", "cart", ["example.org"], addressType="FQDN")
    other = kube.endpoint_slice("db-1", "db", ["10.1.0.7"])
    local = one(kube.service("cart"), first, second, third, names, other)
    found = local.service
    assert found.backends == {
        parse("10.1.0.5"): {**HTTP, "admin": Port(protocol=Protocol.TCP, port=9000)},
        parse("10.1.0.6"): HTTP,
    }
    assert found.hostnames == {parse("10.1.0.5"): "cart-0"}
    assert (found.zones, local.details) == ({}, {parse("10.1.0.5"): BackendDetail(for_zones=("z2",))})


def test_a_slice_without_port_names_serves_the_nameless_port() -> None:
    endpoint_slice = kube.endpoint_slice("cart-1", "cart", ["10.1.0.5"], ports=[{"port": 8080}, {"name": "all"}])
    found = one(kube.service("cart", ports=[{"port": 80}]), endpoint_slice).service
    assert found.frontends[parse("10.96.0.10")] == {"": Port(protocol=Protocol.TCP, port=80)}
    assert found.backends == {parse("10.1.0.5"): {"": Port(protocol=Protocol.TCP, port=8080)}}


def test_without_a_slice_the_ready_pods_with_its_labels_answer() -> None:
    service = kube.service("cart", selector={"app": "cart", "tier": "web"})
    labels = {"app": "cart", "tier": "web", "more": "x"}
    pods = [
        kube.pod("cart-0", "10.1.0.5", labels),
        kube.pod("cart-1", "10.1.0.6", labels, ready=False),
        kube.pod("cart-2", "10.1.0.7", {"app": "cart"}),
        kube.pod("other/cart-3", "10.1.0.8", labels),
    ]
    node = kube.node("n1", "192.0.2.1")
    assert one(service, node, *pods).service.backends == {parse("10.1.0.5"): HTTP}
    published = kube.service("cart", selector={"app": "cart", "tier": "web"}, publishNotReadyAddresses=True)
    assert set(one(published, node, *pods).service.backends) == {parse("10.1.0.5"), parse("10.1.0.6")}
    with_slice = one(service, node, *pods, kube.endpoint_slice("cart-1", "cart", []))
    assert with_slice.service.backends == {}, "a slice, even an empty one, is the word of somebody who knows better"


def test_a_selector_of_nothing_selects_nothing() -> None:
    pod = kube.pod("cart-0", "10.1.0.5", {"app": "cart"})
    assert one(kube.service("cart"), kube.node("n1", "192.0.2.1"), pod).service.backends == {}


def test_named_target_ports_are_looked_up_in_each_pod() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "same", "port": 7000}]
    service = kube.service("cart", selector={"app": "cart"}, ports=ports)

    def pod(name: str, ip: str, number: int, protocol: str = "TCP") -> dict[str, Any]:
        container = {"ports": [{"name": "web", "containerPort": number, "protocol": protocol}]}
        return kube.pod(name, ip, {"app": "cart"}, containers=[{}, container])

    pods = [pod("cart-0", "10.1.0.5", 8080), pod("cart-1", "10.1.0.6", 9090), pod("cart-2", "10.1.0.7", 1, "UDP")]
    backends = one(service, kube.node("n1", "192.0.2.1"), *pods).service.backends
    assert {ip: {name: port.port for name, port in ports.items()} for ip, ports in backends.items()} == {
        parse("10.1.0.5"): {"http": 8080, "same": 7000},
        parse("10.1.0.6"): {"http": 9090, "same": 7000},
        parse("10.1.0.7"): {"same": 7000},
    }


def test_pods_of_two_families_answer_in_those_the_service_has() -> None:
    pod = kube.pod("cart-0", "10.1.0.5", {"app": "cart"}, hostname="cart-0", subdomain="cart")
    pod["status"]["podIPs"] = [{"ip": "10.1.0.5"}, {"ip": "fd00:1::5"}]
    node = kube.node("n1", "192.0.2.1")
    four = one(kube.service("cart", selector={"app": "cart"}), node, pod).service
    assert (set(four.backends), four.hostnames) == ({parse("10.1.0.5")}, {parse("10.1.0.5"): "cart-0"})
    none = one(kube.service("cart", selector={"app": "cart"}, clusterIP="None"), node, pod).service
    assert set(none.backends) == {parse("10.1.0.5"), parse("fd00:1::5")}


def test_bad_parts_are_left_out_one_by_one_and_the_rest_goes_on() -> None:
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "big", "port": 65536},
        {"name": "odd", "port": 1, "protocol": "tcp"},
        {"name": "http", "port": 81},
        {"name": "A", "port": 82},
    ]
    service = kube.service("cart", clusterIP="10.96.0.10", clusterIPs=["10.96.0.10", "10.96.0.300"], ports=ports)
    addresses = ["10.1.0.5", "10.1.0.05", "::ffff:1.2.3.4", "127.0.0.1", "fe80::1%eth0"]
    endpoint_slice = kube.endpoint_slice("cart-1", "cart", addresses)
    endpoint_slice["ports"].append({"name": "no", "port": 0})
    manifests = service, endpoint_slice
    found = translate(kube.ALPHA, kube.decode(*manifests))[0].services["shop", "cart"].service
    assert found.frontends == {parse("10.96.0.10"): {"http": Port(protocol=Protocol.TCP, port=80)}}
    assert found.backends == {parse("10.1.0.5"): HTTP}
    assert [sentence.rsplit(": ", 1)[0] for sentence in faults(*manifests)] == [
        "cart: spec.ports[1].port: 65536",
        "cart: spec.ports[2].protocol: 'tcp'",
        "cart: spec.ports[3].name: 'http': must be unique in its service",
        "cart: spec.ports[4].name: 'A'",
        "cart: spec.clusterIP: '10.96.0.300'",
        "cart-1: ports[1].port: 0",
        "cart-1: endpoints[1].addresses: '10.1.0.05'",
        "cart-1: endpoints[2].addresses: '::ffff:1.2.3.4'",
        "cart-1: endpoints[3].addresses: '127.0.0.1'",
        "cart-1: endpoints[4].addresses: 'fe80::1%eth0'",
    ]


def test_a_service_without_address_or_with_a_port_nobody_has_says_so() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": "nope"}, {"name": "x", "port": 81, "targetPort": 70000}]
    service = kube.service("cart", clusterIP="", selector={"app": "cart"}, ports=ports)
    pod = kube.pod("cart-0", "10.1.0.5", {"app": "cart"})
    found = faults(service, kube.node("n1", "192.0.2.1"), pod)
    assert sorted(fault.split(": must")[0] for fault in found) == [
        "cart: spec.clusterIP: ''",
        "cart: spec.ports[0].targetPort: 'nope'",
        "cart: spec.ports[1].targetPort: 70000",
    ]
