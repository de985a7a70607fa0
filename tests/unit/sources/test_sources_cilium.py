"""Cilium's own resources, passed on as they are; what no reader would take is left out with a sentence."""

from __future__ import annotations

from typing import Any

import kube
import pytest

from clustermesh.address import parse, parse_prefix
from clustermesh.model import NodeAddress
from clustermesh.sources.snapshot import Snapshot
from clustermesh.sources.translate import Translator, translate

POD = "10.1.0.5"


def snapshot(*manifests: dict[str, Any]) -> Snapshot:
    found, faults = translate(kube.ALPHA, kube.decode(*manifests))
    assert faults == []
    return found


def faults(*manifests: dict[str, Any]) -> list[str]:
    return [f"{ref.name}: {sentence}" for ref, sentence in translate(kube.ALPHA, kube.decode(*manifests))[1]]


def test_a_node_is_what_its_agent_wrote() -> None:
    manifest = kube.cilium_node(
        "n1",
        "192.0.2.1",
        "fd00:1::/64",
        "10.1.0.0/24",
        "10.2.0.0/24",
        encryption={"key": 255},
        health={"ipv4": "10.1.0.44", "ipv6": "fd00:1::44"},
        ingress={"ipv4": "10.1.0.45"},
        bootid="b",
    )
    manifest["spec"]["addresses"].append({"type": "CiliumInternalIP", "ip": "10.1.0.1"})
    node = snapshot(manifest).nodes["n1"]
    assert node.addresses == (
        NodeAddress(type="InternalIP", ip=parse("192.0.2.1")),
        NodeAddress(type="CiliumInternalIP", ip=parse("10.1.0.1")),
    )
    assert node.pod_cidrs == tuple(map(parse_prefix, ("10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64")))
    assert node.health_ips == (parse("10.1.0.44"), parse("fd00:1::44"))
    assert node.ingress_ips == (parse("10.1.0.45"),)
    assert (node.encryption_key, node.boot_id, node.labels, node.annotations) == (255, "b", None, None)


def test_of_a_node_that_both_have_ciliums_counts() -> None:
    found = snapshot(kube.node("n1", "192.0.2.9"), kube.cilium_node("n1", "192.0.2.1"))
    assert found.nodes["n1"].underlay == parse("192.0.2.1")


def test_an_endpoint_has_the_number_that_cilium_gave_it() -> None:
    found = snapshot(kube.cilium_endpoint("cart-0", 65999, POD, "fd00:1::5", key=255)).endpoints
    assert set(found) == {parse(POD), parse("fd00:1::5")}
    endpoint = found[parse(POD)]
    assert endpoint.identity == 65999  # type: ignore[union-attr]
    assert (endpoint.namespace, endpoint.pod_name, endpoint.host_ip) == ("shop", "cart-0", parse("192.0.2.1"))


def test_an_endpoint_without_identity_or_addresses_is_not_there_yet() -> None:
    waiting = kube.cilium_endpoint("b", 65999, POD)
    del waiting["status"]["networking"]
    assert snapshot(kube.cilium_endpoint("a", 0, "10.1.0.6"), waiting).endpoints == {}


def test_a_slice_holds_many_endpoints_of_one_namespace() -> None:
    found = snapshot(kube.cilium_slice("ces-1", "shop", ("a", 65999, POD), ("b", 66000, "10.1.0.6"))).endpoints
    assert {(e.namespace, e.pod_name) for e in found.values()} == {("shop", "a"), ("shop", "b")}


def test_an_address_in_use_again_is_the_newer_ones_and_goes_back_when_that_goes() -> None:
    old = kube.aged(kube.cilium_endpoint("old", 65999, POD), "2026-01-01T00:00:00Z")
    new = kube.aged(kube.cilium_endpoint("new", 66000, POD), "2026-01-01T00:00:05Z")
    assert translate(kube.ALPHA, kube.decode(old, new))[0].endpoints[parse(POD)].pod_name == "new"
    assert snapshot(old).endpoints[parse(POD)].pod_name == "old"


def test_a_pod_on_its_way_out_gives_way_without_a_complaint() -> None:
    leaving = kube.aged(kube.pod("a", POD, {}), "2026-01-02T00:00:00Z", "2026-01-02T00:01:00Z")
    staying = kube.aged(kube.pod("b", POD, {}), "2026-01-01T00:00:00Z")
    assert snapshot(leaving, staying, kube.node("n1", "192.0.2.1")).endpoints[parse(POD)].pod_name == "b"


def test_a_namespace_that_stays_at_home_keeps_its_identities_and_endpoints() -> None:
    manifests = [
        kube.cilium_identity(65999, "secret"),
        kube.cilium_endpoint("secret/a", 65999, POD),
        kube.cilium_slice("ces-1", "secret", ("b", 65999, "10.1.0.6")),
    ]
    found = snapshot(*manifests, kube.namespace("secret", global_="false"))
    assert (found.identities, found.endpoints) == ({}, {})
    assert len(snapshot(*manifests, kube.namespace("secret")).endpoints) == 2


