"""Global services: the matrix of who gets whose backends, and ports that meet by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import parse
from clustermesh.mesh.merge import Backend, Frontend, merge
from clustermesh.model import Affinity, LocalService, Port, Protocol, Service

TCP, UDP = Protocol.TCP, Protocol.UDP


def service(cluster_id: int, *addresses: str, port: int = 8080, name: str = "http", shared: bool = True) -> Service:
    return Service(
        cluster=f"c{cluster_id}",
        cluster_id=cluster_id,
        namespace="shop",
        name="cart",
        frontends={parse(f"10.96.{cluster_id}.1"): {name: Port(protocol=TCP, port=80)}},
        backends={parse(address): {name: Port(protocol=TCP, port=port)} for address in addresses},
        shared=shared,
    )


def answering(
    local: Service, *remotes: Service, is_global: bool = True, affinity: Affinity = Affinity.NONE
) -> list[str]:
    merged = merge(LocalService(service=local, is_global=is_global, affinity=affinity), remotes)
    (backends,) = merged.values()
    return [backend.address for backend in backends]


@pytest.mark.parametrize(
    ("is_global", "shared", "expected"),
    [(True, True, ["10.1.0.1", "10.2.0.1"]), (True, False, ["10.1.0.1"]), (False, True, ["10.1.0.1"])],
)
def test_remote_backends_are_used_where_the_own_service_is_global_and_the_other_shared(
    is_global: bool, shared: bool, expected: list[str]
) -> None:
    assert answering(service(1, "10.1.0.1"), service(2, "10.2.0.1", shared=shared), is_global=is_global) == expected


@pytest.mark.parametrize(
    ("affinity", "own", "other", "expected"),
    [
        (Affinity.NONE, ["10.1.0.1"], ["10.2.0.1"], ["10.1.0.1", "10.2.0.1"]),
        (Affinity.LOCAL, ["10.1.0.1"], ["10.2.0.1"], ["10.1.0.1"]),
        (Affinity.LOCAL, [], ["10.2.0.1"], ["10.2.0.1"]),
        (Affinity.LOCAL, ["10.1.0.1"], [], ["10.1.0.1"]),
        (Affinity.REMOTE, ["10.1.0.1"], ["10.2.0.1"], ["10.2.0.1"]),
        (Affinity.REMOTE, ["10.1.0.1"], [], ["10.1.0.1"]),
        (Affinity.REMOTE, [], [], []),
    ],
)
def test_affinity(affinity: Affinity, own: list[str], other: list[str], expected: list[str]) -> None:
    assert answering(service(1, *own), service(2, *other), affinity=affinity) == expected


def test_ports_meet_by_name_and_keep_the_backends_number() -> None:
    merged = merge(LocalService(service=service(1), is_global=True), [service(2, "10.2.0.1", port=9999)])
    assert merged == {Frontend("10.96.1.1", 80, TCP): (Backend(2, "10.2.0.1", 9999, TCP),)}


def test_another_name_or_protocol_is_another_port() -> None:
    other_name = service(2, "10.2.0.1", name="grpc")
    other_protocol = Service(
        cluster="c3",
        cluster_id=3,
        namespace="shop",
        name="cart",
        backends={parse("10.3.0.1"): {"http": Port(protocol=UDP, port=8080)}},
    )
    assert answering(service(1), other_name, other_protocol) == []


def test_a_frontend_nobody_answers_is_kept_empty() -> None:
    assert merge(LocalService(service=service(1), is_global=True), []) == {Frontend("10.96.1.1", 80, TCP): ()}


def test_backends_are_of_the_frontends_family() -> None:
    assert answering(service(1, "10.1.0.1", "fd00::1")) == ["10.1.0.1"]


addresses = st.lists(st.builds("10.9.0.{}".format, st.integers(1, 5)), unique=True)


@given(addresses, st.lists(addresses, max_size=3), st.sampled_from(Affinity))
def test_nobody_is_left_out_while_anybody_could_answer(
    own: list[str], others: list[list[str]], affinity: Affinity
) -> None:
    remotes = [service(n, *addresses) for n, addresses in enumerate(others, start=2)]
    merged = merge(LocalService(service=service(1, *own), is_global=True, affinity=affinity), remotes)
    (backends,) = merged.values()
    assert bool(backends) == bool(own or any(others))
    assert list(backends) == sorted(set(backends)), "equal sets are equal tuples"
