"""Users and roles on a real etcd, told apart by their certificates alone."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mirror import Mirror
from pki import Authority

from clustermesh.errors import Refused
from clustermesh.store import auth
from clustermesh.store.auth import Access, Grant
from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.local import LocalEtcd

HEARTBEAT = b"cilium/.heartbeat"
REMOTE = [
    Grant(prefix=HEARTBEAT),
    Grant(prefix=b"cilium/state/"),
    Grant(key=b"cilium/cluster-config/alpha"),
    Grant(prefix=b"cilium/synced/alpha/"),
]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
async def guarded(authority: Authority, make_etcd: Callable[..., LocalEtcd]) -> LocalEtcd:
    """An etcd that asks who is there: `admin-alpha` may do everything, `remote-beta` what Cilium's peers may."""
    server = make_etcd(tls=authority.issue("server", "127.0.0.1"))
    await server.start()
    async with EtcdClient(server.endpoints, authority.issue("admin-alpha")) as admin:
        await auth.ensure_role(admin, "remote", REMOTE)
        await auth.ensure_role(admin, "root", [])
        await auth.ensure_user(admin, "admin-alpha", "root")
        await auth.ensure_user(admin, "remote-beta", "remote")
        await auth.enable(admin)
    return server


@pytest.fixture
def admin(guarded: LocalEtcd, authority: Authority, make_client) -> EtcdClient:
    return make_client(guarded, authority.issue("admin-alpha"))


@pytest.fixture
def remote(guarded: LocalEtcd, authority: Authority, make_client) -> EtcdClient:
    return make_client(guarded, authority.issue("remote-beta"))


async def test_a_remote_reads_what_it_is_granted_and_nothing_else(admin: EtcdClient, remote: EtcdClient) -> None:
    config = b"cilium/cluster-config/alpha"
    await admin.transact([Put(HEARTBEAT, b"now"), Put(b"cilium/state/x", b"1"), Put(config, b"{}")])
    assert [kv.key for kv in (await remote.range(HEARTBEAT)).kvs] == [HEARTBEAT]
    assert [kv.key for kv in (await remote.range(b"cilium/state/")).kvs] == [b"cilium/state/x"]
    found = await remote.get(config)
    assert found is not None
    for foreign in (b"cilium/", b"cilium/cluster-config/", b"cilium/cache/", b""):
        with pytest.raises(Refused, match="permission denied"):
            await remote.range(foreign)
    with pytest.raises(Refused, match="permission denied"):
        await remote.get(b"cilium/cluster-config/beta")


async def test_a_remote_writes_nothing_not_even_what_it_reads(admin: EtcdClient, remote: EtcdClient) -> None:
    await admin.put(b"cilium/state/x", b"1")
    for attempt in (
        remote.put(b"cilium/state/x", b"2"),
        remote.delete(b"cilium/state/x"),
        remote.transact([Put(b"cilium/state/x", b"2")]),
        remote.swap(b"cilium/state/y", 0, b"2"),
        auth.ensure_user(remote, "remote-beta", "root"),
    ):
        with pytest.raises(Refused, match="permission denied"):
            await attempt
    found = await admin.get(b"cilium/state/x")
    assert found is not None
    assert found.value == b"1"


async def test_a_remote_follows_what_it_may_and_is_told_where_it_may_not(admin: EtcdClient, remote: EtcdClient) -> None:
    async with Mirror(remote, b"cilium/state/") as mirror, Mirror(remote, b"cilium/cache/") as denied:
        await denied.until_error(Refused)
        await admin.put(b"cilium/state/x", b"1")
        await mirror.until_table({b"cilium/state/x": b"1"})
        assert mirror.errors == []
        assert denied.lists == []
        await auth.ensure_role(admin, "remote", [*REMOTE, Grant(prefix=b"cilium/cache/")])
        await denied.until_listed()


async def test_a_watch_that_is_refused_after_its_list_is_refused_too(
    admin: EtcdClient, remote: EtcdClient, monkeypatch
) -> None:
    await admin.put(b"cilium/cache/x", b"1")
    listing = await admin.range(b"cilium/cache/")

    async def list_with_more_rights(*_: object, **__: object):
        return listing

    monkeypatch.setattr(remote, "range", list_with_more_rights)
    async with Mirror(remote, b"cilium/cache/") as mirror:
        await mirror.until_error(Refused)
    assert "permission denied" in str(mirror.errors[0])


