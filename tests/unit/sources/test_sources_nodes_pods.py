"""Nodes, and the pods on them: addresses, pod CIDRs that must not overlap, and who is behind an address."""

from __future__ import annotations

import ipaddress
from typing import Any

import kube
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh import model
from clustermesh.address import parse, parse_prefix, prefix_text
from clustermesh.model import NodeAddress
from clustermesh.sources.snapshot import Snapshot
from clustermesh.sources.translate import translate

KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="


def snapshot(*manifests: dict[str, Any]) -> Snapshot:
    found, faults = translate(kube.ALPHA, kube.decode(*manifests))
    assert faults == []
    return found


def faults(*manifests: dict[str, Any]) -> list[str]:
    return [f"{ref.name}: {sentence}" for ref, sentence in translate(kube.ALPHA, kube.decode(*manifests))[1]]


def test_a_node_has_its_addresses_its_cidrs_and_the_first_address_of_them() -> None:
    manifest = kube.node("n1", "192.0.2.1", "10.1.0.0/24", "fd00:1::/64", "10.2.0.0/24", network_cilium_io="")
    manifest["metadata"] |= {"labels": {"zone": "z1"}, "annotations": {"network.cilium.io/ipv4-health-ip": "10.1.0.9"}}
    manifest["status"]["addresses"].append({"type": "ExternalIP", "address": "198.51.100.1"})
    manifest["status"]["nodeInfo"] = {"bootID": "b-1"}
    assert snapshot(manifest).nodes["n1"] == model.Node(
        cluster="alpha",
        cluster_id=1,
        name="n1",
        addresses=(
            NodeAddress(type="InternalIP", ip=parse("192.0.2.1")),
            NodeAddress(type="ExternalIP", ip=parse("198.51.100.1")),
            NodeAddress(type="CiliumInternalIP", ip=parse("10.1.0.1")),
        ),
        pod_cidrs=tuple(map(parse_prefix, ("10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"))),
        health_ips=(parse("10.1.0.9"),),
        labels={"zone": "z1"},
        boot_id="b-1",
    )


def test_annotations_give_the_router_address_and_the_wireguard_key() -> None:
    manifest = kube.node("n1", "192.0.2.1", "10.1.0.0/24")
    manifest["metadata"]["annotations"] = {
        "network.cilium.io/ipv4-cilium-host": "10.1.0.77",
        "network.cilium.io/wg-pub-key": KEY,
        "unrelated": "x",
    }
    node = snapshot(manifest).nodes["n1"]
    assert node.address("CiliumInternalIP") == parse("10.1.0.77")
    assert (node.wireguard_public_key, node.encryption_key) == (KEY, 255)
    assert node.annotations == {"network.cilium.io/wg-pub-key": KEY}


def test_bad_parts_of_a_node_are_left_out_one_by_one() -> None:
    manifest = kube.node("n1", "192.0.2.300", "10.1.0.1/24", "10.2.0.0/24", "10.3.0.0")
    manifest["metadata"]["annotations"] = {"network.cilium.io/wg-pub-key": "c2hvcnQ="}
    found, sentences = translate(kube.ALPHA, kube.decode(manifest))[0].nodes["n1"], faults(manifest)
    assert (found.pod_cidrs, found.underlay, found.wireguard_public_key) == ((parse_prefix("10.2.0.0/24"),), None, "")
    assert [sentence.split(": must")[0] for sentence in sentences] == [
        "n1: status.addresses[0].address: '192.0.2.300'",
        "n1: status.addresses: ''",
        "n1: spec.podCIDRs: '10.1.0.1/24'",
        "n1: spec.podCIDRs: '10.3.0.0'",
        "n1: WireGuard key: 'c2hvcnQ='",
    ]


def test_of_two_nodes_with_overlapping_cidrs_the_first_by_name_has_them() -> None:
    manifests = kube.node("n2", "192.0.2.2", "10.1.0.128/25"), kube.node("n1", "192.0.2.1", "10.1.0.0/24")
    found, sentences = translate(kube.ALPHA, kube.decode(*manifests))
    assert {name: node.pod_cidrs for name, node in found.nodes.items()} == {
        "n1": (parse_prefix("10.1.0.0/24"),),
        "n2": (),
    }
    assert [s.sentence for s in sentences] == [
        "spec.podCIDRs: '10.1.0.128/25': must not overlap 10.1.0.0/24 of node n1"
    ]


def test_of_two_nodes_with_one_internal_ip_the_first_by_name_has_it() -> None:
    manifests = kube.node("n2", "192.0.2.1", "10.1.2.0/24"), kube.node("n1", "192.0.2.1", "10.1.1.0/24")
    found, sentences = translate(kube.ALPHA, kube.decode(*manifests))
    assert {name: node.underlay for name, node in found.nodes.items()} == {"n1": parse("192.0.2.1"), "n2": None}
    assert [node.pod_cidrs for node in found.nodes.values()] == [
        (parse_prefix("10.1.1.0/24"),),
        (parse_prefix("10.1.2.0/24"),),
    ]
    assert [(s.ref.name, s.sentence) for s in sentences] == [
        ("n2", "status.addresses[0].address: '192.0.2.1': must not be the InternalIP of node n1 too"),
        ("n2", "status.addresses: '': must hold an InternalIP, where other nodes reach this one"),
    ]


