"""The numbered claims of the demo, each a test of its own, on one lab of two clusters of two nodes.

They run in order: 1 connects what 6 takes apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lab import promises
from lab.lab import Lab
from lab.promises import Joined
from lab.streams import Capture
from lab.waiting import until


@pytest.fixture(scope="session")
def joined(lab: Lab) -> Joined:
    """The two clusters, connected by `clustermesh connect`."""
    return asyncio.run(promises.joins(lab))


@pytest.fixture
async def capture(lab: Lab) -> AsyncIterator[Capture]:
    """Looks at the underlay during the whole test."""
    running = Capture(lab, promises.MARKER, promises.SELF_TEST)
    async with running.running():
        yield running
    assert running.counts is not None
    assert running.counts.clear_on_wire == 0


def test_1_connect_joins_two_clusters_that_were_alone(joined: Joined) -> None:
    assert joined.before.held, joined
    assert joined.held, joined


@pytest.mark.usefixtures("joined")
async def test_2_both_clusters_answer_at_one_address_over_tcp_and_udp(lab: Lab) -> None:
    both = await promises.answered_by_all(lab)
    assert both.held, both


@pytest.mark.usefixtures("joined", "capture")
async def test_3_no_request_fails_while_alphas_pods_go_and_come_back(lab: Lab) -> None:
    over = await promises.fails_over(lab)
    assert over.held, over


@pytest.mark.usefixtures("joined", "capture")
async def test_4_no_request_fails_while_an_agent_is_killed_and_started_again(lab: Lab) -> None:
    restart = await promises.survives_agent_kill(lab)
    assert restart.held, restart


@pytest.mark.usefixtures("joined")
async def test_5_the_wire_carries_wireguard_and_no_clear_text(lab: Lab, capture: Capture) -> None:
    secret = await promises.encrypted(lab, capture)
    assert secret.held, secret


@pytest.mark.usefixtures("joined")
async def test_5_would_fail_if_a_marker_were_on_the_wire(lab: Lab) -> None:
    """The same capture, told that the self-test's marker is the payload's: it must count it."""
    wrong = Capture(lab, promises.SELF_TEST, promises.SELF_TEST)
    async with wrong.running():
        assert not (await promises.encrypted(lab, wrong)).held
    assert wrong.counts is not None
    assert wrong.counts.clear_on_wire > 0


@pytest.mark.usefixtures("joined")
async def test_a_change_of_yaml_is_measured_until_it_is_in_the_other_clusters_maps(lab: Lab) -> None:
    delay = await promises.propagates(lab)
    assert delay.held, delay


async def holds_all(lab: Lab, node: str) -> bool:
    return await lab.ask_agent(node, "map_diff") == []


@pytest.mark.usefixtures("joined")
async def test_every_node_holds_in_its_kernel_what_it_should(lab: Lab) -> None:
    """Within the time that `until` gives it, not at each moment: what was said before may be under way."""
    for cluster in lab.plan.clusters:
        for node in cluster.nodes:
            await until(lambda name=node.name: holds_all(lab, name), f"{node.name} holds what it should")


@pytest.mark.usefixtures("joined")
async def test_6_disconnect_leaves_local_backends_only(lab: Lab) -> None:
    parted = await promises.parts(lab)
    assert parted.held, parted
