"""A new cluster gets no connection before its tunnels work, and is not waited for without end."""

from __future__ import annotations

import pytest
from fake_kernel import Bed
from fake_wireguard import numbered_key
from msgspec.structs import replace

from agent.domains.gate import WELCOME
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
    await bed.domains.welcome.look()
    await bed.step()


async def test_its_backends_wait_for_a_handshake_with_each_of_its_nodes(bed: Bed) -> None:
    await connected(bed)
    assert bed.served() == ["5"]
    await look(bed)
    assert bed.served() == ["5"]
    key = numbered_key(2)
    bed.device.states[key] = replace(bed.device.states[key], last_handshake=1.0)
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


async def test_nodes_that_are_refused_are_not_waited_for_without_end(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    bed.connect("beta")
    bed.peers.newcomers.add("beta")
    bed.add_node("beta", 2, pod_cidrs=(parse_prefix("10.1.1.0/24"),))
    await bed.step()
    assert bed.domains.welcome.gate.next_look is None
    await look(bed, WELCOME)
    assert not bed.state.withheld


async def test_one_that_leaves_while_it_waits_is_forgotten(bed: Bed) -> None:
    await connected(bed)
    bed.sink.drain("beta")
    await look(bed)
    assert not bed.domains.welcome.gate.waiting
    assert not bed.state.withheld


async def test_a_cluster_that_was_known_before_is_not_held_back(bed: Bed) -> None:
    bed.add_node("alpha", 1)
    bed.add_web("10.1.1.5")
    bed.connect("beta")
    bed.add_node("beta", 2)
    bed.add_remote_web("beta", "10.2.2.7")
    await bed.step()
    assert bed.served() == ["5", "7"]
