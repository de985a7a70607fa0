"""What there is to say of single backends: states, weights, nodes, hints; from slices, from pods, by annotations."""

from __future__ import annotations

from typing import Any

import kube
import pytest

from clustermesh.address import parse
from clustermesh.model import BackendDetail, BackendState, LocalService, Port, Protocol
from clustermesh.sources.objects import Ref
from clustermesh.sources.translate import Translator, translate
from clustermesh.wire import local

IP, OTHER = parse("10.1.0.5"), parse("10.1.0.6")
STATE, WEIGHT = "clustermesh.io/backend-state", "clustermesh.io/backend-weight"
HTTP = {"http": Port(protocol=Protocol.TCP, port=8080)}


def one(*manifests: dict[str, Any]) -> LocalService:
    snapshot, faults = translate(kube.ALPHA, kube.decode(*manifests))
    assert faults == []
    return snapshot.services["shop", "cart"]


def endpoint(**more: Any) -> dict[str, Any]:
    """A slice of one, on a node, in a zone."""
    each = {"addresses": ["10.1.0.5"], "nodeName": "n1", "zone": "z1", **more}
    return kube.endpoint_slice("cart-1", "cart", [], endpoints=[each])


def marked(manifest: dict[str, Any], **marks: str) -> dict[str, Any]:
    annotations = {f"clustermesh.io/backend-{name}": text for name, text in marks.items()}
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **annotations}}}


@pytest.mark.parametrize(
    ("conditions", "state", "drains"),
    [
        ({"ready": True}, BackendState.ACTIVE, False),
        ({"ready": True, "serving": True, "terminating": True}, BackendState.ACTIVE, False),  # publishNotReadyAddresses
        ({"ready": False, "serving": True, "terminating": True}, BackendState.TERMINATING, False),
        ({"ready": False, "serving": False, "terminating": True}, None, True),
        ({"ready": False, "terminating": True}, None, True),
        ({"ready": False, "serving": False, "terminating": False}, None, True),
        ({"ready": False}, None, True),
    ],
)
def test_what_gets_nothing_new_finishes_what_it_has(
    conditions: dict[str, Any], state: BackendState | None, drains: bool
) -> None:
    found = one(kube.service("cart"), endpoint(conditions=conditions))
    details = {} if not state else {IP: BackendDetail(state=state)}
    assert (found.details, found.draining) == (details, {IP: HTTP} if drains else {})
    assert (IP in found.service.backends) == (state is not None)
    assert local.is_told(found) == (not state and not drains), "what peers are told does not say all of it"


def test_a_backend_of_one_slice_drains_by_no_other() -> None:
    going = endpoint(conditions={"ready": False, "serving": False, "terminating": True})
    found = one(kube.service("cart"), going, kube.endpoint_slice("cart-2", "cart", ["10.1.0.5"]))
    assert (found.details, found.draining, found.service.backends) == ({}, {}, {IP: HTTP})


@pytest.mark.parametrize(
    ("ready", "going", "state", "drains"),
    [(True, True, BackendState.TERMINATING, False), (False, True, None, True), (False, False, None, True)],
)
def test_a_pod_that_is_being_deleted_or_is_not_ready_gets_nothing_new(
    ready: bool, going: bool, state: BackendState | None, drains: bool
) -> None:
    pod = kube.aged(
        kube.pod("a", "10.1.0.5", {"app": "cart"}, ready=ready), "", "2026-01-01T00:00:00Z" if going else ""
    )
    found = one(kube.service("cart", selector={"app": "cart"}), kube.node("n1", "192.0.2.1"), pod)
    assert found.details == ({} if state is None else {IP: BackendDetail(state=state)})
    assert set(found.draining) == ({IP} if drains else set())


@pytest.mark.parametrize(
    ("spec", "node"),
    [
        ({}, ""),
        ({"internalTrafficPolicy": "Local"}, "n1"),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, "n1"),
        ({"externalTrafficPolicy": "Local"}, ""),  # nobody calls it from outside
    ],
)
def test_where_a_backend_is_counts_where_a_policy_asks(spec: dict[str, Any], node: str) -> None:
    details = {IP: BackendDetail(node=node)} if node else {}
    assert one(kube.service("cart", **spec), endpoint()).details == details
    pod = kube.pod("a", "10.1.0.5", {"app": "cart"})
    selected = kube.service("cart", selector={"app": "cart"}, **spec)
    assert one(selected, kube.node("n1", "192.0.2.1"), pod).details == details


