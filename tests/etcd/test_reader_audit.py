"""A reader whose watches keep silent about what happens finds it out by itself, against a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from test_mesh_reader import BETA, StateSink, beat, publish, until, web

from clustermesh.address import parse
from clustermesh.mesh.messages import Terms
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.session import State
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Service
from clustermesh.store.client import Delete, EtcdClient, Put
from clustermesh.store.digest import read_digests
from clustermesh.store.local import LocalEtcd
from clustermesh.store.methods import WATCH, Method
from clustermesh.store.operations import Digest, DigestOf
from clustermesh.store.silence import Silence
from clustermesh.store.stream import Stream
from clustermesh.wire import keys, service


class DeafClient(EtcdClient):
    """While it is `deaf`, no watch tells it of any service."""

    deaf = False

    @asynccontextmanager
    async def _deaf_stream(self, method: Method) -> AsyncIterator[Any]:
        async with super().stream(method) as stream:
            yield DeafStream(self, stream)

    def stream(self, method: Method) -> Any:
        return self._deaf_stream(method) if method is WATCH else super().stream(method)


class DeafStream:
    def __init__(self, client: DeafClient, stream: Stream) -> None:
        self._client, self._stream = client, stream
        self.write = stream.write

    async def read(self, silence: Silence, question: Any = None) -> Any:
        while True:
            response = await self._stream.read(silence, question)
            if not (self._client.deaf and any(b"/services/" in event.kv.key for event in response.events)):
                return response


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustermesh.mesh.brain.RECHECK", 0.1)


@pytest.fixture
async def reader(etcd: LocalEtcd, quick: None) -> AsyncIterator[tuple[ClusterReader, StateSink, DeafClient]]:
    sink, client = StateSink(), DeafClient(etcd.endpoints, timeout=2.0)
    reader = ClusterReader(BETA, sink, lambda: nullcontext(client), peer_tables, lambda _n, _c: None, Terms(audit=0.3))
    async with client:
        task = asyncio.create_task(reader.run())
        yield reader, sink, client
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def named(name: str) -> tuple[bytes, bytes]:
    return keys.service_key(BETA, "shop", name), service.encode(
        Service(cluster=BETA, cluster_id=2, namespace="shop", name=name)
    )


async def test_what_no_watch_told_of_is_found_and_repaired(
    client: EtcdClient, reader: tuple[ClusterReader, StateSink, DeafClient]
) -> None:
    it, sink, hearing = reader
    await publish(client)
    await client.put(*named("old"))
    await until(lambda: it.session.state is State.FRESH)
    await beat(client)
    await until(lambda: it.brain.audited)
    assert not it.brain.drift
    hearing.deaf = True
    new = Put(*named("new"))
    await client.transact([[Delete(named("old")[0]), new, Put(keys.service_key(BETA, "shop", "web"), web("10.2.1.9"))]])
    await until(lambda: it.brain.drift)
    await until(lambda: set(sink.view().services) == {("shop", "web"), ("shop", "new")})
    assert list(sink.view().services[("shop", "web")].backends) == [parse("10.2.1.9")]
    assert it.brain.drift == {"services": 2}, "what was written after the last comparison is known one by one"
    assert it.session.state is State.FRESH


async def test_changes_that_go_on_are_no_drift(
    client: EtcdClient, reader: tuple[ClusterReader, StateSink, DeafClient]
) -> None:
    it, sink, _hearing = reader
    await publish(client)
    await until(lambda: it.session.state is State.FRESH)
    audits = set[float]()
    for number in range(10_000):
        key, value = named(f"s{number % 7}")
        if number % 3:
            await client.put(key, value)
        else:
            await client.delete(key)
        audits.add(it.brain.audited)
        if len(audits) > 5:
            break
    assert len(audits) > 5
    truth = {kv.key for kv in (await client.range(keys.state_prefix("services", BETA))).kvs}
    await beat(client)
    await until(lambda: {keys.service_key(BETA, *name) for name in sink.view().services} == truth)
    assert not it.brain.drift


async def test_a_digest_is_of_a_revision_and_of_now_where_that_is_compacted(client: EtcdClient) -> None:
    first = await client.put(b"p/a", b"1")
    second = await client.put(b"p/b", b"1")
    third = await client.put(b"p/a", b"2")
    await client.put(b"q/a", b"1")
    wanted = [DigestOf(b"p/", first, 0, 9), DigestOf(b"p/", 0, second, 9), DigestOf(b"p/", 0, 0, 1)]
    last = third + 1
    assert await read_digests(client, wanted) == [
        Digest(first, 1, {b"p/a": first}),
        Digest(last, 2, {b"p/a": third}),
        Digest(last, 2, {b"p/a": third}),
    ]
    await client.compact(third)
    assert (await read_digests(client, wanted))[0] == Digest(last, 2, {b"p/a": third, b"p/b": second})