@pytest.mark.parametrize(
    "cidr",
    [
        *(
            "0.0.0.0/0",
            "0.0.0.0/1",
            "127.0.0.0/8",
            "127.9.0.0/24",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "255.255.255.255/32",
        ),
        *("::/0", "::/128", "::1/128", "fe80::/64", "ff00::/8", "64:ff9b::/96"),
    ],
)
def test_a_pod_cidr_that_is_nobodys_to_have_is_left_out_with_one_problem(cidr: str) -> None:
    manifest = kube.node("n1", "192.0.2.1", cidr, "10.1.0.0/24")
    found = translate(kube.ALPHA, kube.decode(manifest))[0].nodes["n1"]
    assert found.pod_cidrs == (parse_prefix("10.1.0.0/24"),)
    (sentence,) = faults(manifest)
    assert sentence.startswith(f"n1: spec.podCIDRs: '{cidr}': must not overlap ")


@pytest.mark.parametrize(
    ("cidr", "address", "name"),
    [
        ("192.0.2.0/24", "192.0.2.1", "n1"),
        ("192.0.2.2/32", "192.0.2.2", "n2"),
        ("198.51.100.0/24", "198.51.100.7", "n2"),
        ("fd00:9::/64", "fd00:9::2", "n2"),
        ("192.0.2.128/25", "", ""),
    ],
)
def test_a_pod_cidr_that_holds_a_node_is_left_out_whoever_says_it(cidr: str, address: str, name: str) -> None:
    two = kube.node("n2", "192.0.2.2", "10.1.2.0/24")
    two["status"]["addresses"] += [
        {"type": "ExternalIP", "address": "198.51.100.7"},
        {"type": "InternalIP", "address": "fd00:9::2"},
    ]
    manifests = kube.node("n1", "192.0.2.1", cidr), two
    found, sentences = translate(kube.ALPHA, kube.decode(*manifests))
    assert found.nodes["n1"].pod_cidrs == (() if address else (parse_prefix(cidr),))
    assert found.nodes["n2"].pod_cidrs == (parse_prefix("10.1.2.0/24"),)
    expected = [f"spec.podCIDRs: '{cidr}': must not hold {address}, where node {name} is reached"] if address else []
    assert [s.sentence for s in sentences] == expected


_CIDRS = st.tuples(st.integers(0, 63), st.integers(24, 32)).map(
    lambda pair: str(ipaddress.ip_network(((10 << 24) + pair[0] * 16, pair[1]), strict=False))
)


@given(st.lists(st.lists(_CIDRS, max_size=3), max_size=6))
def test_handed_out_cidrs_are_those_a_comparison_of_all_with_all_would_leave(nodes: list[list[str]]) -> None:
    manifests = [kube.node(f"n{number}", f"192.0.2.{number + 1}", *cidrs) for number, cidrs in enumerate(nodes)]
    found = translate(kube.ALPHA, kube.decode(*manifests))[0].nodes
    twin: list[str] = []
    for cidrs in nodes:
        for cidr in cidrs:
            network = ipaddress.ip_network(cidr)
            if not any(network.overlaps(ipaddress.ip_network(other)) for other in twin):
                twin.append(cidr)
    assert [prefix_text(cidr) for number in range(len(nodes)) for cidr in found[f"n{number}"].pod_cidrs] == twin


# -- pods -------------------------------------------------------------------------------------------------------------


def test_each_address_of_a_pod_is_an_endpoint_on_its_nodes_address() -> None:
    pod = kube.pod("cart-0", "10.1.0.5", {"app": "cart"}, serviceAccountName="robot")
    pod["status"]["podIPs"] = [{"ip": "10.1.0.5"}, {"ip": "fd00:1::5"}]
    found = snapshot(pod, kube.node("n1", "192.0.2.1"), kube.namespace("shop", team="red")).endpoints
    assert set(found) == {parse("10.1.0.5"), parse("fd00:1::5")}
    endpoint = found[parse("fd00:1::5")]
    assert (endpoint.namespace, endpoint.pod_name, endpoint.service_account) == ("shop", "cart-0", "robot")
    assert (endpoint.node, endpoint.host_ip) == ("n1", parse("192.0.2.1"))
    assert (endpoint.labels, endpoint.namespace_labels) == ({"app": "cart"}, {"team": "red"})


def test_host_network_ended_and_withheld_pods_are_no_endpoints() -> None:
    host = kube.pod("a", "192.0.2.1", {}, hostNetwork=True)
    ended = kube.pod("b", "10.1.0.6", {})
    ended["status"]["phase"] = "Succeeded"
    withheld = kube.pod("secret/c", "10.1.0.7", {})
    waiting = kube.pod("d", "", {})
    unready = kube.pod("e", "10.1.0.8", {}, ready=False)
    manifests = host, ended, withheld, waiting, unready, kube.namespace("secret", global_="false")
    assert set(snapshot(*manifests, kube.node("n1", "192.0.2.1")).endpoints) == {parse("10.1.0.8")}


def test_a_pod_on_an_unknown_node_says_so_unless_its_status_knows_better() -> None:
    pod = kube.pod("cart-0", "10.1.0.5", {})
    assert [fault.split(": must")[0] for fault in faults(pod)] == ["cart-0: spec.nodeName: 'n1'"]
    pod["status"]["hostIP"] = "192.0.2.9"
    assert snapshot(pod).endpoints[parse("10.1.0.5")].host_ip == parse("192.0.2.9")


def test_of_two_pods_with_one_address_the_first_by_name_has_it() -> None:
    manifests = kube.pod("b", "10.1.0.5", {}), kube.pod("a", "10.1.0.5", {}), kube.node("n1", "192.0.2.1")
    found, sentences = translate(kube.ALPHA, kube.decode(*manifests))
    assert found.endpoints[parse("10.1.0.5")].pod_name == "a"
    assert [(s.ref.name, s.sentence) for s in sentences] == [
        ("b", "status.podIP: '10.1.0.5': must not be the address of Pod shop/a too")
    ]
