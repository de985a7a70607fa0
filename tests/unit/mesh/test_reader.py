"""The reader of a cluster where no etcd is needed: what is refused, what one bad entry does, how a reader ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.errors import Unavailable
from clustermesh.mesh.messages import Attested, Configured, Connected, Event, Heard
from clustermesh.mesh.reader import ClusterReader, parts
from clustermesh.mesh.refusals import Reason
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import ClusterConfig, Service
from clustermesh.store.follow import Changed, Deleted, Interrupted, Listed, Put
from clustermesh.store.operations import KeyValue
from clustermesh.wire import cluster_config, keys, service

CONFIG = ClusterConfig(id=2, synced_canaries=True)
SERVICES = keys.state_prefix("services", "beta")


class Sink(MeshState):
    """The mesh state, which takes no revisions."""

    def put(self, cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        super().put(cluster, kind, name, value)

    def remove(self, cluster: str, kind: str, name: Any, revision: int = 0) -> None:
        super().remove(cluster, kind, name)


@pytest.fixture
def sink() -> Sink:
    return Sink("alpha")


def make_reader(sink: Sink, connect: Any = None) -> ClusterReader:
    return ClusterReader("beta", sink, connect, peer_tables, lambda _n, _c: None)


def heard(*events: Put | Deleted) -> list[Heard]:
    """What a fresh reader of beta hears up to these changes of its services."""
    return [
        Heard(b"cilium/synced/beta/", Listed([put(keys.canary_key("beta", "services"))], 1)),
        Heard(keys.HEARTBEAT, Changed([put(keys.HEARTBEAT)], 2)),
        Heard(SERVICES, Listed([], 2)),
        Heard(SERVICES, Changed(events, 3)),
    ]


def put(key: bytes, value: bytes = b"") -> Put:
    return Put(KeyValue(key=key, value=value))


async def take_in(reader: ClusterReader, *events: Event) -> None:
    for event in (Connected(), Configured(CONFIG), *events):
        await reader._take_in(reader._hear(event))


async def test_a_refused_key_of_any_length_makes_a_short_line_and_two_of_them_two(sink: Sink) -> None:
    long = SERVICES + b"x" * 100_000
    reader = make_reader(sink)
    await take_in(reader, *heard(put(long + b"1"), put(long + b"2")))
    refused = sink.refusals("beta").named(9)
    assert len(refused) == 2
    assert sum(len(what) + len(why) for what, why in refused.items()) < 3000
    await reader._take_in(reader._hear(Heard(SERVICES, Changed([Deleted(long + b"1")], 4))))
    assert len(sink.refusals("beta")) == 1


async def test_all_that_is_refused_is_counted_and_some_of_it_is_named(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clustermesh.mesh.reading.MOST_NAMED", 3)
    bad, reader = [SERVICES + b"?%d" % number for number in range(10)], make_reader(sink)
    await take_in(reader, *heard(*map(put, bad), put(bad[0]), put(bad[9])))
    refusals = sink.refusals("beta")
    assert (refusals.counts[Reason.GARBLED], len(refusals), len(list(refusals.listed()))) == (10, 10, 3)
    await reader._take_in(reader._hear(Heard(SERVICES, Changed([Deleted(bad[0]), Deleted(bad[9])], 4))))
    assert refusals.counts[Reason.GARBLED] == 8
    anew = make_reader(sink)
    await take_in(anew, *heard()[:-2], Heard(SERVICES, Listed(list(map(put, bad[:5])), 5)))
    assert refusals.counts[Reason.GARBLED] == 5
    await anew._take_in(anew._hear(Heard(SERVICES, Listed([put(bad[7])], 6))))
    assert (refusals.counts, list(refusals.listed())) == ({Reason.GARBLED: 1}, [(Reason.GARBLED, bad[7].decode(), ANY)])


async def test_no_number_of_refused_keys_fills_the_memory(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clustermesh.mesh.reading.MOST_NAMED", 3)
    monkeypatch.setattr("clustermesh.mesh.reading.MOST_COUNTED", 4)
    reader = make_reader(sink)
    await take_in(reader, *heard(*(put(SERVICES + b"?%d" % number) for number in range(100))))
    assert sink.refusals("beta").counts[Reason.GARBLED] == 7
    reading = reader.brain._tables[SERVICES]
    await reader._take_in(reader._hear(Heard(SERVICES, Changed([Deleted(SERVICES + b"?99")], 4))))
    assert not reading.tally.is_lost, "it may well have been heard of"


@given(st.lists(st.sampled_from([0, 1, 1000, 40_000, 70_000]), max_size=200), st.booleans(), st.booleans())
def test_what_is_heard_is_cut_into_parts_that_are_soon_taken_in(sizes: list[int], listed: bool, more: bool) -> None:
    events = [put(b"%d" % number, b"x" * size) for number, size in enumerate(sizes)]
    whole = list(parts(Listed(events, 7, more) if listed else Changed(events, 7)))
    assert [event for part in whole for event in part.events] == events
    assert all(len(part.events) <= 64 and sum(len(e.kv.value) for e in part.events[:-1]) < 1 << 16 for part in whole)
    assert {part.revision for part in whole} == {7}
    if listed:
        assert [part.more for part in whole] == [True] * (len(whole) - 1) + [more]


async def test_an_entry_that_the_sink_cannot_take_is_refused_and_the_next_ones_are_taken(sink: Sink) -> None:
    def put_unless_poison(cluster: str, kind: str, name: Any, value: Any, revision: int = 0) -> None:
        if name == ("n", "poison"):
            raise ZeroDivisionError
        MeshState.put(sink, cluster, kind, name, value)

    sink.put = put_unless_poison  # type: ignore[method-assign]
    entries = [
        put(
            keys.service_key("beta", "n", name),
            service.encode(Service(cluster="beta", cluster_id=2, namespace="n", name=name)),
        )
        for name in ("poison", "web")
    ]
    reader = make_reader(sink)
    await take_in(reader, *heard(*entries))
    assert list(sink.views["beta"].services) == [("n", "web")]
    assert "ZeroDivisionError" in str(sink.refusals("beta").named(9))
    gone = Deleted(keys.service_key("beta", "n", "poison"), mod_revision=4)
    await reader._take_in(reader._hear(Heard(SERVICES, Changed([gone], 4))))
    await reader._take_in(reader._hear(Attested({keys.HEARTBEAT: 1, keys.canary_key("beta", "services"): 1}, 4)))
    assert not sink.refusals("beta"), "what is gone is refused no more"


async def test_what_is_still_so_is_logged_and_counted_once(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt fails for each table; a status that changed with each would be written to etcd by every node."""
    reader = make_reader(sink)
    reader.restored(CONFIG)
    await take_in(reader, *heard())
    cut = Interrupted(Unavailable("connection refused"))
    for _ in range(50):
        for prefix in (SERVICES, keys.state_prefix("nodes", "beta")):
            await reader._take_in(reader._hear(Heard(prefix, cut)))
    assert reader.session.failures == 2
    assert len(caplog.records) == 2


