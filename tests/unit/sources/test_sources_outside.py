"""Who may call a service, from where, and whom the callers get: fields of the Service, each good and bad."""

from __future__ import annotations

from typing import Any

import kube
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from clustermesh.address import Address, Prefix, contains, parse, parse_prefix, prefix_text
from clustermesh.errors import Invalid
from clustermesh.model import NOT_OUTSIDE, Algorithm, LocalService, Outside, Port, Protocol, ServiceType
from clustermesh.sources.rules import parse_range
from clustermesh.sources.translate import Translator, translate
from clustermesh.wire import local

PORTS = [
    {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080},
    {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30080},
]
NODE_PORTS = {
    "http": Port(protocol=Protocol.TCP, port=30080),
    "dns": Port(protocol=Protocol.UDP, port=30080),
}


def told(status: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, **spec: Any) -> Any:
    """The service as it is translated, and what is wrong with it."""
    service = kube.service("cart", **{"ports": PORTS, **spec})
    service["metadata"]["annotations"] |= annotations or {}
    snapshot, faults = translate(kube.ALPHA, kube.decode({**service, "status": status or {}}))
    return snapshot.services["shop", "cart"], [fault.sentence for fault in faults]


def judged(service: Any) -> LocalService:
    """As it is translated where an API server has taken it."""
    objects = kube.decode(service)
    translator = Translator(kube.ALPHA, objects, selects=False)
    translator.apply(dict.fromkeys(objects, 0))
    assert not list(translator.faults())
    return translator.snapshot.services["shop", "cart"]


def good(**more: Any) -> LocalService:
    found, faults = told(**more)
    assert faults == []
    return found  # type: ignore[no-any-return]


def bad(**more: Any) -> tuple[LocalService, str]:
    """With one fault: its field and value."""
    found, (fault,) = told(**more)
    return found, ": ".join(fault.split(": ")[:2])


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(map(parse, texts))


def test_a_plain_service_has_no_way_in_from_outside_and_is_told_by_ciliums_key_alone() -> None:
    found = good()
    assert found.outside is NOT_OUTSIDE
    assert local.is_told(found)
    assert local.encode_service(found) == local.encode_service(LocalService(service=found.service, is_global=True))


def test_node_ports_are_by_the_names_of_the_ports() -> None:
    found = good(type="NodePort")
    assert (found.type, found.outside) == (ServiceType.NODE_PORT, Outside(node_ports=NODE_PORTS))
    assert not local.is_told(found)
    assert good().outside.node_ports == {}, "of a ClusterIP they mean nothing"


@pytest.mark.parametrize(
    ("kind", "number", "fault"),
    [
        ("NodePort", 0, "spec.ports[0].nodePort: 0"),
        ("LoadBalancer", 0, ""),  # allocateLoadBalancerNodePorts: false
        ("NodePort", 65536, "spec.ports[0].nodePort: 65536"),
        ("LoadBalancer", -1, "spec.ports[0].nodePort: -1"),
        ("NodePort", 22, "spec.ports[0].nodePort: 22"),
        ("LoadBalancer", 29999, "spec.ports[0].nodePort: 29999"),
        ("NodePort", 32768, "spec.ports[0].nodePort: 32768"),
    ],
)
def test_a_node_port_that_is_none_is_left_out(kind: str, number: int, fault: str) -> None:
    found, faults = told(type=kind, ports=[{**PORTS[0], "nodePort": number}, PORTS[1]])
    assert found.outside.node_ports == {"dns": NODE_PORTS["dns"]}
    assert [": ".join(each.split(": ")[:2]) for each in faults] == ([fault] if fault else [])


def test_in_a_folder_node_ports_are_of_the_usual_range_and_elsewhere_as_the_api_server_took_them() -> None:
    ports = [{**PORTS[0], "nodePort": 22}]
    spec = {"type": "LoadBalancer", "ports": ports, "externalTrafficPolicy": "Local", "healthCheckNodePort": 23}
    found, faults = told(**spec)
    rule = "must be 30000 to 32767 in a folder, as Kubernetes usually has it"
    assert sorted(faults) == [f"spec.healthCheckNodePort: 23: {rule}", f"spec.ports[0].nodePort: 22: {rule}"]
    assert (found.outside.node_ports, found.outside.health_check_port) == ({}, 0)
    found = judged(kube.service("cart", **spec))
    assert (found.outside.node_ports["http"].port, found.outside.health_check_port) == (22, 23)


def test_two_ports_have_not_one_node_port() -> None:
    found, fault = bad(type="NodePort", ports=[PORTS[0], {"name": "more", "port": 81, "nodePort": 30080}])
    assert (set(found.outside.node_ports), fault) == ({"http"}, "spec.ports[1].nodePort: 30080")


@pytest.mark.timeout(10)
def test_a_service_of_many_ports_holds_nobody_up() -> None:
    ports = [{"name": f"p{number}", "port": number, "nodePort": number} for number in range(1, 20_001)]
    assert len(judged(kube.service("cart", type="NodePort", ports=ports)).outside.node_ports) == 20_000


def test_external_ips_are_of_any_type() -> None:
    found = good(externalIPs=["192.0.2.7", "2001:DB8::7"])
    assert found.outside == Outside(external_ips=addresses("192.0.2.7", "2001:db8::7"))
    found, fault = bad(externalIPs=["127.0.0.1", "192.0.2.7"])
    assert (found.outside.external_ips, fault) == (addresses("192.0.2.7"), "spec.externalIPs[0]: '127.0.0.1'")


