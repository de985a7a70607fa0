"""Strict in what is written: every field a reader counts on is there, and what a reader would refuse is Invalid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from msgspec.structs import replace
from wire_values import CODECS, maps, services, texts

from clustermesh.address import Prefix, parse
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import (
    AgentRecord,
    ClusterConfig,
    Endpoint,
    EndpointSlice,
    ExportPort,
    Identity,
    Label,
    Node,
    NodeAddress,
    Port,
    Protocol,
    Service,
    ServiceExport,
    SliceEndpoint,
    SlicePort,
)
from clustermesh.wire import cluster_config, endpoint, endpoint_slice, identity, local, node, service, service_export
from clustermesh.wire.timestamp import format_time

CART = Service(cluster="west", cluster_id=2, namespace="shop", name="cart")
W1 = Node(cluster="west", cluster_id=2, name="w1")
POD = Endpoint(ip=parse("10.20.1.8"), identity=131500)
EXPORT = ServiceExport(cluster="west", namespace="shop", name="cart", created=1767225600)
SLICE = EndpointSlice(cluster="west", cluster_id=2, namespace="shop", name="cart-1", address_type="IPv4")
HTTP = {"http": Port(protocol=Protocol.TCP, port=80)}
LOWER: Any = "tcp"


def test_empty_service_still_has_every_field() -> None:
    assert service.encode(CART).decode() == (
        '{"cluster":"west","namespace":"shop","name":"cart","frontends":{},"backends":{},"hostnames":{},'
        '"labels":{},"selector":{},"includeExternal":true,"shared":true,"clusterID":2}'
    )


def test_who_terminates_is_named_behind_all_that_cilium_has() -> None:
    data = service.encode(replace(CART, terminating=frozenset([parse("fd00::8"), parse("10.20.1.8")])))
    assert data == service.encode(CART)[:-1] + b',"terminatingBackends":["10.20.1.8","fd00::8"]}'
    for said, number in ((b'["10.20.1.8"]', 1), (b"[]", 0), (b"null", 0)):
        given = service.encode(CART)[:-1] + b',"terminatingBackends":' + said + b"}"
        assert len(service.decode(given).terminating) == number


def test_empty_node_still_has_every_field() -> None:
    assert list(json.loads(node.encode(W1))) == [
        "Name",
        "Cluster",
        "IPAddresses",
        "IPv4AllocCIDR",
        "IPv4SecondaryAllocCIDRs",
        "IPv6AllocCIDR",
        "IPv6SecondaryAllocCIDRs",
        "IPv4HealthIP",
        "IPv6HealthIP",
        "IPv4IngressIP",
        "IPv6IngressIP",
        "ClusterID",
        "Source",
        "EncryptionKey",
        "Labels",
        "Annotations",
        "NodeIdentity",
        "WireguardPubKey",
        "BootID",
    ]


def test_pod_without_ports_and_account_has_neither_field() -> None:
    written = endpoint.encode(replace(POD, namespace="shop", pod_name="cart-0"))
    assert list(json.loads(written)) == ["IP", "Mask", "HostIP", "ID", "Key", "Metadata", "K8sNamespace", "K8sPodName"]


def test_export_has_its_maps_in_both_spellings() -> None:
    export = replace(
        EXPORT,
        annotations={"a": "b"},
        labels={"tier": "x"},
        ports=(ExportPort(name="http", port=80), ExportPort(port=53, protocol=Protocol.UDP, app_protocol="dns")),
        session_affinity="ClientIP",
        session_affinity_timeout=42,
        ip_families=("IPv4",),
        internal_traffic_policy="Cluster",
        traffic_distribution="PreferClose",
    )
    assert service_export.encode(export).decode() == (
        '{"cluster":"west","name":"cart","namespace":"shop","annotations":{"a":"b"},"Annotations":{"a":"b"},'
        '"labels":{"tier":"x"},"Labels":{"tier":"x"},"exportCreationTimestamp":"2026-01-01T00:00:00Z",'
        '"ports":[{"name":"http","protocol":"TCP","port":80},{"protocol":"UDP","appProtocol":"dns","port":53}],'
        '"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":42}},'
        '"ipFamilies":["IPv4"],"internalTrafficPolicy":"Cluster","trafficDistribution":"PreferClose"}'
    )


def test_smallest_export_names_its_affinity() -> None:
    assert service_export.encode(EXPORT).decode() == (
        '{"cluster":"west","name":"cart","namespace":"shop","exportCreationTimestamp":"2026-01-01T00:00:00Z",'
        '"ports":[],"type":"ClusterSetIP","sessionAffinity":"None"}'
    )


def test_identity_labels_are_sorted_by_key_alone_and_all_closed() -> None:
    labels = (
        Label(source="k8s", key="b", value="2"),
        Label(source="any", key="c"),
        Label(source="zz", key="a", value="1"),
    )
    assert identity.encode(Identity(id=1, labels=labels)) == b"zz:a=1;k8s:b=2;any:c=;"


@given(maps)
def test_maps_are_sorted_by_the_bytes_of_their_keys(labels: dict[str, str]) -> None:
    written = json.loads(service.encode(replace(CART, labels=labels)))["labels"]
    assert list(written) == sorted(labels, key=lambda key: key.encode())


@given(texts)
def test_no_text_leaves_an_html_mark_or_line_separator_bare(text: str) -> None:
    written = service.encode(replace(CART, labels={text: text})).decode()
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written)["labels"] == {text: text}


@given(services)
def test_order_in_the_model_does_not_show(value: Service) -> None:
    turned = replace(
        value, backends=dict(reversed(value.backends.items())), labels=dict(reversed(value.labels.items()))
    )
    assert service.encode(turned) == service.encode(value)


REFUSED = [
    (service.encode, replace(CART, name="")),
    (service.encode, replace(CART, cluster="")),
    (service.encode, replace(CART, namespace="a/b")),
    (service.encode, replace(CART, cluster_id=0)),
    (service.encode, replace(CART, cluster_id=512)),
    (service.encode, replace(CART, backends={parse("10.0.0.1"): {"http": Port(protocol=LOWER, port=80)}})),
    (service.encode, replace(CART, backends={parse("10.0.0.1"): {"http": Port(protocol=Protocol.TCP, port=65536)}})),
    (service.encode, replace(CART, labels={"a": "\ud800"})),
    (node.encode, replace(W1, name="")),
    (node.encode, replace(W1, cluster_id=0)),
    (node.encode, replace(W1, addresses=(NodeAddress(type="internalip", ip=parse("10.0.0.1")),))),
    (node.encode, replace(W1, pod_cidrs=(Prefix(parse("10.1.0.7"), 96 + 24),))),
    (node.encode, replace(W1, health_ips=(parse("10.1.0.7"), parse("10.1.0.8")))),
    (node.encode, replace(W1, ingress_ips=(parse("fd00::1"), parse("fd00::2")))),
    (node.encode, replace(W1, encryption_key=256)),
    (node.encode, replace(W1, wireguard_public_key="AAAA")),
    (endpoint.encode, replace(POD, prefix_length=129)),
    (endpoint.encode, replace(POD, prefix_length=96 + 24)),
    (endpoint.encode, replace(POD, identity=1 << 32)),
    (endpoint.encode, replace(POD, key=256)),
    (identity.encode, Identity(id=1, labels=())),
    (identity.encode, Identity(id=1, labels=(Label(source="k8s", key="a"), Label(source="any", key="a")))),
    (identity.encode, Identity(id=1, labels=(Label(source="k8s", key="a", value="b;k8s:c=d"),))),
    (identity.encode, Identity(id=1, labels=(Label(source="k8s", key="a=b"),))),
    (identity.encode, Identity(id=1, labels=(Label(source="k:s", key="a"),))),
    (identity.encode, Identity(id=1, labels=(Label(source="", key="a"),))),
    (identity.encode, Identity(id=1, labels=(Label(source="k8s", key="a", value="\ud800"),))),
    (cluster_config.encode, ClusterConfig(id=0)),
    (cluster_config.encode, ClusterConfig(id=256, max_connected_clusters=255)),
    (cluster_config.encode, ClusterConfig(id=1, max_connected_clusters=256)),
    (service_export.encode, replace(EXPORT, session_affinity="")),
    (service_export.encode, replace(EXPORT, type="ExternalName")),
    (service_export.encode, replace(EXPORT, created=-62135596800)),
    (service_export.encode, replace(EXPORT, created=1 << 40)),
    (service_export.encode, replace(EXPORT, ports=(ExportPort(port=80, protocol=LOWER),))),
    (endpoint_slice.encode, replace(SLICE, address_type="FQDN")),
    (endpoint_slice.encode, replace(SLICE, cluster_id=-1)),
    (endpoint_slice.encode, replace(SLICE, name="")),
    (endpoint_slice.encode, replace(SLICE, labels={"a": "\ud800"})),
    (endpoint_slice.encode, replace(SLICE, endpoints=(SliceEndpoint(addresses=(parse("fd00::1"),)),))),
    (endpoint_slice.encode, replace(SLICE, ports=(SlicePort(port=1 << 40),))),
    (local.encode_agent, AgentRecord(node="", wireguard_public_key="A" * 43 + "=")),
    (local.encode_agent, AgentRecord(node="n1", wireguard_public_key="")),
    (lambda at: local.encode_stamps({("shop", "cart"): at}, 0), -1),
    (format_time, 1 << 60),
]


@pytest.mark.parametrize(("encode", "value"), REFUSED)
def test_what_a_reader_would_refuse_is_invalid(encode: Any, value: Any) -> None:
    with pytest.raises(Invalid) as raised:
        encode(value)
    assert not isinstance(raised.value, DecodeError)


def test_every_codec_is_held_to_the_same_rules() -> None:
    """A new noun gets its generator, and with it the round trip and the fuzzing."""
    assert set(CODECS) >= {"cluster_config", "service", "node", "endpoint", "service_export", "endpoint_slice"}
