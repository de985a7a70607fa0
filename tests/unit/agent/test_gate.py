"""A new cluster gets no connection before its tunnels work, and is not waited for without end."""

from __future__ import annotations

import asyncio

import pytest
from fake_kernel import Bed
from fake_wireguard import numbered_key
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.domains.gate import SHARE, WELCOME
from clustermesh.address import parse_prefix


@pytest.fixture
def bed() -> Bed:
    return Bed()


async def connected(bed: Bed) -> None:
    """Beta is new, has one node and a backend for alpha's service."""
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    bed.connect("beta")
    bed.peers.newcomers.add("beta")
    await bed.step()
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.7")
    await bed.step()


async def look(bed: Bed, seconds: float = 1.0) -> None:
    """Some seconds later the gate is looked after, and what is let in is planned."""
    bed.now += seconds
    await bed.domains.gate.look()
    await bed.step()


def shake(bed: Bed, number: int) -> None:
    """This node and that one have shaken hands."""
    key = numbered_key(number)
    bed.device.states[key] = replace(bed.device.states[key], last_handshake=1.0)


async def test_its_backends_wait_for_a_handshake_with_each_of_its_nodes(bed: Bed) -> None:
    await connected(bed)
    assert bed.served() == ["5"]
    await look(bed)
    assert bed.served() == ["5"]
    shake(bed, 2)
    await look(bed)
    assert bed.served() == ["5", "7"]


async def test_a_tunnel_that_never_comes_up_is_not_waited_for_for_ever(bed: Bed) -> None:
    await connected(bed)
    await look(bed, WELCOME)
    assert bed.served() == ["5", "7"]


async def test_a_device_that_does_not_answer_keeps_nobody_out_for_longer(bed: Bed) -> None:
    await connected(bed)
    bed.device.there = False
    await look(bed)
    assert bed.served() == ["5"]
    await look(bed, WELCOME)
    assert bed.served() == ["5", "7"]


async def test_a_second_node_is_waited_for_too_and_one_without_a_key_is_not(bed: Bed) -> None:
    await connected(bed)
    bed.add_node("beta", 3)
    bed.add_node("beta", 4, wireguard_public_key="")
    await bed.step()
    shake(bed, 2)
    await look(bed)
    assert bed.served() == ["5"]
    shake(bed, 3)
    await look(bed)
    assert bed.served() == ["5", "7"]


async def test_a_cluster_of_which_no_node_is_known_waits_for_one_and_the_device_is_not_asked(bed: Bed) -> None:
    bed.peers.newcomers.add("beta")
    await bed.step()
    bed.device.asked = 0
    await look(bed, 1e6)
    assert bed.state.withheld == {"beta"}
    assert not bed.device.asked


async def test_nodes_that_are_refused_are_not_waited_for_without_end(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    bed.connect("beta")
    bed.peers.newcomers.add("beta")
    bed.add_node("beta", 2, pod_cidrs=(parse_prefix("10.1.1.0/24"),))
    await bed.step()
    await look(bed)
    assert bed.state.withheld
    await look(bed, WELCOME)
    assert not bed.state.withheld


async def test_one_that_leaves_while_it_waits_is_forgotten(bed: Bed) -> None:
    await connected(bed)
    bed.sink.drain("beta")
    await look(bed)
    assert not bed.domains.gate.waiting
    assert not bed.state.withheld


async def test_a_cluster_that_was_known_before_is_not_held_back(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    bed.connect("beta")
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.7")
    await bed.step()
    assert bed.served() == ["5", "7"]


async def test_a_node_that_comes_is_looked_at_soon_by_who_runs(bed: Bed) -> None:
    running = asyncio.create_task(bed.domains.gate.run())
    await connected(bed)
    shake(bed, 2)
    async with asyncio.timeout(20):
        while bed.state.withheld:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.05, 1.0)), min_size=10, max_size=60))
def test_questions_never_take_more_than_their_share(looks: list[tuple[float, float]]) -> None:
    asyncio.run(_ask_as_often_as_allowed(looks))


async def _ask_as_often_as_allowed(looks: list[tuple[float, float]]) -> None:
    bed = Bed()
    await connected(bed)
    began, spent, last = bed.now, 0.0, 0.0
    for cost, pause in looks:
        asked = bed.device.asked
        bed.device.on_question = lambda cost=cost: bed.spend(cost)
        bed.domains.gate.waiting["beta"] = None  # and still nobody has shaken hands
        await bed.domains.gate.look()
        if bed.device.asked > asked:
            spent, last = spent + cost, cost
        bed.now += pause
    assert spent - last <= SHARE * (bed.now - began) + 1e-6
