"""Where a cluster is reached, as its Service and Nodes say."""

from __future__ import annotations

import msgspec
import pytest

from clustermesh.errors import Refused
from clustermesh.joining.member import Version
from clustermesh.joining.reading import (
    Deployment,
    EndpointSlice,
    Node,
    Service,
    choose_inviting,
    find_entrance,
    find_version,
)


def node(address: str, *, ready: bool = True, cordoned: bool = False) -> Node:
    document = {
        "metadata": {"name": f"node-{address}"},
        "spec": {"unschedulable": cordoned},
        "status": {
            "addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": address}],
            "conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": f"{ready}"}],
        },
    }
    return msgspec.convert(document, Node)


def service(policy: str = "Cluster", kind: str = "NodePort", number: int = 32443) -> Service:
    ports = [{"port": 9443, "nodePort": number}]
    spec = {"type": kind, "ports": ports, "externalTrafficPolicy": policy, "clusterIPs": ["10.96.0.9"]}
    balancer = {"ingress": [{"ip": "198.51.100.1"}]} if kind == "LoadBalancer" else None
    return msgspec.convert({"spec": spec, "status": {"loadBalancer": balancer or {}}}, Service)


def pods(*at: tuple[str, bool | None]) -> list[EndpointSlice]:
    endpoints = [{"nodeName": f"node-{address}", "conditions": {"ready": ready}} for address, ready in at]
    return msgspec.convert([{"endpoints": endpoints}, {"endpoints": None}, {}], list[EndpointSlice])


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ([node("10.0.0.10"), node("10.0.0.2")], "10.0.0.2"),
        ([node("10.0.0.2", ready=False), node("10.0.0.10")], "10.0.0.10"),
        ([node("10.0.0.2", cordoned=True), node("10.0.0.10")], "10.0.0.10"),
        ([node("10.0.0.2", ready=False), node("10.0.0.10", cordoned=True)], "10.0.0.10"),
        ([node("10.0.0.10", ready=False), node("10.0.0.9", ready=False)], "10.0.0.9"),
        ([node("fd00::2"), node("10.0.0.10")], "10.0.0.10"),
        ([Node(), node("fd00::10"), node("fd00::2")], "fd00::2"),
        ([node("nonsense"), node("10.0.0.10")], "10.0.0.10"),
    ],
)
def test_a_token_leads_to_a_node_that_is_ready_and_stays(nodes: list[Node], first: str) -> None:
    assert choose_inviting(service(), nodes, ()) == (first, 32443)


@pytest.mark.parametrize(
    ("at", "first"),
    [
        ([("10.0.0.3", True)], "10.0.0.3"),
        ([("10.0.0.2", False), ("10.0.0.3", None)], "10.0.0.3"),
        ([("10.0.0.2", False)], ""),
        ([("10.0.0.99", True)], ""),
        ([], ""),
    ],
)
def test_a_token_leads_to_the_node_of_the_pod_where_no_other_leads_there(
    at: list[tuple[str, bool | None]], first: str
) -> None:
    nodes = [node("10.0.0.2"), node("10.0.0.3"), node("10.0.0.4")]
    if first:
        assert choose_inviting(service("Local"), nodes, pods(*at)) == (first, 32443)
    else:
        with pytest.raises(Refused, match="no pod of the Deployment clustermesh-invitations is ready"):
            choose_inviting(service("Local"), nodes, pods(*at))


def test_other_kinds_of_services_have_addresses_of_their_own() -> None:
    assert choose_inviting(service("Local", "LoadBalancer"), [], ()) == ("198.51.100.1", 9443)
    assert choose_inviting(service(kind="ClusterIP"), [node("10.0.0.2")], ()) == ("10.96.0.9", 9443)
    for without in (service(number=0), service()):
        with pytest.raises(Refused, match="has no address yet"):
            choose_inviting(
                without, [node("10.0.0.2")] if without.spec.ports == service(number=0).spec.ports else [], ()
            )


def test_others_reach_an_api_server_at_eight_nodes_that_are_ready_in_the_order_of_numbers() -> None:
    nodes = [node(f"10.0.0.{number}", ready=number != 3, cordoned=number == 4) for number in range(12, 0, -1)]
    for few, numbers in (nodes[6:], (1, 2, 3, 4, 5, 6)), (nodes, (1, 2, 5, 6, 7, 8, 9, 10)):
        found, _ = find_entrance(service(), few, "")
        assert found is not None
        assert found.hosts == tuple(f"10.0.0.{number}" for number in numbers)


@pytest.mark.parametrize(
    ("labels", "image", "found"),
    [
        ({"part-of": "cilium"}, "quay.io/cilium/clustermesh-apiserver:v1.18.4@sha256:ab", ("cilium", "v1.18.4")),
        ({"part-of": "cilium"}, "quay.io/cilium/operator-generic:v1.18.4", ("cilium", "v1.18.4")),
        ({"part-of": "cilium"}, "registry.example:5000/clustermesh/clustermesh:0.1.0", ("cilium", "")),
        ({}, "clustermesh-apiserver", ("cilium", "")),
        ({"part-of": "clustermesh"}, "registry.example/any:v0.1.0", ("clustermesh", "v0.1.0")),
        ({"part-of": "clustermesh", "version": "0.1.0"}, "any:7", ("clustermesh", "0.1.0")),
    ],
)
def test_the_tag_of_an_image_that_is_not_ciliums_is_no_version_of_cilium(
    labels: dict[str, str], image: str, found: tuple[str, str]
) -> None:
    labels = {f"app.kubernetes.io/{key}": value for key, value in labels.items()}
    pod = {"spec": {"containers": [{"name": "apiserver", "image": image}]}}
    deployment = msgspec.convert({"metadata": {"name": "x", "labels": labels}, "spec": {"template": pod}}, Deployment)
    assert find_version(deployment) == Version(*found)
