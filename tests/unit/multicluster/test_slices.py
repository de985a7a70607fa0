"""EndpointSlices of backends elsewhere: every backend is in exactly one, and who is not known yet keeps theirs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from clustermesh.address import parse, text
from clustermesh.model import Port, Protocol
from clustermesh.model import Service as Remote
from clustermesh.multicluster.documents import SOURCE_CLUSTER, Document, Name
from clustermesh.multicluster.slices import MOST, SliceFacts, slice_writes, wants_slices
from clustermesh.sources.metadata import Metadata
from clustermesh.sources.objects import Service, ServiceSpec

NAME = ("shop", "cart")
GLOBAL, SYNC = "service.cilium.io/global", "service.cilium.io/global-sync-endpoint-slices"


def local(said: dict[str, str] | None = None, **spec: Any) -> Service:
    annotations = {GLOBAL: "true", SYNC: "true"} if said is None else said
    return Service(Metadata("cart", "shop", {"app": "cart"}, annotations, uid="uid-1"), ServiceSpec(**spec))


def remote(cluster: str, *backends: tuple[str, int]) -> Remote:
    found = {parse(ip): {"http": Port(port=port, protocol=Protocol.TCP)} for ip, port in backends}
    return Remote(cluster=cluster, cluster_id=2, namespace="shop", name="cart", backends=found, shared=True)


WANTING: list[tuple[Service | None, bool]] = [
    (None, False),
    (local(), True),
    (local({}), False),
    (local({GLOBAL: "true"}), False),
    (local({GLOBAL: "TRUE", SYNC: "True"}), True),
    (local({"io.cilium/global-service": "true", SYNC: "true"}), True),
    (local({GLOBAL: "false", "io.cilium/global-service": "true", SYNC: "true"}), False),
    (local({SYNC: "true"}), False),
    (local({GLOBAL: "true"}, cluster_ip="None"), True),
    (local({GLOBAL: "true", SYNC: "false"}, cluster_ip="None"), False),
    (local(None, type="ExternalName"), False),
]


@pytest.mark.parametrize(("service", "expected"), WANTING)
def test_who_has_any(service: Service | None, expected: bool) -> None:
    assert wants_slices(service) is expected


def test_an_endpoint_that_terminates_is_not_ready_and_serves() -> None:
    beta = replace(remote("beta", ("10.0.0.1", 80), ("10.0.0.2", 80)), terminating=frozenset([parse("10.0.0.2")]))
    (found,) = applied(SliceFacts(name=NAME, service=local(), in_mesh=True, remotes={"beta": beta})).values()
    assert [(each["addresses"], each["conditions"]) for each in found["endpoints"]] == [
        (["10.0.0.1"], {"ready": True}),
        (["10.0.0.2"], {"ready": False, "serving": True, "terminating": True}),
    ]


def test_they_go_with_the_service_whoever_takes_it_away() -> None:
    facts = SliceFacts(name=NAME, service=local(), in_mesh=True, remotes={"beta": remote("beta", ("10.0.0.1", 80))})
    owners = [{"apiVersion": "v1", "kind": "Service", "name": "cart", "uid": "uid-1", "controller": True}]
    ((name, found),) = applied(facts).items()
    assert found["metadata"]["ownerReferences"] == owners
    older = {**found, "metadata": {"labels": found["metadata"]["labels"]}}  # as it was made before
    (write,) = slice_writes(replace(facts, held={name: older}))
    assert (write.method, write.body) == ("PATCH", {"metadata": {"ownerReferences": owners}})


def applied(facts: SliceFacts) -> dict[Name, Document]:
    held = dict(facts.held)
    for write in slice_writes(facts):
        if write.method == "DELETE":
            del held[write.name]
        else:
            body = write.body or {}
            name = write.name if write.method == "PATCH" else (NAME[0], body["metadata"]["name"])
            held[name] = {**held.get(name, {}), **body}
    return held


def test_every_backend_is_in_one_slice_of_its_cluster_family_and_ports_whatever_was_before() -> None:
    draw, held, most = random.Random(2), dict[Name, Document](), 0
    for _ in range(60):
        remotes = {}
        for number, cluster in enumerate(("beta", "gamma")):
            fours = [f"10.{number}.{n // 250}.{n % 250}" for n in range(draw.choice([0, 3, 230]))]
            sixes = [f"fd00:{number}::{n + 1:x}" for n in range(draw.choice([0, 2]))]
            if draw.random() < 0.8:
                remotes[cluster] = remote(cluster, *((ip, draw.choice([80, 81])) for ip in (*fours, *sixes)))
        facts = SliceFacts(name=NAME, service=local(), in_mesh=True, remotes=remotes, held=held)
        held = applied(facts)
        assert slice_writes(SliceFacts(name=NAME, service=local(), in_mesh=True, remotes=remotes, held=held)) == []
        told = [
            (each["metadata"]["labels"][SOURCE_CLUSTER], each["addressType"], ip, each["ports"][0]["port"])
            for each in held.values()
            for one in each["endpoints"]
            for ip in one["addresses"]
        ]
        meant = [
            (cluster, "IPv6" if ":" in text(ip) else "IPv4", text(ip), ports["http"].port)
            for cluster, found in remotes.items()
            for ip, ports in found.backends.items()
        ]
        assert sorted(told) == sorted(meant)
        assert all(1 <= len(each["endpoints"]) <= MOST for each in held.values())
        most = max(most, len(held))
    assert most > 6


def test_who_is_not_known_yet_keeps_theirs_unless_the_service_wants_none() -> None:
    remotes = {"beta": remote("beta", ("10.2.0.5", 80)), "gamma": remote("gamma", ("10.3.0.5", 80))}
    held = applied(SliceFacts(name=NAME, service=local(), in_mesh=True, remotes=remotes))
    unheard = {"name": NAME, "held": held, "unheard": frozenset({"beta"})}
    kept = applied(SliceFacts(service=local(), in_mesh=True, **unheard))
    assert {each["metadata"]["labels"][SOURCE_CLUSTER] for each in kept.values()} == {"beta"}
    for facts in (
        SliceFacts(service=None, in_mesh=True, **unheard),
        SliceFacts(service=local({}), in_mesh=True, **unheard),
        SliceFacts(service=local(), in_mesh=False, **unheard),
    ):
        assert applied(facts) == {}
