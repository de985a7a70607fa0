"""Hundreds of readers of one etcd, which is killed and started again, or stopped for a while: all of them come back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from typing import Any

import pytest
from test_mesh_reader import BETA, WEB, publish, until, web

from clustermesh.address import Address, parse
from clustermesh.mesh.pace import Pace
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.state import KINDS
from clustermesh.mesh.tables import peer_tables
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd

READERS = 500


class Tables:
    """A sink that holds what it is told, and counts what it loses."""

    def __init__(self) -> None:
        self.held: dict[str, dict[Any, Any]] = {}
        self.removed = 0

    def put(self, _cluster: str, kind: str, name: Any, value: Any, _revision: int) -> None:
        self.held.setdefault(kind, {})[name] = value

    def remove(self, _cluster: str, kind: str, name: Any, _revision: int) -> None:
        self.removed += self.held.get(kind, {}).pop(name, None) is not None

    def refuse(self, _cluster: str, what: str, why: str) -> None:
        raise AssertionError(f"{what}: {why}")

    def accept(self, cluster: str, what: str) -> None:
        pass

    def count_unnamed(self, cluster: str, kind: str, number: int) -> None:
        pass

    def listed(self, cluster: str, kind: str, *, whole: bool = True) -> None:
        pass

    def drain(self, _cluster: str, kinds: Sequence[str] = KINDS) -> None:
        raise AssertionError(f"{kinds} are drained")

    def names(self, _cluster: str, kind: str) -> Set[Any]:
        return self.held.get(kind, {}).keys()

    @property
    def backends(self) -> Set[Address]:
        return self.held["services"]["shop", "web"].backends.keys()


@asynccontextmanager
async def many_readers(etcd: LocalEtcd) -> AsyncIterator[list[tuple[ClusterReader, Tables]]]:
    """READERS of `etcd`, each on a connection of its own; fresh."""
    pace, readers = Pace(), list[tuple[ClusterReader, Tables]]()
    for _ in range(READERS):
        sink = Tables()
        connect = lambda: EtcdClient(etcd.endpoints, timeout=10.0)  # noqa: E731
        readers.append((ClusterReader(BETA, sink, connect, peer_tables, lambda _n, _c: None, pace=pace), sink))
    tasks = [asyncio.create_task(reader.run()) for reader, _ in readers]
    try:
        await until(lambda: all(reader.session.state is State.FRESH for reader, _ in readers), 120)
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(600)
async def test_hundreds_come_back_to_an_etcd_that_was_killed_or_stopped_and_know_the_truth(
    etcd: LocalEtcd, client: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clustermesh.mesh.reader.QUIET", 2.0)
    await publish(client)
    async with many_readers(etcd) as readers:

        async def all_know(address: str) -> None:
            await client.put(WEB, web(address))
            await until(lambda: all(sink.backends == {parse(address)} for _, sink in readers), 120)

        await all_know("10.2.1.6")
        etcd.kill()
        await until(lambda: all(reader.session.state is State.STALE for reader, _ in readers), 120)
        await etcd.start()
        await all_know("10.2.1.7")
        assert etcd.pid is not None
        os.kill(etcd.pid, signal.SIGSTOP)
        try:
            await until(lambda: any(reader.session.state is State.STALE for reader, _ in readers), 120)
        finally:
            os.kill(etcd.pid, signal.SIGCONT)
        await all_know("10.2.1.8")
        await until(lambda: all(reader.session.state is State.FRESH for reader, _ in readers), 120)
        assert not any(sink.removed for _, sink in readers)
