"""The last good state survives what happens to files, and never takes an agent down."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clustermesh.address import parse, parse_prefix
from clustermesh.mesh import last_good
from clustermesh.mesh.peers import restore
from clustermesh.mesh.reader import Sink
from clustermesh.mesh.view import View
from clustermesh.model import (
    Algorithm,
    BackendDetail,
    BackendState,
    ClusterConfig,
    Endpoint,
    HostPorts,
    Identity,
    Label,
    LocalService,
    Outside,
    Port,
    Protocol,
    Service,
    Zone,
)


def full_view() -> View:
    cidr = parse_prefix("10.2.0.0/24")
    service = Service(
        cluster="beta",
        cluster_id=2,
        namespace="n",
        name="s",
        backends={parse("10.2.0.1"): {"": Port(protocol=Protocol.UDP, port=53)}},
        zones={parse("fd00::1"): Zone(zone="z1")},
    )
    ports = {"": Port(protocol=Protocol.UDP, port=30_053)}
    more = LocalService(
        service=service,
        outside=Outside(node_ports=ports, source_ranges=(cidr,), external_ips=(parse("fd00::7"),)),
        algorithm=Algorithm.MAGLEV,
        details={parse("10.2.0.1"): BackendDetail(state=BackendState.TERMINATING, for_zones=("z1",))},
        draining={parse("10.2.0.2"): ports},
        host_ports=HostPorts(node="n1", ports=ports),
    )
    return View(
        services={("n", "s"): service},
        local_services={("n", "s"): LocalService(service=service), ("n", "more"): more},
        identities={131073: Identity(id=131073, labels=(Label(source="k8s", key="a", value="b"),))},
        endpoints={
            parse("10.2.0.1"): Endpoint(ip=parse("10.2.0.1"), identity=131073, host_ip=parse("fd00::1")),
            cidr: Endpoint(ip=cidr.address, prefix_length=cidr.length, identity=2),
        },
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    last_good.save(tmp_path / "new", "beta", last_good.encode(ClusterConfig(id=2), full_view()))
    kept = last_good.load(tmp_path / "new", "beta")
    assert kept is not None
    assert kept.view == full_view()
    assert kept.config == ClusterConfig(id=2)
    assert (tmp_path / "new" / "beta.state").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [0, 15, 16, 4095, 4096, 4097, 70_000])
def test_what_is_encoded_in_pieces_is_what_is_encoded_at_once(number: int) -> None:
    view = full_view()
    view.identities |= {each: Identity(id=each, labels=()) for each in range(number)}
    config, before = ClusterConfig(id=2), View(identities=view.identities.copy())
    at_once = msgspec.msgpack.encode(last_good.LastGood(format=3, config=config, view=before))
    pieces = last_good.encode_in_pieces(config, before)
    before.identities.clear()
    encoded = list(pieces)
    assert b"".join(encoded) == at_once
    assert max(map(len, encoded)) < 4096 * 30, "no more than some thousand entries in one go"


def test_what_is_there_already_is_known_by_its_bytes(tmp_path: Path) -> None:
    assert not last_good.holds(tmp_path, "beta", b"1")
    last_good.save(tmp_path, "beta", b"1")
    assert last_good.holds(tmp_path, "beta", b"1")
    assert not last_good.holds(tmp_path, "beta", b"2")


def test_a_missing_file_is_no_state(tmp_path: Path) -> None:
    assert last_good.load(tmp_path, "beta") is None


def test_forgetting_twice_is_fine(tmp_path: Path) -> None:
    last_good.save(tmp_path, "beta", last_good.encode(ClusterConfig(id=2), View()))
    last_good.forget(tmp_path, "beta")
    last_good.forget(tmp_path, "beta")
    assert last_good.load(tmp_path, "beta") is None


@given(st.binary(max_size=200), st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_no_state(tmp_path: Path, garbage: bytes, cut: int) -> None:
    last_good.save(tmp_path, "beta", last_good.encode(ClusterConfig(id=2), full_view()))
    path = tmp_path / "beta.state"
    path.write_bytes(path.read_bytes()[:cut] + garbage)
    kept = last_good.load(tmp_path, "beta")
    assert kept is None or kept.view == full_view()


def test_clusters_disconnected_while_no_agent_ran_are_forgotten(tmp_path: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        last_good.save(tmp_path, name, last_good.encode(ClusterConfig(id=2), View()))
    last_good.forget_others(tmp_path, {"alpha", "gamma"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alpha.state", "gamma.state"]
    last_good.forget_others(tmp_path / "absent", set())


async def test_an_entry_that_cannot_be_taken_in_is_left_out_and_the_others_are_restored(tmp_path: Path) -> None:
    """Whatever a former agent has kept must not end this one."""
    last_good.save(tmp_path, "beta", last_good.encode(ClusterConfig(id=2), full_view()))
    kept = last_good.load(tmp_path, "beta")
    assert kept is not None
    taken: list[str] = []

    def put(_cluster: str, kind: str, _name: object, _value: object, _revision: int) -> None:
        if kind == "identities":
            raise ZeroDivisionError
        taken.append(kind)

    assert await restore(cast(Sink, SimpleNamespace(put=put)), "beta", kept) == 1
    assert sorted(set(taken)) == ["endpoints", "local_services", "services"]