@pytest.mark.parametrize(
    ("distribution", "hints", "expected"),
    [
        ("", {}, None),
        ("", {"forZones": [{"name": "z2"}, {"name": "z3"}]}, BackendDetail(for_zones=("z2", "z3"))),
        ("", {"forNodes": [{"name": "n7"}]}, BackendDetail(for_nodes=("n7",))),
        ("PreferClose", {}, BackendDetail(for_zones=("z1",))),
        ("PreferSameZone", {}, BackendDetail(for_zones=("z1",))),
        ("PreferClose", {"forZones": [{"name": "z2"}]}, BackendDetail(for_zones=("z2",))),
        ("PreferSameNode", {}, BackendDetail(node="n1", for_zones=("z1",), for_nodes=("n1",))),
        (
            "PreferSameNode",
            {"forZones": [{"name": "z2"}], "forNodes": [{"name": "n2"}]},
            BackendDetail(node="n1", for_zones=("z2",), for_nodes=("n2",)),
        ),
    ],
)
def test_hints_are_those_given_else_what_the_distribution_means(
    distribution: str, hints: dict[str, Any], expected: BackendDetail | None
) -> None:
    service = kube.service("cart", trafficDistribution=distribution)
    assert one(service, endpoint(hints=hints)).details == ({IP: expected} if expected else {})


def test_a_pods_zone_is_its_nodes_and_follows_it() -> None:
    service = kube.service("cart", selector={"app": "cart"}, trafficDistribution="PreferClose")
    node = kube.node("n1", "192.0.2.1")
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "z1"}
    objects = kube.decode(service, node, kube.pod("a", "10.1.0.5", {"app": "cart"}))
    translator = Translator(kube.ALPHA, objects)
    translator.apply(dict.fromkeys(objects, 1))
    assert translator.snapshot.services["shop", "cart"].details == {IP: BackendDetail(for_zones=("z1",))}
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": "z2"}
    objects |= kube.decode(node)
    assert translator.apply({Ref("Node", "", "n1"): 7}).services == {("shop", "cart"): 7}
    assert translator.snapshot.services["shop", "cart"].details == {IP: BackendDetail(for_zones=("z2",))}


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"weight": "7"}, BackendDetail(weight=7)),
        ({"weight": "100"}, None),
        ({"weight": "65535"}, BackendDetail(weight=65535)),
        ({"weight": "0"}, BackendDetail(state=BackendState.MAINTENANCE)),
        ({"state": "active"}, None),
        ({"state": "quarantined"}, BackendDetail(state=BackendState.QUARANTINED)),
        ({"state": "maintenance", "weight": "3"}, BackendDetail(state=BackendState.MAINTENANCE, weight=3)),
    ],
)
def test_marks_of_a_pod_or_of_a_service_say_the_same(marks: dict[str, str], expected: BackendDetail | None) -> None:
    details, node = {IP: expected} if expected else {}, kube.node("n1", "192.0.2.1")
    pod = kube.pod("a", "10.1.0.5", {"app": "cart"})
    selects, service = kube.service("cart", selector={"app": "cart"}), kube.service("cart")
    of_service = {name: f"10.1.0.5={text}" for name, text in marks.items()}
    assert one(selects, node, marked(pod, **marks)).details == details
    assert one(service, endpoint(), node, marked(pod, **marks)).details == details
    assert one(marked(service, **of_service), endpoint(), node, pod).details == details


def test_a_service_says_it_of_several_and_knows_better_than_a_pod() -> None:
    service = marked(kube.service("cart"), weight=" 10.1.0.5=0, 10.1.0.6=9,", state="10.1.0.6=quarantined")
    found = one(
        service,
        kube.endpoint_slice("cart-1", "cart", ["10.1.0.5", "10.1.0.6"]),
        kube.node("n1", "192.0.2.1"),
        marked(kube.pod("a", "10.1.0.5", {}), state="quarantined", weight="5"),
    )
    assert found.details == {
        IP: BackendDetail(state=BackendState.MAINTENANCE),
        OTHER: BackendDetail(state=BackendState.QUARANTINED, weight=9),
    }


def test_an_address_that_is_another_pods_by_now_has_no_mark_of_the_one_that_ended() -> None:
    ended = marked(kube.pod("a", "10.1.0.5", {}), weight="3")
    ended["status"]["phase"] = "Succeeded"
    objects = [kube.service("cart"), endpoint(), kube.node("n1", "192.0.2.1"), ended]
    assert one(*objects).details == {}
    assert one(*objects, marked(kube.pod("b", "10.1.0.5", {}), weight="4")).details == {IP: BackendDetail(weight=4)}


def test_what_two_slices_say_of_one_address_is_what_the_first_says() -> None:
    going = [{"addresses": ["10.1.0.5"], "conditions": {"ready": False, "serving": True}}]
    second = kube.endpoint_slice("cart-2", "cart", [], endpoints=going, ports=[{"name": "admin", "port": 9000}])
    found = one(kube.service("cart"), endpoint(), second)
    assert (set(found.service.backends[IP]), found.details) == ({"http", "admin"}, {})


