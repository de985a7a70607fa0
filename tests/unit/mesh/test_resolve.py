"""Global services: the matrix of who gets whose backends, ports that meet by name, families that never meet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import is_ipv4, parse, text
from clustermesh.mesh.resolve import Backend, Backends, Frontend, Group, ServiceEntry, resolve
from clustermesh.model import Affinity, LocalService, Port, Protocol, Service

TCP, UDP = Protocol.TCP, Protocol.UDP


def service(
    cluster_id: int,
    *addresses: str,
    port: int = 8080,
    name: str = "http",
    shared: bool = True,
    terminating: tuple[str, ...] = (),
    frontends: tuple[str, ...] = (),
) -> Service:
    return Service(
        cluster=f"c{cluster_id}",
        cluster_id=cluster_id,
        namespace="shop",
        name="cart",
        frontends={parse(ip): {name: Port(protocol=TCP, port=80)} for ip in frontends or (f"10.96.{cluster_id}.1",)},
        backends={parse(address): {name: Port(protocol=TCP, port=port)} for address in addresses},
        shared=shared,
        terminating=frozenset(map(parse, terminating)),
    )


def answering(
    local: Service, *remotes: Service, is_global: bool = True, affinity: Affinity = Affinity.NONE
) -> list[str]:
    (entry,) = resolve(LocalService(service=local, is_global=is_global, affinity=affinity), remotes)
    return [text(backend.address) for group in entry.groups for backend in group.backends]


@pytest.mark.parametrize(
    ("is_global", "shared", "expected"),
    [(True, True, ["10.1.0.1", "10.2.0.1"]), (True, False, ["10.1.0.1"]), (False, True, ["10.1.0.1"])],
)
def test_remote_backends_are_used_where_the_own_service_is_global_and_the_other_shared(
    is_global: bool, shared: bool, expected: list[str]
) -> None:
    assert answering(service(1, "10.1.0.1"), service(2, "10.2.0.1", shared=shared), is_global=is_global) == expected


def test_a_backend_elsewhere_that_terminates_is_called_where_there_is_no_other() -> None:
    going = service(2, "10.2.0.1", "10.2.0.2", terminating=("10.2.0.1",))
    gone = service(3, "10.3.0.1", terminating=("10.3.0.1",))
    assert answering(service(1), going, gone) == ["10.2.0.2"]
    assert answering(service(1), gone) == ["10.3.0.1"]
    (entry,) = resolve(LocalService(service=service(1), is_global=True), [going, gone])
    resting = {each.address for group in entry.resting for each in group.backends}
    assert resting == {parse("10.2.0.1"), parse("10.3.0.1")}


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


@pytest.mark.parametrize(
    ("affinity", "own", "other"),
    [(Affinity.LOCAL, ["10.1.0.1"], ["10.2.0.1", "fd02::1"]), (Affinity.REMOTE, ["10.1.0.1", "fd02::1"], ["10.2.0.1"])],
)
def test_affinity_in_one_family_leaves_the_other_its_only_backend(
    affinity: Affinity, own: list[str], other: list[str]
) -> None:
    local = service(1, *own, frontends=("10.96.1.1", "fd96::1"))
    entries = resolve(LocalService(service=local, is_global=True, affinity=affinity), [service(2, *other)])
    answers = {
        text(entry.frontend.address): [text(b.address) for group in entry.groups for b in group.backends]
        for entry in entries
    }
    assert answers == {"10.96.1.1": ["10.1.0.1" if affinity is Affinity.LOCAL else "10.2.0.1"], "fd96::1": ["fd02::1"]}


def test_ports_meet_by_name_and_keep_the_backends_number() -> None:
    resolved = resolve(LocalService(service=service(1), is_global=True), [service(2, "10.2.0.1", port=9999)])
    frontend = Frontend(parse("10.96.1.1"), 80, TCP)
    assert resolved == [ServiceEntry(frontend, (Group(2, 1, (Backends((parse("10.2.0.1"),), 9999),)),))]


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
    (entry,) = resolve(LocalService(service=service(1), is_global=True), [])
    assert entry == ServiceEntry(Frontend(parse("10.96.1.1"), 80, TCP))


def test_what_is_no_protocol_with_ports_has_no_entry() -> None:
    ports = {name: Port(protocol=protocol, port=80) for name, protocol in (("a", Protocol.ANY), ("n", Protocol.NONE))}
    local = Service(cluster="c", cluster_id=1, namespace="n", name="s", frontends={parse("10.96.0.1"): ports})
    assert resolve(LocalService(service=local), []) == []


def test_each_clusters_part_is_as_many_as_it_has_backends() -> None:
    local = service(1, "10.1.0.2", "10.1.0.1")
    (entry,) = resolve(LocalService(service=local, is_global=True), [service(3, "10.3.0.1"), service(2, "10.2.0.1")])
    assert [(group.cluster_id, group.weight) for group in entry.groups] == [(1, 2), (2, 1), (3, 1)]
    assert entry.groups[0].backends == [Backend(parse("10.1.0.1"), 8080), Backend(parse("10.1.0.2"), 8080)]


# -- the stupid twin --------------------------------------------------------------------------------------------------

addresses = st.sampled_from(["10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2"])
port_names = st.sampled_from(["", "http"])
ports = st.builds(
    lambda protocol, port: Port(protocol=protocol, port=port), st.sampled_from(Protocol), st.integers(1, 2)
)
named_ports = st.dictionaries(port_names, ports, max_size=2)
backend_tables = st.dictionaries(addresses.map(parse), named_ports, max_size=4) | st.builds(
    dict.fromkeys, st.sets(addresses.map(parse)), named_ports
)  # each with ports of its own, or all with the same
frontends = st.sampled_from(["10.96.0.1", "10.96.0.2", "fd96::1"]).map(parse)


@st.composite
def services(draw: st.DrawFn, cluster_id: int) -> Service:
    table = st.dictionaries(frontends, st.dictionaries(port_names, ports, max_size=2), max_size=3)
    return Service(
        cluster=f"c{cluster_id}",
        cluster_id=cluster_id,
        namespace="n",
        name="s",
        frontends=draw(table) if cluster_id == 1 else {},
        backends=draw(backend_tables),
        shared=draw(st.booleans()),
    )


def twin(local: LocalService, remotes: list[Service]) -> dict[Frontend, set[tuple[int, bytes, int]]]:
    """One frontend and one backend at a time, without a thought for cost."""
    found = {}
    for address, named in local.service.frontends.items():
        for name, port in named.items():
            if port.protocol not in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
                continue
            candidates = set()
            for each in [local.service, *remotes]:
                if each is local.service or (local.is_global and each.shared):
                    for backend, backend_ports in each.backends.items():
                        target = backend_ports.get(name)
                        if target and target.protocol == port.protocol and is_ipv4(backend) == is_ipv4(address):
                            candidates.add((each.cluster_id, backend, target.port))
            own = {c for c in candidates if c[0] == 1}
            if local.is_global and local.affinity is Affinity.LOCAL and own:
                candidates = own
            if local.is_global and local.affinity is Affinity.REMOTE and candidates - own:
                candidates -= own
            found[Frontend(address, port.port, port.protocol)] = candidates
    return found


@given(
    services(1), st.lists(st.integers(2, 4).flatmap(services), max_size=3, unique_by=lambda s: s.cluster_id), st.data()
)
def test_resolution_agrees_with_its_stupid_twin(own: Service, remotes: list[Service], data: st.DataObject) -> None:
    affinity, is_global = data.draw(st.sampled_from(Affinity)), data.draw(st.booleans())
    local = LocalService(service=own, is_global=is_global, affinity=affinity)
    entries = resolve(local, remotes)
    assert {
        entry.frontend: {(group.cluster_id, b.address, b.port) for group in entry.groups for b in group.backends}
        for entry in entries
    } == twin(local, remotes)
    for entry in entries:
        assert all(group.weight == len(group.backends) > 0 for group in entry.groups)
        clusters = [group.cluster_id for group in entry.groups]
        assert clusters == sorted(clusters), "equal services are equal entries"
    assert resolve(local, remotes[::-1]) == entries
