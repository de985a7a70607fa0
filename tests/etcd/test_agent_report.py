"""An agent's report and key in a real etcd: written when they must be, and left alone when they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager

from agent import report
from agent.registration import Registration
from clustermesh.model import AgentRecord
from clustermesh.store.client import EtcdClient
from clustermesh.wire import agent_report, keys, local
from clustermesh.wire.agent_report import AgentReport, SeenCluster

NODE = "n1"
PREPARED = asyncio.Event()
PREPARED.set()


def said(state: str = "fresh", *problems: str) -> AgentReport:
    return AgentReport("0.1.0", "", problems, (SeenCluster("beta", state, 2, 5.0),))


@asynccontextmanager
async def reporting(client: EtcdClient, now: Callable[[], AgentReport]):
    """An agent that reports what `now` gives."""
    task = asyncio.create_task(report.keep_reported(client, NODE, lambda: (now(), 2)))
    try:
        yield
    finally:
        task.cancel()


async def reported(client: EtcdClient, wanted: AgentReport) -> object:
    """The key, once it says that."""
    async with asyncio.timeout(60):
        while True:
            held = await client.get(keys.status_key(NODE))
            if held is not None and agent_report.decode(held.value) == wanted:
                return held
            await asyncio.sleep(0.05)


async def test_a_change_is_written_and_an_agent_that_begins_again_writes_nothing(client: EtcdClient) -> None:
    words = said()
    async with reporting(client, lambda: words):
        await reported(client, words)
        words = said("stale", "no device")
        held = await reported(client, words)
    async with reporting(client, lambda: words):
        await asyncio.sleep(2.5)  # it looks every second
        assert await reported(client, words) == held


async def test_a_report_that_vanished_with_its_lease_is_written_again(client: EtcdClient) -> None:
    async with reporting(client, said):
        held = await reported(client, said())
        await client.revoke(held.lease)
        words = said("fresh", "x")
    async with reporting(client, lambda: words):
        await reported(client, words)


async def test_a_node_s_key_comes_back_whoever_takes_it_away(client: EtcdClient) -> None:
    record = AgentRecord(node=NODE, wireguard_public_key="A" * 43 + "=", boot_id="")
    task = asyncio.create_task(Registration(record).keep(client, PREPARED, lambda: 3))
    try:
        for take in (lambda: client.delete(keys.agent_key(NODE)), lambda: client.put(keys.agent_key(NODE), b"{}")):
            await take()
            async with asyncio.timeout(60):
                while (held := await client.get(keys.agent_key(NODE))) is None or held.value == b"{}":
                    await asyncio.sleep(0.05)
            assert local.decode_agent(held.value) == record
    finally:
        task.cancel()


def record_of(letter: str) -> AgentRecord:
    return AgentRecord(node=NODE, wireguard_public_key=letter * 42 + "A=", boot_id=letter)


async def test_an_agent_that_is_not_where_its_node_is_takes_nobodys_name(client: EtcdClient) -> None:
    prepared = asyncio.Event()
    await client.put(keys.agent_key(NODE), local.encode_agent(record_of("B")))
    task = asyncio.create_task(Registration(record_of("A")).keep(client, prepared, lambda: 3))
    for _ in range(5):
        held = await client.get(keys.agent_key(NODE))
        assert held is not None
        assert local.decode_agent(held.value) == record_of("B")
    prepared.set()
    async with asyncio.timeout(60):
        while (held := await client.get(keys.agent_key(NODE))) and local.decode_agent(held.value) != record_of("A"):
            await asyncio.sleep(0.05)
    task.cancel()


async def test_a_name_that_nobody_goes_by_is_taken_before_this_node_is_known(client: EtcdClient) -> None:
    """The own cluster says that all its Nodes are there once each has a key."""
    task = asyncio.create_task(Registration(record_of("A")).keep(client, asyncio.Event(), lambda: 3))
    async with asyncio.timeout(60):
        while (held := await client.get(keys.agent_key(NODE))) is None:
            await asyncio.sleep(0.05)
    assert local.decode_agent(held.value) == record_of("A")
    task.cancel()


async def test_two_agents_of_one_name_write_less_and_less_often_and_say_so(client: EtcdClient) -> None:
    waits: dict[str, list[float]] = {"A": [], "B": []}

    def agent(letter: str) -> Registration:
        async def sleep(seconds: float) -> None:
            waits[letter].append(seconds)
            await asyncio.sleep(0)

        return Registration(record_of(letter), lambda: 0.0, sleep)

    agents = [agent(letter) for letter in waits]
    tasks = [asyncio.create_task(each.keep(client, PREPARED, lambda: 3)) for each in agents]
    async with asyncio.timeout(60):
        while min(map(len, waits.values())) < 8:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert waits["A"][:8] == waits["B"][:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert "boot id B" in agents[0].rival()
    assert "boot id A" in agents[1].rival()
