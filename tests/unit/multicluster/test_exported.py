"""EndpointSlices of what is exported without a selector, once more for the Service behind the import."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from test_imports import HTTP, LOCAL, export, facts, own

from clustermesh.model import ExportPort
from clustermesh.multicluster.documents import DERIVED as DERIVED_BY
from clustermesh.multicluster.documents import (
    EXPORTED,
    MANAGED_BY,
    SERVICE_NAME,
    SLICES,
    SOURCE_CLUSTER,
    Document,
    Name,
)
from clustermesh.multicluster.imports import Facts, writes
from clustermesh.sources.index import SERVICE_NAME as OF_SERVICE
from clustermesh.sources.metadata import Metadata
from clustermesh.sources.objects import Conditions, EndpointPort, EndpointSlice, SliceEndpoint

BY_HAND = replace(LOCAL, spec=replace(LOCAL.spec, selector={}))
DERIVED = {
    "metadata": {"name": "derived-bsqa4s8pq5", "namespace": "shop", "uid": "u"},
    "spec": {"clusterIP": "10.96.0.1"},
}
PORTS = [EndpointPort("http", 8080, "TCP"), EndpointPort("more", 90, None)]


def slice_of(*ips: str, ports: list[EndpointPort] = PORTS, kind: str = "IPv4") -> EndpointSlice:
    endpoints = [SliceEndpoint([ip], Conditions(ready=ip != "192.0.2.9"), node_name="n1") for ip in ips]
    return EndpointSlice(Metadata("one", "shop", {OF_SERVICE: "cart"}), kind, endpoints, ports)


def settled(given: Facts) -> dict[Name, Document]:
    """The slices that are there in the end, of which nothing is written any more."""
    made = dict(given.made)
    for write in of_slices(given):
        if write.method == "DELETE":
            del made[write.name]
        else:
            made[write.name] = {**made.get(write.name, {}), **(write.body or {})}
    assert of_slices(replace(given, made=made)) == []
    return made


def of_slices(given: Facts) -> list[Any]:
    return [each for each in writes(given, 0) if each.place == SLICES]


def by_hand(*slices: EndpointSlice, **said: Any) -> Facts:
    ports = (HTTP, ExportPort(port=9, name="more"))
    said = {"derived": DERIVED, "slices": {f"s{n}": each for n, each in enumerate(slices)}, **said}
    return facts(**{**own(ports=ports), "service": BY_HAND, **said})


def test_backends_that_somebody_named_are_those_of_the_service_behind_the_import() -> None:
    found = settled(by_hand(slice_of("192.0.2.7", "192.0.2.9"), slice_of("fd00::7", kind="IPv6")))
    assert [each["addressType"] for each in found.values()] == ["IPv4", "IPv6"]
    first = next(iter(found.values()))
    assert first["metadata"]["labels"] == {
        OF_SERVICE: "derived-bsqa4s8pq5", SERVICE_NAME: "cart", SOURCE_CLUSTER: "alpha", MANAGED_BY: EXPORTED,
    }  # fmt: skip
    assert [(each["addresses"], each["conditions"], each["nodeName"]) for each in first["endpoints"]] == [
        (["192.0.2.7"], {"ready": True}, "n1"),
        (["192.0.2.9"], {"ready": False}, "n1"),
    ]
    assert [(each["name"], each["protocol"], each["port"]) for each in first["ports"]] == [
        ("http", "TCP", 8080),
        ("more", "TCP", 90),
    ]


def test_what_changes_and_what_goes_is_followed() -> None:
    before = settled(by_hand(slice_of("192.0.2.7"), slice_of("192.0.2.8")))
    changed = settled(by_hand(slice_of("192.0.2.6"), made=before))
    assert [each["endpoints"][0]["addresses"] for each in changed.values()] == [["192.0.2.6"]]


@pytest.mark.parametrize(
    "said",
    [
        {"own": None, "service": None},
        {"service": LOCAL},
        {"in_mesh": False},
        {"held": {"metadata": {"annotations": {}}}},
        {"slices": {"s0": slice_of("host.example", kind="FQDN")}},
        {"slices": {"s0": slice_of("192.0.2.7", ports=[EndpointPort("other", 1, "TCP")])}},
    ],
    ids=["not exported", "a selector", "not in the mesh", "another's import", "names", "another port"],
)
def test_nothing_is_left_of_it_where_it_is_not_wanted(said: dict[str, Any]) -> None:
    held = settled(by_hand(slice_of("192.0.2.7")))
    assert held
    assert settled(by_hand(**{"slices": {"s0": slice_of("192.0.2.7")}, **said, "made": held})) == {}


def test_own_backends_are_followed_while_another_cluster_is_not_heard_of() -> None:
    """beta, which the import says exports it too, is dead: what the import says stays, not a backend that is gone."""
    said = {"spec": {"ports": [{"name": "http", "port": 80}, {"name": "more", "protocol": "TCP", "port": 81}]}}
    held = {
        **said,
        "metadata": {"annotations": {DERIVED_BY: "derived-bsqa4s8pq5"}},
        "status": {"clusters": [{"cluster": "alpha"}, {"cluster": "beta"}]},
    }
    before = settled(by_hand(slice_of("192.0.2.7"), slice_of("192.0.2.8")))
    dead = {"held": held, "unheard": frozenset({"beta"}), "made": before}
    (found,) = settled(by_hand(slice_of("192.0.2.6"), **dead)).values()
    assert [each["addresses"] for each in found["endpoints"]] == [["192.0.2.6"]]
    assert [each["name"] for each in found["ports"]] == ["http"]
    assert {each.place.kind for each in writes(by_hand(**dead), 0)} == {"EndpointSlice", "ServiceExport"}
    assert settled(by_hand(**dead)) == {}


def test_a_port_that_means_something_else_in_the_import_has_no_backends_of_here() -> None:
    """beta's export is older, and its port `more` is another one."""
    older = export("beta", 0, ports=(HTTP, ExportPort(port=81, name="more")))
    (found,) = settled(by_hand(slice_of("192.0.2.7"), exports=[older])).values()
    assert [each["name"] for each in found["ports"]] == ["http"]
