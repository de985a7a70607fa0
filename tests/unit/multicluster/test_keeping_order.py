"""Names that wait to be settled: none for ever, and the newest not behind thousands of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clustermesh.kube.access import Access
from clustermesh.kube.hearing import Listed
from clustermesh.model import Cluster, ExportPort, ServiceExport
from clustermesh.multicluster import documents, keeping
from clustermesh.multicluster.documents import Write
from clustermesh.multicluster.keeping import Keeper, Services
from clustermesh.multicluster.turns import Turns
from clustermesh.store import follower


def waiting(number: int, *, ours: bool = False) -> Turns:
    turns = Turns()
    turns.touch([("begun" if ours else "old", str(n)) for n in range(number)], ours=ours)
    return turns


def test_a_change_among_thousands_is_settled_at_once_and_who_changes_always_keeps_nobody_waiting() -> None:
    turns, seen = waiting(5000), set[tuple[str, str]]()
    for turn in range(200):
        turns.touch(("busy", str(n)) for n in range(100))
        turns.touch([("a new one", str(turn))])
        found = turns.take(50)
        assert (len(found), ("a new one", str(turn)) in found) == (50, True)
        seen.update(found)
    assert len([each for each in seen if each[0] == "old"]) == 5000


def test_few_are_all_taken_once() -> None:
    for number in (0, 1, 49, 50, 51):
        turns = waiting(number)
        first, second = turns.take(50), turns.take(50)
        assert (len(first), {*first, *second}) == (min(number, 50), {("old", str(n)) for n in range(number)})
        assert len(first) + len(second) == number
        assert not turns


def test_what_comes_back_of_own_writes_is_taken_in_its_order_and_keeps_no_change_waiting() -> None:
    turns, finished, olds = waiting(5000), list[str](), 0
    turns.touch([("begun", str(n)) for n in range(5000)], ours=True)
    for turn in range(100):
        turns.touch([("a new one", str(turn))])
        turns.touch([("begun", str(n)) for n in (4999, 4998)], ours=True)  # told of again: it keeps its place
        found = turns.take(50)
        assert (len(found), ("a new one", str(turn)) in found) == (50, True)
        finished += [name for kind, name in found if kind == "begun"]
        olds += sum(kind == "old" for kind, _ in found)
    assert finished == [str(n) for n in range(2500)]
    assert olds == 100 * 24
    assert len(waiting(5000, ours=True).take(50)) == 50, "who has no changes works on what is begun"


class _Brain:
    """Knows nothing; its list is there once it is `complete`."""

    def __init__(self) -> None:
        self.known: dict[object, object] = {}
        self.complete = False

    def __class_getitem__(cls, _of: object) -> type[_Brain]:
        return cls


async def test_a_last_list_that_is_empty_begins_what_has_waited_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited, name, late = asyncio.Event(), ("shop", "cart"), asyncio.Event()

    async def follow(_client: object, resource: Any, brain: _Brain) -> AsyncIterator[Listed[Any, Any]]:
        if resource.plural == documents.SERVICES.plural:
            await late.wait()
        brain.complete = True
        first = {name: {"metadata": {"name": "cart"}}} if resource.plural == "serviceexports" else {}
        yield Listed(first)
        await asyncio.Event().wait()

    async def copies(*_: object, **__: object) -> AsyncIterator[follower.Listed]:
        yield follower.Listed([], 1)
        await asyncio.Event().wait()

    async def settle(_keeper: Keeper, settled: tuple[str, str]) -> None:
        assert settled == name
        waited.set()

    monkeypatch.setattr(keeping, "Brain", _Brain)
    monkeypatch.setattr(keeping, "follow", follow)
    monkeypatch.setattr(keeping.etcd, "follow", copies)
    monkeypatch.setattr(Keeper, "_settle", settle)
    source: Any = SimpleNamespace(refs=lambda _kind: (), snapshot=SimpleNamespace(services={}))
    task = Services(access=Access("http://x"), cluster=Cluster(name="alpha", id=1), source=source, peers=tmp_path)
    anything: Any = None
    keeper = Keeper(task, anything, anything, lambda _said: None, "v1alpha1")
    running = [asyncio.create_task(each) for each in keeper.tasks()]
    try:
        while keeper._news.is_set() or not keeper._turns:  # all that came before the last list was looked at, too early
            await asyncio.sleep(0.01)
        assert not waited.is_set()
        late.set()
        async with asyncio.timeout(20):
            await waited.wait()
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def merged(held: Any, patch: Any) -> Any:
    """As RFC 7386 has it."""
    if not isinstance(patch, dict):
        return patch
    whole = dict(held) if isinstance(held, dict) else {}
    for key, value in patch.items():
        whole[key] = merged(whole.get(key), value)
    return {key: value for key, value in whole.items() if value is not None}


async def test_an_import_is_whole_after_one_look_whatever_is_heard_of_it_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held, told, name = dict[tuple[str, tuple[str, str]], Any](), list[str](), ("shop", "cart")

    async def write(_keeper: Keeper, each: Write) -> Any:
        told.append(f"{each.method} {each.place.plural}{each.part}")
        at = each.place.plural, each.name
        held[at] = merged(merged(held.get(at), each.body), {"metadata": {"uid": at[0]}})
        if at[0] == "services":
            given = {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"]}
            held[at] = merged(held[at], {"spec": given})
        return held[at]

    port = ExportPort(port=80, name="http")
    export = ServiceExport(
        cluster="beta", namespace="shop", name="cart", created=1, ports=(port,), ip_families=("IPv4",)
    )
    monkeypatch.setattr(Keeper, "_write", write)
    source: Any = SimpleNamespace(refs=lambda _kind: (), get=lambda _ref: None, takes_part=lambda _namespace: True)
    task = Services(access=Access("http://x"), cluster=Cluster(name="alpha", id=1), source=source, peers=tmp_path)
    anything: Any = None
    keeper = Keeper(task, anything, anything, lambda _said: None, "v1alpha1")
    monkeypatch.setattr(keeper._copies, "exports", lambda _name, _view: [export])
    await keeper._settle(name)
    assert keeper._failed.problems == {}
    assert held["serviceimports", name]["spec"]["ips"] == ["10.96.0.7"]
    assert told[-1] == "PATCH serviceimports/status"
    assert sum(each.endswith("/status") for each in told) == 1, "what is said of it is said once"
