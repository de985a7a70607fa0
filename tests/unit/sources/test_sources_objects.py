"""Objects are strict in the fields a mesh uses and lenient in all others; a fault names field, value and rule."""

from __future__ import annotations

from typing import Any

import kube
import msgspec
import pytest

from clustermesh.errors import DecodeError, Invalid
from clustermesh.sources.decoding import decode_json, decode_objects, ref_of
from clustermesh.sources.objects import KINDS, Ref


def faults(document: object) -> list[str]:
    return [str(found) for found in decode_objects(document) if isinstance(found, Invalid)]


def test_unknown_fields_kinds_and_groups_pass() -> None:
    service = kube.service("cart", sessionAffinity="None", internalTrafficPolicy="Cluster")
    service["status"] = {"loadBalancer": {}}
    service["metadata"]["creationTimestamp"] = None
    assert [ref for ref, _ in decode_objects(service)] == [Ref("Service", "shop", "cart")]  # type: ignore[misc]
    assert list(decode_objects({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}})) == []
    assert list(decode_objects({"apiVersion": "serving.knative.dev/v1", "kind": "Service"})) == []


def test_nulls_are_absent_and_in_labels_empty() -> None:
    service = kube.service("cart", ports=None, selector={"app": None}, clusterIPs=None)
    service["metadata"]["labels"] = {"flag": None}
    found = kube.decode(service)[Ref("Service", "shop", "cart")]
    assert (found.metadata.labels, found.spec.selector, found.spec.ports) == ({"flag": ""}, {"app": ""}, [])  # type: ignore[union-attr]


def test_namespaces_default_and_cluster_scoped_objects_have_none() -> None:
    bare = kube.service("cart")
    del bare["metadata"]["namespace"]
    refs = kube.decode(bare, kube.node("n1", "192.0.2.1"), kube.namespace("shop"))
    assert sorted(refs) == [Ref("Namespace", "", "shop"), Ref("Node", "", "n1"), Ref("Service", "default", "cart")]


def test_lists_are_taken_apart_and_a_bad_item_costs_only_itself() -> None:
    item = kube.service("b")
    del item["kind"], item["apiVersion"]
    document = {"apiVersion": "v1", "kind": "ServiceList", "items": [kube.service("A"), item, 5]}
    found = list(decode_objects(document))
    assert [each[0].name for each in found if not isinstance(each, Invalid)] == ["b"]
    assert [str(each).split(": ")[0] for each in found if isinstance(each, Invalid)] == [
        "items[0].metadata.name",
        "items[2].kind",
    ]


def _with_metadata(**metadata: Any) -> dict[str, Any]:
    service = kube.service("cart")
    return {**service, "metadata": {**service["metadata"], **metadata}}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (kube.service("cart", ports=[{"port": "80"}]), "spec.ports[0].port: '80': expected int, got str"),
        (_with_metadata(labels={"a": "b", "v": 1.5}), "metadata.labels[v]: 1.5: expected str, got float (write it in"),
        (_with_metadata(annotations={"service.cilium.io/global": True}), "annotations[service.cilium.io/global]: True"),
        (_with_metadata(labels={"a;b": "c"}), "metadata.labels key: 'a;b': must be at most 63"),
        (_with_metadata(labels={"a": "x" * 64}), "metadata.labels[a]: 'xxx"),
        (_with_metadata(labels={"Ex/a": "b"}), "metadata.labels[Ex/a] prefix: 'Ex'"),
        (_with_metadata(labels=["a"]), "metadata.labels: ['a']: expected object, got array"),
        (_with_metadata(name="x" * 64), "metadata.name: 'xxx"),
        (_with_metadata(name="cart\n"), "metadata.name: 'cart\\n'"),
        (_with_metadata(namespace="a/b"), "metadata.namespace: 'a/b'"),
        (kube.service("cart", selector={"app": "a b"}), "spec.selector[app]: 'a b'"),
        (kube.node("n" * 254, "192.0.2.1"), "metadata.name: 'nnn"),
        ({"apiVersion": "v1", "kind": "Service"}, "document: {'apiVersion': 'v1', 'kind': 'Service'}: object missing"),
        ({"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice"}, "must be discovery.k8s.io/v1 for a"),
        ({"metadata": {"name": "x"}}, "kind: {'metadata': {'name': 'x'}}: must be there"),
        ({"apiVersion": "v1", "kind": 5}, "kind: "),
        ("text", "document: 'text': must be a mapping"),
        ([1], "document: [1]: must be a mapping"),
    ],
)
def test_a_fault_names_field_value_and_rule(document: object, sentence: str) -> None:
    (fault,) = faults(document)
    assert sentence in fault


@pytest.mark.parametrize("empty", ["null", "[]"])
def test_the_api_and_a_manifest_make_one_object(empty: str) -> None:
    manifest = kube.endpoint_slice("cart-1", "cart", [])
    ((ref, value),) = kube.decode(manifest).items()
    data = msgspec.json.encode(manifest).replace(b'"endpoints":[]', b'"endpoints":' + empty.encode())
    found = decode_json(KINDS["EndpointSlice"], data)
    assert (ref_of(KINDS["EndpointSlice"], found), found) == (ref, value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"metadata":{"name":7}}', b"\xff", b"[" * 100_000])
def test_garbage_from_the_api_raises_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_json(KINDS["Service"], data)
