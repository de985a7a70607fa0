"""ServiceExport and its Service, as other clusters are told of them by the MCS API."""

from __future__ import annotations

from typing import Any

import kube
import pytest

from clustermesh.model import ExportPort, Protocol, ServiceExport
from clustermesh.sources.exports import usable
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Ref
from clustermesh.sources.translate import translate
from clustermesh.wire import service_export

CREATED = "2026-01-01T00:00:00Z"
CART = ("shop", "cart")


def export(name: str = "cart", **spec: Any) -> dict[str, Any]:
    return kube.aged(kube.service_export(name, **spec), CREATED)


def exported(*manifests: dict[str, Any], in_mesh: bool = True) -> ServiceExport | None:
    snapshot, faults = translate(kube.ALPHA, kube.decode(*manifests), in_mesh=in_mesh)
    assert faults == []
    return snapshot.exports.get(CART)


def test_an_export_says_what_its_service_is_and_what_it_says_itself() -> None:
    service = kube.service(
        "cart",
        global_=False,
        ports=[{"name": "http", "port": 80, "appProtocol": "h2c"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 42}},
        ipFamilies=["IPv4", "IPv6"],
        internalTrafficPolicy="Local",
        trafficDistribution="PreferClose",
    )
    assert exported(service, export(exportedLabels={"tier": "x"}, exportedAnnotations={"a": "b"})) == ServiceExport(
        cluster="alpha",
        namespace="shop",
        name="cart",
        created=1767225600,
        ports=(
            ExportPort(port=80, name="http", app_protocol="h2c"),
            ExportPort(port=53, name="dns", protocol=Protocol.UDP),
        ),
        session_affinity="ClientIP",
        session_affinity_timeout=42,
        ip_families=("IPv4", "IPv6"),
        internal_traffic_policy="Local",
        traffic_distribution="PreferClose",
        annotations={"a": "b"},
        labels={"tier": "x"},
    )


def test_a_service_without_an_address_is_exported_as_headless() -> None:
    found = exported(kube.service("cart", clusterIP="None"), export())
    assert found is not None
    assert found.type == "Headless"
    assert b'"sessionAffinity":"None"' in service_export.encode(found), "readers refuse an empty one"


@pytest.mark.parametrize(
    "others",
    [
        [],
        [kube.service("db")],
        [kube.service("cart", type="ExternalName", clusterIP="", ports=[])],
        [kube.service("cart"), kube.namespace("shop", global_="false")],
    ],
    ids=["no service", "another service", "an alias", "a namespace that stays at home"],
)
def test_nothing_is_exported_without_a_service_that_may_be(others: list[dict[str, Any]]) -> None:
    assert exported(export(), *others) is None


def test_where_namespaces_stay_at_home_one_that_says_so_exports() -> None:
    assert exported(kube.service("cart"), export(), in_mesh=False) is None
    assert exported(kube.service("cart"), export(), kube.namespace("shop", global_="true"), in_mesh=False) is not None


def test_without_the_time_of_its_creation_nobody_can_tell_the_oldest() -> None:
    snapshot, faults = translate(kube.ALPHA, kube.decode(kube.service("cart"), kube.service_export("cart")))
    assert snapshot.exports == {}
    assert [str(fault.ref) for fault in faults] == ["ServiceExport shop/cart"]
    assert faults[0].sentence.startswith("metadata.creationTimestamp: ''")


def test_a_port_that_is_none_is_left_out_as_from_the_service() -> None:
    service = kube.service("cart", ports=[{"name": "http", "port": 80}, {"name": "bad", "port": 99999}])
    snapshot, faults = translate(kube.ALPHA, kube.decode(service, export()))
    assert [port.name for port in snapshot.exports[CART].ports] == ["http"]
    assert len(faults) == 1


