"""An external etcd that knows its users by name and password: logging in, tokens that end, words that are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from apiserver_bed import manifests
from mesh_bed import BETA, Recorder
from mirror import Mirror, content
from pki import Authority
from ports import free_port

from clustermesh.apiserver.server import Timing, run
from clustermesh.errors import Refused, Unavailable
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.shared_clients import client_of
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Cluster
from clustermesh.own_cluster import Settings
from clustermesh.sources.folder import FolderSource
from clustermesh.store import auth, methods
from clustermesh.store import rpc_pb2 as pb
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.login import Login
from clustermesh.store.tls import Tls

ROOT = Login("root", "secret")
ALPHA = Login("alpha", "of alpha")


async def secure(client: EtcdClient) -> None:
    """Have etcd ask for passwords, of root and of alpha, who may use p/."""
    call = client.call
    await call(methods.ROLE_ADD, pb.AuthRoleAddRequest(name="root"))
    await auth.ensure_role(client, "alpha", [auth.Grant(prefix=b"p/", access=auth.Access.READWRITE)])
    for login in (ROOT, ALPHA):
        await call(methods.USER_ADD, pb.AuthUserAddRequest(name=login.name, password=login.password))
        await call(methods.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user=login.name, role=login.name))
    await call(methods.AUTH_ENABLE, pb.AuthEnableRequest())


@pytest.fixture
async def etcd(make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]) -> LocalEtcd:
    """Its tokens end after two seconds in which nobody used them."""
    made = make_etcd(flags=["--auth-token-ttl=2"])
    await made.start()
    await secure(make_client(made))
    return made


async def test_who_logs_in_has_the_rights_of_the_user_and_no_more(etcd: LocalEtcd, make_client) -> None:
    client = make_client(etcd, login=ALPHA)
    await client.put(b"p/a", b"1")
    assert (await client.get(b"p/a")).value == b"1"
    with pytest.raises(Refused, match="permission denied"):
        await client.put(b"q", b"1")
    with pytest.raises(Refused, match="user name is empty"):
        await make_client(etcd).get(b"p/a")


async def test_a_wrong_password_is_said_with_the_user_and_without_the_password(etcd: LocalEtcd, make_client) -> None:
    client = make_client(etcd, login=Login("alpha", "guessed"))
    with pytest.raises(Refused) as refused:
        await client.get(b"p/a")
    assert "user 'alpha': " in str(refused.value)
    assert "invalid user ID or password" in str(refused.value)
    assert "guessed" not in str(refused.value) + repr(Login("alpha", "guessed"))
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_error(Refused)


async def test_tokens_that_end_are_renewed_and_nothing_is_missed(etcd: LocalEtcd, make_client) -> None:
    client, root = make_client(etcd, login=ALPHA), make_client(etcd, login=ROOT)
    lease = await client.grant(60)
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        for number in range(2):
            await asyncio.sleep(3.5)  # etcd looks at its tokens every second
            await asyncio.gather(*(client.put(b"p/%d/%d" % (number, each), b"x", lease) for each in range(20)))
            assert (await client.keep_alive([lease]))[lease] > 0
        await mirror.until_table(await content(root, b"p/"))
        assert len(mirror.table) == 40
    assert mirror.errors == []


async def test_a_restart_that_forgets_all_tokens_costs_no_event(etcd: LocalEtcd, make_client) -> None:
    client, root = make_client(etcd, login=ALPHA), make_client(etcd, login=ROOT)
    await client.put(b"p/a", b"1")
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_listed()
        etcd.kill()
        await etcd.start()
        async with asyncio.timeout(60):
            while not await _put(client, b"p/b"):
                await asyncio.sleep(0.05)
        await mirror.until_table(await content(root, b"p/"))
        assert len(mirror.lists) == 1
    assert mirror.deletions == []


async def test_a_password_that_is_changed_ends_what_was_known_by_it(etcd: LocalEtcd, make_client) -> None:
    client, root = make_client(etcd, login=ALPHA), make_client(etcd, login=ROOT)
    await client.put(b"p/a", b"1")
    await auth.remove_user(root, "alpha")
    with pytest.raises(Refused, match="user 'alpha'"):
        await client.get(b"p/a")


async def test_an_etcd_that_asks_nobody_takes_whoever_logs_in(
    make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]
) -> None:
    etcd = make_etcd()
    await etcd.start()
    client = make_client(etcd, login=ALPHA)
    await client.put(b"p/a", b"1")
    assert await content(client, b"p/") == {b"p/a": b"1"}


async def test_over_tls_a_password_needs_no_certificate_of_its_own(
    tmp_path: Path, stack: AsyncExitStack, make_etcd: Callable[..., LocalEtcd], make_client: Callable[..., EtcdClient]
) -> None:
    authority = Authority(tmp_path / "pki")
    server = authority.issue("server", "127.0.0.1")
    secret = [f"--cert-file={server.cert}", f"--key-file={server.key}"]  # and no CA: it asks for no certificate
    url = make_etcd().endpoints[0].replace("http:", "https:")
    etcd = LocalEtcd(tmp_path / "secret", [url], client_tls=Tls(authority.ca), flags=secret)
    stack.callback(etcd.kill)
    await etcd.start()
    await secure(make_client(etcd, tls=Tls(authority.ca)))
    client = make_client(etcd, tls=Tls(authority.ca), login=ALPHA)
    await client.put(b"p/a", b"1")
    with pytest.raises(Refused, match="not accepted"):
        await make_client(etcd, tls=Tls(Authority(tmp_path / "other").ca), login=ALPHA).get(b"p/a")


async def _put(client: EtcdClient, key: bytes) -> bool:
    try:
        await client.put(key, b"x")
    except Unavailable:
        return False
    return True


async def test_an_api_server_and_a_reader_that_log_in_come_through_all_that(
    tmp_path: Path, etcd: LocalEtcd, make_client: Callable[..., EtcdClient]
) -> None:
    """Tokens that end, and an etcd that forgets them: what is published is known, and nothing goes."""
    root = make_client(etcd, login=ROOT)
    await auth.ensure_role(root, "remote", [auth.Grant(prefix=b"cilium/")])
    await root.call(methods.USER_ADD, pb.AuthUserAddRequest(name="remote-beta", password="of beta"))
    await root.call(methods.USER_GRANT_ROLE, pb.AuthUserGrantRoleRequest(user="remote-beta", role="remote"))
    (tmp_path / "peers").mkdir()
    said = f"endpoints: ['{etcd.endpoints[0]}']\nusername: remote-beta\npassword: of beta\n"
    (tmp_path / "peers" / "alpha").write_text(said)
    (tmp_path / "manifests").mkdir()
    alpha, sink = Cluster(name="alpha", id=1), Recorder()
    settings = Settings(cluster=alpha, endpoints=tuple(etcd.endpoints), login=ROOT)
    peers = Peers(tmp_path / "peers", BETA, sink, client_of, peer_tables, tmp_path / "kept", sink.state.authorize)

    async def until_published(name: str) -> None:
        (tmp_path / "manifests" / f"{name}.yaml").write_text(manifests(name=name))
        async with asyncio.timeout(60):
            while ("shop", name) not in sink.view().services:
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        source = FolderSource(tmp_path / "manifests", alpha)
        work = (run(settings, source, [f"127.0.0.1:{free_port()}"], Timing(records=0.0)), peers.run())
        running = [tasks.create_task(each) for each in work]
        await until_published("first")
        await asyncio.sleep(3.5)
        await until_published("second")
        etcd.kill()
        await etcd.start()
        await until_published("third")
        for task in running:
            task.cancel()
    assert sink.taken == []
    assert set(await auth.list_users(root)) == {"root", "alpha", "remote-beta"}
