"""Whoever is removed hears nothing more over what it had open; everybody else comes back and misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
from apiserver_bed import PATIENCE, Bed, manifests, page, values
from msgspec.structs import replace

from clustermesh.apiserver.users import Users
from clustermesh.errors import Refused
from clustermesh.own_cluster import of_folder
from clustermesh.standalone.users_file import add_user, remove_user
from clustermesh.store.follow import Changed, Interrupted, Listed, Put, follow
from clustermesh.wire import keys

CART = keys.service_key("alpha", "shop", "cart")
OWN = ("root", "admin-alpha", "local-alpha", "remote")


@pytest.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    """Complete, the API server in a process of its own: its own connections are its process'."""
    made = Bed(tmp_path)
    made.write("shop.yaml", manifests("10.1.0.5"))
    for name in ("remote-beta", "remote-gamma"):
        add_user(made.context.users_file, name)
    async with made:
        await made.etcd.start()
        async with made.child():
            await made.until_synced()
            await made.until_users(*OWN, "remote-beta", "remote-gamma")
            yield made


class Listener:
    """A peer that follows the shared services."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.lists = 0
        self.refused = False
        self.news = asyncio.Condition()

    async def run(self, bed: Bed, name: str, common_name: str | None) -> None:
        async with bed.client_as(name, common_name) as client, aclosing(follow(client, CART)) as items:
            async for item in items:
                async with self.news:
                    self._take(item)
                    self.news.notify_all()

    def _take(self, item: Listed | Changed | Interrupted) -> None:
        if isinstance(item, Interrupted):
            self.refused |= isinstance(item.error, Refused)
            return
        self.lists += isinstance(item, Listed)
        self.values += [event.kv.value for event in item.events if isinstance(event, Put)]

    def hears(self, text: bytes) -> bool:
        return any(text in value for value in self.values)

    async def until_hears(self, text: bytes) -> None:
        async with asyncio.timeout(PATIENCE), self.news:
            await self.news.wait_for(lambda: self.hears(text))

    async def until_refused(self) -> None:
        async with asyncio.timeout(PATIENCE), self.news:
            await self.news.wait_for(lambda: self.refused)


@asynccontextmanager
async def listening(bed: Bed, *names: tuple[str, str | None]) -> AsyncIterator[list[Listener]]:
    """One for each certificate and its common name, all of them hearing."""
    listeners = [Listener() for _ in names]
    async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
        for listener, name in zip(listeners, names, strict=True):
            stack.callback(group.create_task(listener.run(bed, *name)).cancel)
        for listener in listeners:
            await listener.until_hears(b"10.1.0.5")
        yield listeners


async def test_a_removed_user_hears_nothing_more_over_a_watch_from_before(bed: Bed) -> None:
    peers = ("beta", "remote-beta"), ("gamma", "remote-gamma"), ("local", None)
    async with listening(bed, *peers) as (revoked, other, agent):
        remove_user(bed.context.users_file, "remote-beta")
        await revoked.until_refused()
        bed.write("shop.yaml", manifests("10.1.0.77"))
        await other.until_hears(b"10.1.0.77")
        await agent.until_hears(b"10.1.0.77")
        assert not revoked.hears(b"10.1.0.77")
        assert (other.lists, agent.lists) == (1, 1), "they went on where they were"
    status, text = await page(bed, "/readyz")
    assert (status, text.splitlines()[0]) == (200, "ok")


async def test_the_api_server_stays_ready_while_it_cuts_the_others(bed: Bed) -> None:
    async with listening(bed, ("beta", "remote-beta")) as (revoked,):
        answers = []
        remove_user(bed.context.users_file, "remote-beta")
        while not revoked.refused:
            answers.append(await page(bed, "/readyz"))
        answers += [await page(bed, "/readyz") for _ in range(20)]
    assert {status for status, _ in answers} == {200}


class Died(Exception):
    """As by SIGKILL."""


class DiesBeforeItCuts(Users):
    def _cut_off(self) -> None:
        raise Died


async def test_an_api_server_that_dies_before_it_cuts_leaves_that_to_the_next_one(bed: Bed) -> None:
    async with listening(bed, ("beta", "remote-beta")) as (revoked,):
        await bed.kill_child()
        remove_user(bed.context.users_file, "remote-beta")
        with pytest.raises(Died):
            await DiesBeforeItCuts(bed.client, of_folder(bed.context), lambda: None).run()
        await bed.until_users(*OWN, "remote-gamma")
        assert not revoked.refused
        async with bed.child():
            await revoked.until_refused()
            await bed.until(lambda found: not values(found, keys.REVOKED))


async def test_where_nothing_can_be_cut_a_person_is_told_to(tmp_path: Path) -> None:
    async with Bed(tmp_path) as bed:
        await bed.etcd.start()
        nothing_listens_there = replace(of_folder(bed.context), endpoints=("https://127.0.0.1:1",))
        users = Users(bed.client, nothing_listens_there, lambda: None)
        add_user(bed.context.users_file, "remote-beta")
        running = asyncio.create_task(users.run())
        await bed.until_users(*OWN, "remote-beta")
        remove_user(bed.context.users_file, "remote-beta")
        async with asyncio.timeout(PATIENCE):
            while not users.open:
                await asyncio.sleep(0.02)
        running.cancel()
    assert users.open.startswith("remote-beta: removed, and may still hear")
    assert "nobody listens on port 1" in users.open
    assert "restart etcd" in users.open