def test_a_load_balancers_addresses_are_served_unless_a_proxy_is_there() -> None:
    ingress = [
        {"ip": "192.0.2.1"},
        {"ip": "192.0.2.2", "ipMode": "VIP"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"hostname": "lb.example.org"},
    ]
    found = good(type="LoadBalancer", status={"loadBalancer": {"ingress": ingress}})
    assert found.outside == Outside(node_ports=NODE_PORTS, load_balancer_ips=addresses("192.0.2.1", "192.0.2.2"))
    odd = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "vip"}, {"ip": "192.0.2.2"}]}}
    found, fault = bad(type="LoadBalancer", status=odd)
    assert fault == "status.loadBalancer.ingress[0].ipMode: 'vip'"
    assert found.outside.load_balancer_ips == addresses("192.0.2.2")
    assert good(type="NodePort", status=odd).outside.load_balancer_ips == ()


@pytest.mark.parametrize(
    ("spec", "local_only", "port", "fault"),
    [
        ({"externalTrafficPolicy": "Cluster"}, False, 0, ""),
        ({"externalTrafficPolicy": "Local"}, True, 0, ""),
        ({"externalTrafficPolicy": "local"}, False, 0, "spec.externalTrafficPolicy: 'local'"),
        ({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}, True, 32000, ""),
        ({"externalTrafficPolicy": "Cluster", "healthCheckNodePort": 32000}, False, 0, ""),
        ({"externalTrafficPolicy": "Local", "healthCheckNodePort": 70000}, True, 0, "spec.healthCheckNodePort: 70000"),
    ],
)
def test_the_external_policy_and_its_health_check(
    spec: dict[str, Any], local_only: bool, port: int, fault: str
) -> None:
    found, faults = told(type="LoadBalancer", **spec)
    assert (found.outside.local_only, found.outside.health_check_port) == (local_only, port)
    assert [": ".join(each.split(": ")[:2]) for each in faults] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("texts", "ranges", "faults"),
    [
        ([], None, 0),
        (["192.0.2.0/24", "2001:db8::/32"], ("192.0.2.0/24", "2001:db8::/32"), 0),
        (["192.0.2.77/24", " 192.0.2.0/24 "], ("192.0.2.0/24",), 0),
        (["0.0.0.0/0"], ("0.0.0.0/0",), 0),
        (["192.0.2.0/24", "192.0.2.0/33", "office"], ("192.0.2.0/24",), 2),
        (["192.0.2.1", ""], (), 2),
    ],
)
def test_source_ranges_fail_closed(texts: list[str], ranges: tuple[str, ...] | None, faults: int) -> None:
    found, said = told(type="LoadBalancer", loadBalancerSourceRanges=texts)
    expected = None if ranges is None else tuple(map(parse_prefix, ranges))
    assert (found.outside.source_ranges, len(said)) == (expected, faults)
    assert good(type="NodePort", loadBalancerSourceRanges=texts).outside.source_ranges is None


@given(st.integers(0, 2**128 - 1).map(lambda n: Address(n.to_bytes(16, "big"))), st.integers(0, 128))
def test_a_range_is_what_its_address_is_in(address: Address, length: int) -> None:
    spelled = prefix_text(Prefix(address, 128)).split("/")[0]
    most = 128 if ":" in spelled else 32
    if length > most:
        with pytest.raises(Invalid):
            parse_range("", f"{spelled}/{length}")
        return
    found = parse_range("", f"{spelled}/{length}")
    assert (contains(found, address), found.length) == (True, length + 128 - most)


@pytest.mark.parametrize(
    ("spec", "seconds", "fault"),
    [
        ({}, 0, ""),
        ({"sessionAffinity": "None"}, 0, ""),
        ({"sessionAffinity": "ClientIP"}, 10_800, ""),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}, 1, ""),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}}, 86400, ""),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            10_800,
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401",
        ),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            10_800,
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0",
        ),
        ({"sessionAffinity": "Cookie"}, 0, "spec.sessionAffinity: 'Cookie'"),
    ],
)
def test_session_affinity_has_a_time(spec: dict[str, Any], seconds: int, fault: str) -> None:
    found, faults = told(**spec)
    assert found.affinity_seconds == seconds
    assert [": ".join(each.split(": ")[:2]) for each in faults] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("text", "expected"), [("maglev", Algorithm.MAGLEV), ("Maglev", Algorithm.MAGLEV), ("random", Algorithm.RANDOM)]
)
def test_the_algorithm_is_an_annotation(text: str, expected: Algorithm) -> None:
    assert good(annotations={"service.cilium.io/lb-algorithm": text}).algorithm is expected


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"type": "Balancer"}, "spec.type: 'Balancer'"),
        ({"internalTrafficPolicy": "Node"}, "spec.internalTrafficPolicy: 'Node'"),
        ({"trafficDistribution": "Near"}, "spec.trafficDistribution: 'Near'"),
        (
            {"annotations": {"service.cilium.io/lb-algorithm": "rr"}},
            "metadata.annotations[service.cilium.io/lb-algorithm]: 'rr'",
        ),
    ],
)
def test_what_is_none_is_taken_as_if_it_were_not_there(more: dict[str, Any], fault: str) -> None:
    found, said = bad(**more)
    assert (found, said) == (replace(good(), service=found.service), fault)


def test_an_internal_policy_of_local_keeps_to_the_callers_node() -> None:
    assert good(internalTrafficPolicy="Local").local_only
    assert not good(internalTrafficPolicy="Cluster").local_only
