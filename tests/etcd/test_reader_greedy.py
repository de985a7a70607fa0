"""A peer that rewrites a service all the time, against a real etcd: its changes wait there, and it is fresh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from state_sink import StateSink
from test_mesh_reader import BETA, WEB, beat, publish, running, until, web

from clustermesh.address import parse, text
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.pace import Budget
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import peer_tables
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd

FILL = 400  # backends of a value: 20 kB
CHANGES = 600  # 12 MB, more than any window holds


class Spent(Budget):
    """One whose savings are spent, and for which every part of what changed is a large one."""

    waits = 0

    def spend(self, cost: float, now: float) -> float:
        self.waits += 1
        return 0.005


@asynccontextmanager
async def slowed(etcd: LocalEtcd, sink: StateSink, budget: Budget) -> AsyncIterator[ClusterReader]:
    connect = lambda: EtcdClient(etcd.endpoints, timeout=2.0)  # noqa: E731
    terms = Terms(audit=0.3)
    reader = ClusterReader(BETA, sink, connect, peer_tables, lambda _n, _c: None, terms)
    reader.budget = budget
    async with running(reader):
        yield reader


async def test_who_is_slowed_down_is_fresh_all_the_same_and_ends_in_the_truth(
    etcd: LocalEtcd, client: EtcdClient
) -> None:
    await publish(client)
    sink, budget = StateSink(), Spent()
    fill = [f"10.2.{n // 250}.{n % 250}" for n in range(FILL)]
    async with slowed(etcd, sink, budget) as reader:
        await until(lambda: reader.session.state is State.FRESH)
        for number in range(CHANGES):
            await client.put(WEB, web(*fill, f"10.2.9.{number % 250}"))
            if number % 20 == 0:
                await beat(client)
                assert reader.session.state is State.FRESH
        await client.put(WEB, web("10.2.1.77"))
        await until(lambda: list(map(text, sink.view().services["shop", "web"].backends)) == ["10.2.1.77"])
        assert budget.waits > 100
        assert reader.session.state is State.FRESH
        assert not reader.brain.drift
        assert parse("10.2.1.5") in sink.view().endpoints