async def test_an_unknown_name_and_a_removed_one_are_refused(
    guarded: LocalEtcd, authority: Authority, admin: EtcdClient, remote: EtcdClient, make_client
) -> None:
    stranger = make_client(guarded, authority.issue("remote-gamma"))
    with pytest.raises(Refused):
        await stranger.range(b"cilium/state/")
    await auth.ensure_user(admin, "remote-gamma", "remote")
    assert (await stranger.range(b"cilium/state/")).kvs == []
    await auth.remove_user(admin, "remote-gamma")
    await auth.remove_user(admin, "remote-gamma")
    with pytest.raises(Refused):
        await stranger.range(b"cilium/state/")
    assert await auth.list_users(admin) == ["admin-alpha", "remote-beta", "root"]


async def auth_revision(server: LocalEtcd) -> int:
    """How often users and roles were changed: etcd keeps it in its file, the newest of several copies there counts."""
    await server.stop()
    kept = re.findall(rb"authRevision(.{8})", (server.data_dir / "member/snap/db").read_bytes(), re.DOTALL)
    await server.start()
    return max(int.from_bytes(each, "big") for each in kept)


async def test_everything_twice_changes_nothing_the_second_time(
    guarded: LocalEtcd, authority: Authority, remote: EtcdClient
) -> None:
    before = await auth_revision(guarded)
    for _ in range(2):
        async with EtcdClient(guarded.endpoints, authority.issue("admin-alpha")) as admin:
            await auth.ensure_role(admin, "remote", REMOTE)
            await auth.ensure_user(admin, "remote-beta", "remote")
            await auth.enable(admin)
    assert await auth_revision(guarded) == before
    async with EtcdClient(guarded.endpoints, authority.issue("admin-alpha")) as admin:
        await auth.ensure_role(admin, "remote", REMOTE[1:])
    assert await auth_revision(guarded) > before
    await remote.range(b"cilium/state/")


async def test_a_role_permits_exactly_what_was_last_said(admin: EtcdClient, remote: EtcdClient) -> None:
    await auth.ensure_role(admin, "remote", [Grant(prefix=b"a/", access=Access.READWRITE), Grant(key=b"b")])
    await remote.put(b"a/x", b"1")
    await remote.get(b"b")
    with pytest.raises(Refused):
        await remote.range(b"cilium/state/")
    await auth.ensure_role(admin, "remote", [Grant(prefix=b"a/"), Grant(key=b"b", access=Access.READWRITE)])
    with pytest.raises(Refused):
        await remote.put(b"a/x", b"1")
    await remote.put(b"b", b"1")


async def test_a_user_has_exactly_the_role_last_said(admin: EtcdClient, remote: EtcdClient) -> None:
    await auth.ensure_role(admin, "writer", [Grant(prefix=b"w/", access=Access.READWRITE)])
    await auth.ensure_user(admin, "remote-beta", "writer")
    await remote.put(b"w/x", b"1")
    with pytest.raises(Refused):
        await remote.range(b"cilium/state/")


async def test_reads_go_on_while_users_come_and_go(admin: EtcdClient, remote: EtcdClient) -> None:
    """Every change of a user outdates the permission etcd has just found for a call: that is no refusal."""
    await admin.put(b"cilium/state/x", b"1")

    async def come_and_go() -> None:
        for i in range(30):
            await auth.ensure_user(admin, f"remote-{i % 3}", "remote")
            await auth.remove_user(admin, f"remote-{i % 3}")

    changes = asyncio.create_task(come_and_go())
    reads = 0
    while not changes.done():
        assert await remote.get(b"cilium/state/x") is not None
        reads += 1
    await changes
    assert reads > 10


async def test_auth_outlives_a_restart(guarded: LocalEtcd, authority: Authority, make_client) -> None:
    await guarded.stop()
    await guarded.start()
    remote = make_client(guarded, authority.issue("remote-beta"))
    await remote.range(b"cilium/state/")
    with pytest.raises(Refused):
        await remote.put(b"cilium/state/x", b"1")


def test_a_grant_is_for_a_prefix_or_a_key() -> None:
    with pytest.raises(ValueError, match="prefix or a key"):
        Grant()
    with pytest.raises(ValueError, match="prefix or a key"):
        Grant(prefix=b"a", key=b"a")
