"""An etcd of three members: the leader dies, and so does the majority."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest
from etcd_flags import QUICK_MEMBER
from mirror import PATIENCE, Mirror, answering, content
from ports import free_port

from clustermesh.errors import Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd


@pytest.fixture
async def members(make_etcd: Callable[..., LocalEtcd]) -> list[LocalEtcd]:
    peers = {name: f"http://127.0.0.1:{free_port()}" for name in ("a", "b", "c")}
    together = ["--initial-cluster=" + ",".join(f"{name}={url}" for name, url in peers.items())]
    together.append("--initial-cluster-token=members")
    own = {
        name: [f"--name={name}", f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}"]
        for name, url in peers.items()
    }
    made = [make_etcd(name, flags=[*QUICK_MEMBER, *together, *own[name]]) for name in peers]
    await asyncio.gather(*(member.start() for member in made))
    return made


@pytest.fixture
async def client(members: list[LocalEtcd], stack) -> EtcdClient:
    endpoints = [endpoint for member in members for endpoint in member.endpoints]
    return await stack.enter_async_context(EtcdClient(endpoints, timeout=2.0))


async def test_a_leader_killed_costs_no_event(members: list[LocalEtcd], client: EtcdClient) -> None:
    """Each member is killed in turn, so the leader is too; what was acknowledged is told, once."""
    await _put_until_taken(client, b"p/first")
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        for turn, member in enumerate(members):
            member.kill()
            for i in range(20):
                await _put_until_taken(client, b"p/%d/%02d" % (turn, i))
            await member.start()
        await mirror.until_table(await _content_once_told(client))
    assert len(mirror.table) == 61
    assert len(mirror.lists) == 1
    assert mirror.deletions == []


async def test_a_member_without_its_majority_is_not_listened_to(members: list[LocalEtcd], make_client) -> None:
    """It would go on answering watches with silence."""
    client = make_client(members[0], timeout=2.0)
    async with Mirror(client, b"p/", quiet=3600.0) as mirror:
        await mirror.until_listed()
        for other in members[1:]:
            os.kill(other.pid, signal.SIGSTOP)
        await mirror.until_error(Unavailable)
        with pytest.raises(Unavailable):
            await client.put(b"p/a", b"lost")
        for other in members[1:]:
            os.kill(other.pid, signal.SIGCONT)
        await answering(client)
        await _put_until_taken(client, b"p/b")
        await mirror.until(lambda: b"p/b" in mirror.table)
    assert any("no leader" in str(error) for error in mirror.errors)
    assert mirror.deletions == []


async def _put_until_taken(client: EtcdClient, key: bytes) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await client.put(key, b"x")
                return
            except Unavailable:
                await asyncio.sleep(0.05)


async def _content_once_told(client: EtcdClient) -> dict[bytes, bytes]:
    """A member that has come back may be followed by another election."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await content(client, b"p/")
            except Unavailable:
                await asyncio.sleep(0.05)