async def test_a_reader_that_fails_while_it_is_cancelled_ends(sink: Sink) -> None:
    cancelled = asyncio.Event()

    async def fail_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Unavailable("the connection was closed under us") from None

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail_when_cancelled())
            cancelled.set()
            yield None

    reader = make_reader(sink, connect)
    reader._read = lambda _client, _following: asyncio.Event().wait()  # type: ignore[assignment,return-value,method-assign]
    task = asyncio.create_task(reader.run())
    await cancelled.wait()
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=20)
    assert task in done


async def test_a_bug_that_one_cluster_finds_is_an_error_of_that_cluster(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    tried = asyncio.Semaphore(0)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        tried.release()
        raise KeyError("nobody thought of this")
        yield None

    reader = make_reader(sink, connect)
    task = asyncio.create_task(reader.run())
    async with asyncio.timeout(20):
        for _ in range(2):
            await tried.acquire()
    assert not task.done()
    assert "nobody thought of this" in reader.session.error
    assert "reading it failed" in caplog.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class OneKey:
    """An etcd client that knows the configuration and nothing else."""

    async def get(self, _key: bytes) -> KeyValue:
        return KeyValue(b"", cluster_config.encode(CONFIG))


async def test_each_attempt_judges_the_configuration_also_one_that_was_restored_and_then_only_another(
    sink: Sink,
) -> None:
    judged: list[str] = []
    reader = ClusterReader("beta", sink, lambda: None, peer_tables, lambda name, _c: judged.append(name))  # type: ignore[arg-type,return-value]
    reader.restored(CONFIG)
    reader._hear(Connected())
    (first,) = [event async for event in reader._ask(OneKey())]  # type: ignore[arg-type]
    assert judged == ["beta"]
    reader._hear(first)
    assert [event async for event in reader._ask(OneKey())] == [first]  # type: ignore[arg-type]
    assert judged == ["beta"]
