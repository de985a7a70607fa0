"""The reader of a cluster where no etcd is needed: what is refused, what a removed one may still do, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clustermesh.errors import Unavailable
from clustermesh.mesh.reader import ClusterReader
from clustermesh.mesh.refusals import MOST_NAMED
from clustermesh.mesh.session import State
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import Table, peer_tables
from clustermesh.model import Cluster, ClusterConfig, Service
from clustermesh.store.follow import Changed, Deleted, Listed, Put
from clustermesh.store.operations import KeyValue
from clustermesh.wire import keys, service

BETA = Cluster(name="beta", id=2)
CONFIG = ClusterConfig(id=2, synced_canaries=True)


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


def table(kind: str) -> Table:
    return next(resource for resource in peer_tables("beta", CONFIG) if resource.kind == kind)


def put(key: bytes, value: bytes = b"") -> Put:
    return Put(KeyValue(key=key, value=value))


def web() -> Put:
    value = service.encode(Service(cluster="beta", cluster_id=2, namespace="n", name="web"))
    return put(keys.service_key("beta", "n", "web"), value)


def test_garbage_that_is_deleted_is_refused_no_more(sink: Sink) -> None:
    reader, services = make_reader(sink), table("services")
    for number in range(5):
        key = services.prefix + b"no-name-%d" % number
        reader._take(services, BETA, Changed([put(key)], 2))
        reader._take(services, BETA, Changed([Deleted(key)], 3))
    assert not sink.refusals("beta")


def test_garbage_that_a_new_list_does_not_hold_is_refused_no_more(sink: Sink) -> None:
    reader, services = make_reader(sink), table("services")
    sink.refuse("beta", "cilium/state/nodes/v1/beta/odd", "another table's")
    reader._take(services, BETA, Listed([put(services.prefix + b"gone"), put(services.prefix + b"still")], 2))
    anew = Listed([put(services.prefix + b"still")], 9)
    reader._take(services, BETA, anew)
    reader._forget_unlisted(services, anew)
    assert set(sink.names("beta", "refused")) == {
        "cilium/state/nodes/v1/beta/odd",
        "cilium/state/services/v1/beta/still",
    }


def test_a_refused_key_of_any_length_makes_a_short_line_and_two_of_them_two(sink: Sink) -> None:
    reader, services = make_reader(sink), table("services")
    long = services.prefix + b"x" * 100_000
    reader._take(services, BETA, Listed([put(long + b"1"), put(long + b"2")], 2))
    refused = sink.refusals("beta").named(9)
    assert len(refused) == 2
    assert sum(len(what) + len(why) for what, why in refused.items()) < 3000
    reader._take(services, BETA, Changed([Deleted(long + b"1")], 3))
    assert len(sink.refusals("beta")) == 1


def test_what_is_refused_of_one_cluster_has_an_end(sink: Sink) -> None:
    for number in range(MOST_NAMED + 10):
        sink.refuse("beta", f"cilium/{number}", "no")
    sink.refuse("beta", "cilium/0", "for another reason")
    assert len(sink.refusals("beta")) == MOST_NAMED
    assert sink.refusals("beta").named(1)["cilium/0"] == "for another reason"


def test_a_removed_cluster_says_nothing_any_more(sink: Sink) -> None:
    """Its tasks are cancelled, but what they had been woken for may still run."""
    reader, services = make_reader(sink), table("services")
    reader.removed()
    reader._take(services, BETA, Changed([web()], 2))
    reader._fall_behind("services", "the connection was closed")
    reader._caught_up("services")
    assert "beta" not in sink.views
    assert reader.session.state is State.REMOVED


def test_what_is_still_so_is_logged_and_counted_once(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt fails for each table; a status that changed with each would be written to etcd by every node."""
    reader = make_reader(sink)
    reader.restored(CONFIG)
    reader._fall_behind("nodes", "connection refused")
    once = reader.session
    for _ in range(50):
        for kind in ("nodes", "services"):
            reader._fall_behind(kind, "connection refused")
    assert len(caplog.records) == 2
    assert reader.session.failures == once.failures + 1, "the other table's"
    before = reader.session
    for _ in range(50):
        reader._lost(reader.session.error)
    assert reader.session == before
    reader._caught_up("nodes")
    reader._caught_up("services")
    assert reader.session.state is State.FRESH
    reader._fall_behind("nodes", "connection refused")
    assert reader.session.state is State.STALE
    assert reader.session.failures == before.failures + 1


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
    reader._read = lambda _client: asyncio.Event().wait()  # type: ignore[assignment,return-value,method-assign]
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
