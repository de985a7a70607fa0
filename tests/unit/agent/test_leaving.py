"""Backends of another cluster that leave a service: they rest as long as their pod is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_kernel import TCP80, VIP, Bed

from agent.bpf.layouts import BackendValue, MeantValue, pack_service_key, unpack
from agent.domains import services
from agent.eviction import verdict
from clustermesh.address import Address, parse, text
from clustermesh.mesh.resolve import Scope
from clustermesh.model import BackendState, Endpoint, LocalService, Port, Protocol, Service

POD, OTHER, NODE = parse("10.2.2.5"), parse("10.2.2.6"), parse("192.0.2.2")


@pytest.fixture
async def bed() -> Bed:
    """n/web of alpha, with two backends in beta, whose pods are there."""
    made = Bed()
    made.add_node("alpha", 1)
    made.add_node("beta", 2)
    made.connect("beta")
    made.add_web("10.1.1.5")
    for pod in (POD, OTHER):
        say_pod(made, pod)
    made.add_remote_web("beta", text(POD), text(OTHER))
    await made.step()
    return made


def say_pod(bed: Bed, address: Address, name: str = "", host_ip: Address = NODE, identity: int = 0x20001) -> None:
    of = Endpoint(ip=address, identity=identity, host_ip=host_ip, namespace="n", pod_name=name or f"web-{address[-1]}")
    bed.say("beta", "endpoints", address, of)


def is_lost(bed: Bed, backend: Address = POD) -> bool:
    """Whether connections to it are ended: those of sockets, and those of packets, that ask for its number."""
    asked = MeantValue(VIP, backend, 80, 80, 1, 6)
    planner = bed.domains.services.planner
    [(_, why)] = verdict.gone([asked], planner.wanted, {pack_service_key(VIP, 80, 6, Scope.ANY)}, set())
    assert (why is None) == (backend in states(bed))
    return why is not None


def states(bed: Bed) -> dict[Address, BackendState]:
    values = [unpack(BackendValue, each) for each in bed.tables["backends"].held.values()]
    return {each.address: BackendState(each.state) for each in values}


async def test_who_left_its_service_rests_as_long_as_its_pod_is_there(bed: Bed) -> None:
    held = {key for key, value in bed.tables["backends"].held.items() if POD in value}
    bed.add_remote_web("beta", text(OTHER))
    await bed.step()
    assert not is_lost(bed)
    assert held == {key for key, value in bed.tables["backends"].held.items() if POD in value}  # connections know it so
    assert states(bed)[POD] == BackendState.TERMINATING
    assert bed.served() == ["5", "6"]  # of alpha, and the other one
    bed.sink.remove("beta", "services", ("n", "web"))  # the last one left, too
    await bed.step()
    assert not is_lost(bed)
    assert not is_lost(bed, OTHER)
    assert bed.served() == ["5"]
    bed.add_remote_web("beta", text(POD))
    await bed.step()
    assert states(bed) == {parse("10.1.1.5"): 0, POD: BackendState.ACTIVE, OTHER: BackendState.TERMINATING}
    bed.sink.remove("beta", "endpoints", OTHER)
    await bed.step()
    assert is_lost(bed, OTHER)
    assert not bed.state.watched


@pytest.mark.parametrize(
    "go",
    [
        pytest.param(lambda bed: bed.sink.remove("beta", "endpoints", POD), id="pod"),
        pytest.param(lambda bed: bed.sink.remove("beta", "nodes", "n2"), id="node"),
        pytest.param(lambda bed: bed.sink.drain("beta"), id="cluster"),
        pytest.param(lambda bed: bed.sink.drain("beta", ["endpoints"]), id="table"),
        pytest.param(lambda bed: say_pod(bed, POD, "another"), id="another pod has its address"),
        pytest.param(lambda bed: bed.sink.remove("alpha", "local_services", ("n", "web")), id="service"),
    ],
)
async def test_it_is_gone_with_what_it_rested_on(bed: Bed, go: Callable[[Bed], None]) -> None:
    bed.add_remote_web("beta", text(OTHER))
    await bed.step()
    assert not is_lost(bed)
    assert bed.state.watched.keys() == {POD}
    go(bed)
    await bed.step()
    assert POD not in states(bed)
    assert not bed.state.watched


async def test_who_goes_with_its_pod_does_not_rest(bed: Bed) -> None:
    bed.sink.remove("beta", "endpoints", POD)
    await bed.step()
    assert not is_lost(bed)  # the service has it still
    bed.add_remote_web("beta", text(OTHER))
    await bed.step()
    assert is_lost(bed)


async def test_of_who_shares_its_nodes_network_nothing_is_known(bed: Bed) -> None:
    bed.add_remote_web("beta", text(NODE), text(POD))
    say_pod(bed, NODE, host_ip=NODE, identity=6)
    await bed.step()
    assert not is_lost(bed, NODE)
    bed.add_remote_web("beta", text(POD))
    await bed.step()
    assert is_lost(bed, NODE)


async def test_no_more_rest_than_their_part_of_the_map(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "most_of", lambda _: services._LEAVERS)
    bed.restart()
    await bed.adopt()
    bed.state._dirty_services.add(("n", "web"))
    await bed.step()
    bed.add_remote_web("beta")
    await bed.step()
    assert {is_lost(bed), is_lost(bed, OTHER)} == {True, False}


async def start_again(bed: Bed) -> None:
    """Another agent, that has read all there is."""
    bed.restart()
    await bed.adopt()
    bed.state._dirty_services.add(("n", "web"))
    await bed.step()


async def test_who_rested_rests_on_after_a_restart(bed: Bed) -> None:
    bed.add_remote_web("beta")
    await bed.step()
    held = dict(bed.tables["backends"].held)
    for _ in range(2):
        await start_again(bed)
        assert not is_lost(bed)
        assert not is_lost(bed, OTHER)
        assert bed.tables["backends"].held == held, "under the same numbers, by which connections know them"
    bed.sink.remove("beta", "endpoints", OTHER)
    await bed.step()
    assert is_lost(bed, OTHER)
    assert not is_lost(bed)


async def test_who_left_while_no_agent_ran_rests_where_its_pod_is_there(bed: Bed) -> None:
    bed.add_web("10.1.1.6")
    bed.add_remote_web("beta", "10.2.2.7")
    bed.sink.remove("beta", "endpoints", OTHER)
    await start_again(bed)
    assert states(bed)[POD] == BackendState.TERMINATING
    assert not is_lost(bed)
    assert is_lost(bed, OTHER)
    assert is_lost(bed, parse("10.1.1.5")), "the own cluster says of each what it is"
    assert bed.served() == ["6", "7"]


@pytest.mark.parametrize(
    ("changes", "rests"),
    [({}, True), ({"is_global": False}, False), ({"namespace": "m"}, False), ({"port": 81}, False)],
    ids=str,
)
async def test_after_a_restart_it_rests_in_global_services_of_its_namespace_with_its_port(
    bed: Bed, changes: dict[str, Any], rests: bool
) -> None:
    """Which service it was of the kernel does not say."""
    bed.add_remote_web("beta", text(OTHER))
    await bed.step()
    bed.sink.remove("alpha", "local_services", ("n", "web"))
    namespace, ports = (
        changes.get("namespace", "n"),
        {"http": Port(protocol=Protocol.TCP, port=changes.get("port", 80))},
    )
    at = parse("10.96.0.77")
    of = Service(
        cluster="alpha",
        cluster_id=1,
        namespace=namespace,
        name="other",
        frontends={at: TCP80},
        backends={parse("10.1.1.9"): ports},
    )
    of_all = LocalService(service=of, is_global=changes.get("is_global", True))
    bed.say("alpha", "local_services", (namespace, "other"), of_all)
    await start_again(bed)
    entry = bed.domains.services.planner.wanted(pack_service_key(at, 80, 6, Scope.ANY))
    assert entry is not None
    resting = {each for group in entry.resting for alike in group.alike for each in alike.addresses}
    assert resting == ({POD, OTHER} if rests else set())