@pytest.mark.parametrize("state", ["quarantined", "maintenance", "active"])
def test_who_is_not_to_be_used_is_told_to_own_nodes_alone(state: str) -> None:
    service = marked(kube.service("cart"), state=f"10.1.0.6={state}", weight="10.1.0.5=3")
    found = one(service, kube.endpoint_slice("cart-1", "cart", ["10.1.0.5", "10.1.0.6"]))
    told = local.shared(found)
    assert told is not None
    assert set(told.backends) == ({IP, OTHER} if state == "active" else {IP})
    assert (set(found.service.backends), local.is_told(found)) == ({IP, OTHER}, False)


GOING, GONE = {"ready": False, "serving": True, "terminating": True}, {"ready": False, "terminating": True}


@pytest.mark.parametrize(
    ("first", "second", "state", "told", "terminating"),
    [
        ({"ready": True}, {"ready": True}, "active", {IP, OTHER}, set()),
        ({"ready": True}, GOING, "active", {IP, OTHER}, {OTHER}),
        (GOING, GOING, "active", {IP, OTHER}, {IP, OTHER}),
        (GOING, GONE, "active", {IP}, {IP}),
        (GOING, {"ready": True}, "maintenance", {IP}, {IP}),
        ({"ready": True}, GOING, "maintenance", {IP}, set()),
    ],
)
def test_other_clusters_are_told_who_terminates(
    first: dict[str, Any], second: dict[str, Any], state: str, told: set[bytes], terminating: set[bytes]
) -> None:
    each = [{"addresses": [f"10.1.0.{n}"], "conditions": said} for n, said in ((5, first), (6, second))]
    service = marked(kube.service("cart"), state=f"10.1.0.6={state}")
    found = local.shared(one(service, kube.endpoint_slice("cart-1", "cart", [], endpoints=each)))
    assert found is not None
    assert (set(found.backends), found.terminating) == (told, terminating)


@pytest.mark.parametrize("going", [True, False])
def test_what_terminates_is_taken_out_by_a_mark_too(going: bool) -> None:
    conditions = {"ready": not going, "serving": True, "terminating": going}
    service = marked(kube.service("cart"), state="10.1.0.5=maintenance")
    found = one(service, endpoint(conditions=conditions))
    assert found.details == {IP: BackendDetail(state=BackendState.MAINTENANCE)}


@pytest.mark.parametrize("name", ["weight", "state"])
@pytest.mark.parametrize("text", ["65536", "-1", "1.5", "٣", "", "on", "Active"])
def test_a_bad_mark_is_one_fault_and_no_mark(name: str, text: str) -> None:
    node, found = kube.node("n1", "192.0.2.1"), kube.pod("a", "10.1.0.5", {"app": "cart"})
    of_pod = [kube.service("cart", selector={"app": "cart"}), node, marked(found, **{name: text})]
    of_service = [marked(kube.service("cart"), **{name: f"10.1.0.5={text}"}), endpoint()]
    for manifests in (of_pod, of_service):
        snapshot, faults = translate(kube.ALPHA, kube.decode(*manifests))
        assert snapshot.services["shop", "cart"].details == {}
        (fault,) = faults
        assert fault.sentence.startswith(f"metadata.annotations[clustermesh.io/backend-{name}]: {text!r}: must be ")


@pytest.mark.parametrize("text", ["10.1.0.5", "web=3", "10.1.0.300=3", "=3"])
def test_a_mark_of_nobody_is_a_fault(text: str) -> None:
    service = marked(kube.service("cart"), weight=f"{text},10.1.0.5=3")
    snapshot, faults = translate(kube.ALPHA, kube.decode(service, endpoint()))
    assert snapshot.services["shop", "cart"].details == {IP: BackendDetail(weight=3)}
    assert len(faults) == 1


@pytest.mark.parametrize("selects", [True, False])
def test_a_mark_that_comes_and_goes_reaches_the_services_of_its_pod(selects: bool) -> None:
    pod = kube.pod("a", "10.1.0.5", {})
    other = kube.service("other", clusterIP="10.96.0.11")
    objects = kube.decode(kube.service("cart"), other, endpoint(), kube.node("n1", "192.0.2.1"), pod)
    translator = Translator(kube.ALPHA, objects, selects=selects)
    translator.apply(dict.fromkeys(objects, 1))
    for number, (manifest, expected) in enumerate(
        [(marked(pod, weight="3"), {IP: BackendDetail(weight=3)}), (marked(pod, weight="x"), {}), (pod, {})]
    ):
        objects |= kube.decode(manifest)
        changed = translator.apply({Ref("Pod", "shop", "a"): number}).services
        assert translator.snapshot.services["shop", "cart"].details == expected
        assert changed == ({("shop", "cart"): number} if number < 2 else {})