@pytest.mark.parametrize(
    ("manifest", "begin"),
    [
        (
            kube.cilium_identity(65999, cluster="beta"),
            "65999: security-labels[k8s:io.cilium.k8s.policy.cluster]: 'beta'",
        ),
        (kube.cilium_identity(300), "300: metadata.name: '300'"),
        (kube.cilium_identity(1 << 17), "131072: metadata.name: '131072'"),
        (kube.cilium_endpoint("a", 1 << 24, POD), "a: identity.id: 16777216"),
        (kube.cilium_endpoint("a", 65999, "10.1.0.300"), "a: networking.addressing.ipv4: '10.1.0.300'"),
        (kube.cilium_node("n1", "nowhere"), "n1: spec.addresses[0].ip: 'nowhere'"),
        (kube.cilium_node("n1", "192.0.2.1", "10.1.0.7/24"), "n1: spec.ipam.podCIDRs: '10.1.0.7/24'"),
    ],
)
def test_what_no_reader_would_take_is_left_out_with_a_sentence(manifest: dict[str, Any], begin: str) -> None:
    (sentence,) = faults(manifest)
    assert sentence.startswith(begin + ": must")


@pytest.mark.parametrize("name", ["065999", "65999x"])
def test_another_objects_name_takes_no_number_away(name: str) -> None:
    objects = kube.decode(kube.cilium_identity(65999, app="a"))
    translator = Translator(kube.ALPHA, objects, selects=False)
    translator.apply(dict.fromkeys(objects, 0))
    assert list(translator.snapshot.identities) == [65999]
    other = kube.decode(kube.cilium_identity(65999, app="b") | {"metadata": {"name": name}})
    objects |= other
    translator.apply(dict.fromkeys(other, 0))
    assert list(translator.snapshot.identities) == [65999]


def test_labels_are_sorted_by_key_alone() -> None:
    (identity,) = snapshot(kube.cilium_identity(65999, app="cart", zzz="1")).identities.values()
    keys = [label.key for label in identity.labels]
    assert keys == sorted(keys)
    assert {label.source for label in identity.labels} == {"k8s"}


def test_slices_that_cilium_makes_of_other_clusters_backends_are_none_of_this_one() -> None:
    cart = kube.service("cart")
    theirs = kube.endpoint_slice("cart-1", "cart", ["10.2.0.5"])
    theirs["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = "endpointslice-mesh-controller.cilium.io"
    assert snapshot(cart, theirs).services == snapshot(cart).services


def test_a_service_of_another_proxy_is_not_told_of() -> None:
    cart = kube.service("cart")
    cart["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    assert snapshot(cart, kube.endpoint_slice("cart-1", "cart", [POD])).services == {}


@pytest.mark.parametrize("kind", ["CiliumNode", "CiliumEndpoint", "Service"])
def test_an_object_with_a_name_that_no_key_can_hold_is_left_out_with_a_sentence(kind: str) -> None:
    good = kube.decode(kube.cilium_node("n1", "192.0.2.1"), kube.cilium_endpoint("a", 65999, POD), kube.service("cart"))
    bad = {ref._replace(name="a/b"): value for ref, value in good.items() if ref.kind == kind}
    found, sentences = translate(kube.ALPHA, bad)
    assert found == Snapshot()
    assert [(ref.name, "must be 1 to 253 printable" in sentence) for ref, sentence in sentences] == [("a/b", True)]
    assert translate(kube.ALPHA, good | bad)[0] == translate(kube.ALPHA, good)[0]


@pytest.mark.parametrize("moment", ["²", "9" * 5000, "soon"])
def test_a_time_that_is_none_of_the_apis_ends_nothing(moment: str) -> None:
    odd = kube.aged(kube.cilium_endpoint("odd", 65999, POD), moment)
    found, _ = translate(kube.ALPHA, kube.decode(odd, kube.cilium_endpoint("other", 66000, POD)))
    assert set(found.endpoints) == {parse(POD)}


def test_a_namespace_that_leaves_the_mesh_takes_its_identities_along_and_brings_them_back() -> None:
    objects = kube.decode(kube.cilium_identity(65999, "shop"))
    translator = Translator(kube.ALPHA, objects)
    translator.apply(dict.fromkeys(objects, 0))
    assert set(translator.snapshot.identities) == {65999}
    for is_global, left in (("false", set()), ("true", {65999})):
        (changed,) = outside = kube.decode(kube.namespace("shop", global_=is_global))
        objects |= outside
        assert translator.apply({changed: 0}).identities == {65999}
        assert set(translator.snapshot.identities) == left