def test_what_the_api_would_not_take_is_left_out_and_told_and_the_rest_goes_on() -> None:
    service = kube.service("cart", ports=[{"name": "http", "port": 80}])
    odd = export(exportedLabels={"team": "a b", "tier": "x"}, exportedAnnotations={"a b": "x", "Example.com/A": "b"})
    snapshot, faults = translate(kube.ALPHA, kube.decode(service, odd))
    found = snapshot.exports[CART]
    assert (found.labels, found.annotations) == ({"tier": "x"}, {"Example.com/A": "b"})
    assert [fault.sentence.split(": must")[0] for fault in faults] == [
        "exportedAnnotations key: 'a b'",
        "exportedLabels[team]: 'a b'",
    ]


WEB = ExportPort(port=80, name="http")
ODD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"ports": (WEB, ExportPort(port=0, name="a"))}, {"ports": (WEB,)}, "ports.port: 0"),
    (
        {"ports": (WEB, ExportPort(port=81, name="a", protocol=Protocol.ANY))},
        {"ports": (WEB,)},
        "ports.protocol: 'ANY'",
    ),
    ({"ports": (WEB, ExportPort(port=81, name="Bad Name!"))}, {"ports": (WEB,)}, "ports.name: 'Bad Name!'"),
    (
        {"ports": (WEB, ExportPort(port=81, name="a", app_protocol="x y"))},
        {"ports": (WEB,)},
        "ports.appProtocol key: 'x y'",
    ),
    (
        {"ports": tuple(ExportPort(port=n, name=f"p{n}") for n in range(1, 1002))},
        {"ports": tuple(ExportPort(port=n, name=f"p{n}") for n in range(1, 1001))},
        "ports: '1001 of them'",
    ),
    (
        {"session_affinity_timeout": 0},
        {"session_affinity_timeout": None},
        "sessionAffinityConfig.clientIP.timeoutSeconds: 0",
    ),
    ({"session_affinity_timeout": 86400}, {"session_affinity_timeout": 86400}, ""),
    ({"ip_families": ("IPv9", "IPv6")}, {"ip_families": ("IPv6",)}, "ipFamilies: 'IPv9'"),
    ({"ip_families": ("IPv4", "IPv6", "IPv4")}, {}, "ipFamilies: '3 of them'"),
    ({"labels": {"x/y/z": ""}}, {}, "exportedLabels[x/y/z] prefix: 'x/y'"),
    ({"labels": {"a": "é"}}, {}, "exportedLabels[a]: 'é'"),
    ({"annotations": {"a": "b" * 70_000}}, {}, "exportedAnnotations: '70001 bytes'"),
    ({"labels": {f"a{n}": "b" for n in range(257)}}, {}, "exportedLabels: '257 of them'"),
    ({"labels": {f"a/{'b' * 99}{n}": "" for n in range(257)}}, {}, "exportedLabels: '257 of them'"),
    ({"labels": {"A" * 500 + "/b": ""}}, {}, f"exportedLabels[{'A' * 100}] prefix: '{'A' * 116}..."),
    ({"type": "Headless", "ports": ()}, {"type": "Headless", "ports": ()}, ""),
]


@pytest.mark.parametrize(("said", "expected", "told"), ODD)
def test_of_what_another_cluster_exports_the_rest_holds(
    said: dict[str, Any], expected: dict[str, Any], told: str
) -> None:
    usual: dict[str, Any] = {"cluster": "beta", "namespace": "shop", "name": "cart", "created": 1, "ports": (WEB,)}
    faults, ref = Faults(), Ref("ServiceExport", "shop", "cart")
    assert usable(ref, ServiceExport(**{**usual, **said}), faults) == ServiceExport(**{**usual, **expected})
    assert [fault.sentence.split(": must")[0] for fault in faults] == ([told] if told else [])
    assert all(len(fault.sentence) < 500 and fault.ref == ref for fault in faults)


def test_of_what_another_cluster_exports_without_a_port_nothing_holds() -> None:
    faults = Faults()
    found = ServiceExport(cluster="beta", namespace="shop", name="cart", created=1, ports=(ExportPort(port=0),))
    assert usable(Ref("ServiceExport", "shop", "cart"), found, faults) is None
    assert [fault.sentence.split(":")[0] for fault in faults] == ["ports.port", "ports"]
