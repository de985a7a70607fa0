"""What clusters export under one name is one import: beside a twin that knows the rules and no order of steps."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest

from clustermesh.model import ExportPort, Protocol, ServiceExport
from clustermesh.multicluster.merge import Import, merge

HTTP, MORE = ExportPort(port=80, name="http"), ExportPort(port=81, name="more")


def export(cluster: str, created: int = 1, **said: Any) -> ServiceExport:
    return ServiceExport(cluster=cluster, namespace="shop", name="cart", created=created, **{"ports": (HTTP,), **said})


def merged(*exports: ServiceExport) -> Import:
    found = merge(exports)
    assert found is not None
    return found


def reason(*exports: ServiceExport) -> str:
    conflict = merged(*exports).conflict
    return conflict.reason if conflict else ""


def test_nothing_is_made_of_no_export() -> None:
    assert merge([]) is None


ANOTHER: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"type": "Headless"}, "TypeConflict"),
    ({"session_affinity": "ClientIP"}, "SessionAffinityConflict"),
    ({"session_affinity_timeout": 60}, "SessionAffinityConfigConflict"),
    ({"annotations": {"a": "b"}}, "AnnotationsConflict"),
    ({"labels": {"a": "b"}}, "LabelsConflict"),
    ({"internal_traffic_policy": "Cluster"}, ""),  # which is what saying nothing means
    ({"internal_traffic_policy": "Local"}, "InternalTrafficPolicyConflict"),
    ({"trafficDistribution": "PreferClose"}, "TrafficDistributionConflict"),
    ({"ports": (HTTP, MORE)}, "PortConflict"),
    ({"ports": ()}, "PortConflict"),
    ({"ports": (ExportPort(port=80, name="web"),)}, "PortConflict"),
    ({"ports": (ExportPort(port=8080, name="http"),)}, "PortConflict"),
    ({"ports": (ExportPort(port=80, name="http", protocol=Protocol.UDP),)}, "PortConflict"),
    ({"ports": (ExportPort(port=80, name="http", app_protocol="h2c"),)}, "PortConflict"),
    ({"ip_families": ("IPv4",)}, ""),  # the other one is of a release that does not say
]


@pytest.mark.parametrize(("said", "expected"), ANOTHER)
def test_what_two_clusters_disagree_on_is_said_and_the_older_holds(said: dict[str, Any], expected: str) -> None:
    said = {"traffic_distribution" if key == "trafficDistribution" else key: value for key, value in said.items()}
    usual, other = export("alpha", 5), export("beta", 6, **said)
    assert reason(usual, other) == expected
    found = merged(other, usual)
    assert (found.oldest, found.clusters, found.ports[0]) == (usual, ("alpha", "beta"), HTTP)
    older = export("beta", 4, **said)
    assert (merged(usual, older).oldest, reason(usual, older)) == (older, expected)
    same = export("beta", 5, **said)
    assert merged(same, usual).oldest == usual  # of one second, by the clusters' names


def test_all_that_clusters_disagree_on_is_said_and_who_holds() -> None:
    other = export("beta", 2, type="Headless", ports=(HTTP, MORE), ip_families=("IPv6",), labels={"a": "b"})
    conflict = merged(export("alpha", ip_families=("IPv4",)), other).conflict
    assert conflict is not None
    assert conflict.reason == "PortConflict,IPFamilyConflict,TypeConflict,LabelsConflict"
    assert [part.strip() for part in conflict.sentence.split(";")] == [
        "the ports of alpha are not those of all: the oldest hold, http=80/TCP of alpha, more=81/TCP of beta",
        "beta has none of IPv4, which all older exports have, and which holds",
        "1 of 2 clusters have another type: 'ClusterSetIP' of alpha, the oldest, holds",
        "1 of 2 clusters have another exportedLabels: '' of alpha, the oldest, holds",
    ]


def test_families_are_those_that_all_have_but_for_who_has_none_of_them() -> None:
    both, four, six = ("IPv6", "IPv4"), ("IPv4",), ("IPv6",)
    cases = [
        ([both], both, ""),
        ([both, four], four, ""),
        ([four, both], four, ""),
        ([both, (), six], six, ""),
        ([four, six], four, "IPFamilyConflict"),
        ([four, six, four], four, "IPFamilyConflict"),
        ([(), ()], (), ""),
    ]
    for families, expected, says in cases:
        exports = [export(f"c{number}", number, ip_families=each) for number, each in enumerate(families)]
        assert (merged(*exports).ip_families, reason(*exports)) == (expected, says), families


def test_ports_are_united_as_a_twin_does_in_whatever_order_they_are_told() -> None:
    draw = random.Random(9)
    conflicts = 0
    for _ in range(3000):
        exports = [
            export(
                f"c{number}",
                draw.randint(1, 2),
                ports=tuple(
                    ExportPort(
                        name=draw.choice(["", "a", "b"]),
                        port=draw.choice([80, 81]),
                        protocol=draw.choice([Protocol.TCP, Protocol.UDP]),
                        app_protocol=draw.choice(["", "", "http"]),
                    )
                    for _ in range(draw.randint(0, 3))
                ),
            )
            for number in range(draw.randint(1, 3))
        ]
        found = merged(*exports)
        assert all(merge(each) == found for each in permutations(exports))
        assert found.ports == twin(exports)
        says_same = len({frozenset(each.ports) for each in exports}) == 1
        clear = all(twin([each]) == tuple(dict.fromkeys(each.ports)) for each in exports)
        assert (found.conflict is None) == (says_same and clear)
        conflicts += found.conflict is not None
    assert 500 < conflicts < 2900


def twin(exports: list[ServiceExport]) -> tuple[ExportPort, ...]:
    """Each port of any, unless one that is in came before it and cannot stand beside it."""
    every = [port for each in sorted(exports, key=lambda each: (each.created, each.cluster)) for port in each.ports]
    taken: list[ExportPort] = []
    for port in every:
        clear = all(
            each.name != port.name and (each.protocol, each.port) != (port.protocol, port.port) for each in taken
        )
        if clear and (not taken or all(each.name for each in (*taken, port))):  # one without a name stands alone
            taken.append(port)
    return tuple(taken)
