"""What the kernel holds of other clusters is read back as the services it was made of."""

from __future__ import annotations

from random import Random

import pytest
from fake_kernel import FakeTable

from agent.plan.services import ServicePlanner, ServiceTrackers
from agent.plan.unheard import services_found
from clustermesh.address import Address, parse
from clustermesh.mesh.answering import NOWHERE
from clustermesh.mesh.resolve import resolve
from clustermesh.model import LocalService, Port, Protocol, Service
from clustermesh.reconcile import Reconciler, Tracker

PORTS = {"http": Port(protocol=Protocol.TCP, port=80), "dns": Port(protocol=Protocol.UDP, port=53)}
TARGETS = {"http": Port(protocol=Protocol.TCP, port=8080), "dns": Port(protocol=Protocol.UDP, port=5353)}


def tables() -> ServiceTrackers[Tracker[bytes, bytes]]:
    return ServiceTrackers(*(Tracker(name, FakeTable(name, [])) for name in ServiceTrackers._fields))


def web(cluster_id: int, backends: list[Address], frontends: tuple[str, ...] = ()) -> Service:
    return Service(
        cluster="",
        cluster_id=cluster_id,
        namespace="n",
        name="web",
        frontends={parse(address): PORTS for address in frontends},
        backends=dict.fromkeys(backends, TARGETS),
    )


def some(random: Random, cluster_id: int, most: int) -> list[Address]:
    """Of each family up to `most`."""
    four = [parse(f"10.{cluster_id}.0.{number}") for number in range(random.randint(0, most))]
    return four + [parse(f"fd00:{cluster_id}::{number:x}") for number in range(random.randint(0, most))]


async def planned(local: LocalService, remotes: list[Service]) -> ServiceTrackers[Tracker[bytes, bytes]]:
    held = tables()
    ServicePlanner(held).update(("n", "web"), resolve(local, remotes))
    await Reconciler(*held).flush()
    return held


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_found_makes_the_service_that_was_planned(seed: int) -> None:
    random = Random(seed)
    own = web(1, some(random, 1, 20), ("10.96.0.1", "fd00:96::1"))
    local = LocalService(service=own, is_global=True)
    remotes = [web(number, some(random, number, 40)) for number in range(2, random.randint(3, 14))]
    held = await planned(local, remotes)
    found = services_found(held, local, NOWHERE)
    assert resolve(local, [found[each] for each in found if each != 1]) == resolve(local, remotes)
    assert found.get(1, web(1, [])).backends == own.backends


async def test_what_is_missing_in_the_kernel_is_passed_over() -> None:
    local = LocalService(service=web(1, [parse("10.1.0.1")], ("10.96.0.1",)), is_global=True)
    for name in ("backends", "slots", "groups", "services"):
        held = await planned(local, [web(2, [parse("10.2.0.1")])])
        getattr(held, name).actual.clear()
        assert services_found(held, local, NOWHERE) == {}


async def test_a_service_that_the_kernel_does_not_have_has_nothing_there() -> None:
    local = LocalService(service=web(1, [parse("10.1.0.1")], ("10.96.0.1",)), is_global=True)
    assert services_found(tables(), local, NOWHERE) == {}
