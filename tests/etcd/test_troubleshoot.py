"""What is found out about a peer's real etcd, with mutual TLS and users, and about places where none answers."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pki import Authority
from ports import free_port

from clustermesh.apiserver.users import REMOTE_ROLE, roles
from clustermesh.mesh.peer_files import PeerFile, PeersFolder
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store import auth
from clustermesh.store.auth import Grant
from clustermesh.store.client import EtcdClient, Put
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls
from clustermesh.troubleshoot.checks import COUNTED, Row, check
from clustermesh.troubleshoot.gather import cached_counts, gather
from clustermesh.wire import cluster_config, keys
from clustermesh.wire.timestamp import format_time

PATIENCE = 20.0
CANARIES = [Put(keys.canary_key("beta", folder), b"now") for folder in COUNTED.values()]
ENTRIES = [Put(keys.node_key("beta", "n1"), b"{}"), Put(keys.service_key("beta", "default", "web"), b"{}")]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
async def beta(authority: Authority, make_etcd: Callable[..., LocalEtcd]) -> LocalEtcd:
    """The peer's etcd, as its API server leaves it, but nobody is asked for rights."""
    server = make_etcd(tls=authority.issue("server", "127.0.0.1", "localhost", "beta.mesh"))
    await server.start()
    async with EtcdClient(server.endpoints, authority.issue("admin")) as admin:
        config = cluster_config.encode(ClusterConfig(id=2, synced_canaries=True, max_connected_clusters=511))
        beat = format_time(int(time.time())).encode()
        first = [Put(keys.cluster_config_key("beta"), config), Put(keys.HEARTBEAT, beat)]
        await admin.transact([*first, *CANARIES, *ENTRIES])
    return server


def peer(server: LocalEtcd | str, tls: Tls | None, **more: object) -> PeerFile:
    endpoints = (server,) if isinstance(server, str) else tuple(server.endpoints)
    files = {} if tls is None else {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
    return PeerFile(name="beta", endpoints=endpoints, **files, **more)  # type: ignore[arg-type]


async def rows(file: PeerFile, patience: float = PATIENCE) -> dict[str, Row]:
    (facts,) = await gather(PeersFolder({"beta": file}, []), ["beta"], patience)
    return {each.check: each for each in check(facts)}


def bad(found: dict[str, Row]) -> dict[str, str]:
    """Without what is true of every certificate here: it lasts a day."""
    return {
        name: each.state
        for name, each in found.items()
        if each.state != "ok" and not ("soon" in each.says and each.state == "warn")
    }


async def test_all_is_well(beta: LocalEtcd, authority: Authority) -> None:
    found = await rows(peer(beta, authority.issue("remote-alpha")))
    assert bad(found) == {}
    assert "server, signed by ca" in found["tls"].says
    assert "remote-alpha, signed by ca" in found["certificate"].says
    assert found["keys"].says == "1 nodes, 1 services, 0 identities, 0 endpoints"
    assert found["clock"].state == "ok"


async def test_an_alias_is_dialled_and_the_name_in_the_certificate_held_against_the_host(
    beta: LocalEtcd, authority: Authority
) -> None:
    port, tls = beta.endpoints[0].rpartition(":")[2], authority.issue("remote-alpha")
    aliases = {"beta.mesh": ("127.0.0.1",), "gamma.mesh": ("127.0.0.1",)}
    assert bad(await rows(peer(f"https://beta.mesh:{port}", tls, host_aliases=aliases))) == {}
    found = await rows(peer(f"https://gamma.mesh:{port}", tls, host_aliases=aliases))
    assert bad(found) == {"tls": "fail"}
    assert "gamma.mesh" in found["tls"].remedy
    assert "beta.mesh" in found["tls"].remedy


@pytest.mark.parametrize("aliases", [("127.0.0.8", "127.0.0.1", "127.0.0.9"), ("127.0.0.1", "127.0.0.8")])
async def test_of_several_aliases_one_that_works_is_enough_and_each_dead_one_is_named(
    beta: LocalEtcd, authority: Authority, aliases: tuple[str, ...]
) -> None:
    port = beta.endpoints[0].rpartition(":")[2]
    file = peer(f"https://beta.mesh:{port}", authority.issue("remote-alpha"), host_aliases={"beta.mesh": aliases})
    found = await rows(file)
    assert bad(found) == {}
    for address in aliases:
        assert (f"Connection refused ({address})" in found["tcp"].says) == (address != "127.0.0.1")


async def test_where_no_alias_works_each_is_named(authority: Authority) -> None:
    aliases = {"beta.mesh": ("127.0.0.8", "127.0.0.9")}
    found = await rows(peer(f"https://beta.mesh:{free_port()}", authority.issue("remote-alpha"), host_aliases=aliases))
    assert bad(found)["tcp"] == "fail"
    for address in aliases["beta.mesh"]:
        assert f"Connection refused ({address})" in found["tcp"].says


async def test_of_several_addresses_one_that_works_is_enough(beta: LocalEtcd, authority: Authority) -> None:
    """The host may be ::1 as well, where nobody listens."""
    port = beta.endpoints[0].rpartition(":")[2]
    assert bad(await rows(peer(f"https://localhost:{port}", authority.issue("remote-alpha")))) == {}


async def test_without_tls_there_is_no_certificate_to_tell_of(etcd: LocalEtcd) -> None:
    found = await rows(peer(etcd, None))
    assert found["tls"].says.endswith("is not encrypted")
    assert "certificate" not in found
    assert bad(found) == {"config": "fail", "heartbeat": "fail"}


async def test_a_stopped_etcd_fails_in_time(beta: LocalEtcd, authority: Authority) -> None:
    assert beta.pid is not None
    os.kill(beta.pid, signal.SIGSTOP)
    try:
        found = await rows(peer(beta, authority.issue("remote-alpha")), 0.3)
    finally:
        os.kill(beta.pid, signal.SIGCONT)
    assert bad(found) == {"tls": "fail"}


async def test_a_certificate_of_another_ca_is_named_with_who_signed_it(
    beta: LocalEtcd, authority: Authority, tmp_path: Path
) -> None:
    tls = authority.issue("remote-alpha")
    found = await rows(peer(beta, Tls(Authority(tmp_path / "other", "other").ca, tls.cert, tls.key)))
    assert bad(found) == {"tls": "fail"}
    assert "ca signed it, and the file trusts other" in found["tls"].remedy


async def test_an_expired_certificate_of_the_peer(beta: LocalEtcd, authority: Authority) -> None:
    authority.issue("server", "127.0.0.1", expired=True)  # into the same files, which etcd reads anew
    found = await rows(peer(beta, authority.issue("remote-alpha")))
    assert bad(found) == {"tls": "fail"}
    assert "renew the server certificate" in found["tls"].remedy


async def test_an_expired_certificate_of_ours(beta: LocalEtcd, authority: Authority) -> None:
    found = await rows(peer(beta, authority.issue("remote-alpha", expired=True)))
    assert bad(found) == {"tls": "fail", "certificate": "fail"}
    assert "does not accept our certificate" in found["tls"].says


async def test_a_user_that_is_refused(beta: LocalEtcd, authority: Authority) -> None:
    async with EtcdClient(beta.endpoints, authority.issue("admin")) as admin:
        await auth.ensure_role(admin, "root", [])
        await auth.ensure_user(admin, "admin", "root")
        await auth.ensure_role(admin, "remote", [Grant(prefix=keys.HEARTBEAT)])
        await auth.ensure_user(admin, "remote-gamma", "remote")
        await auth.enable(admin)
    found = await rows(peer(beta, authority.issue("remote-alpha")))
    assert bad(found) == {"rights": "fail"}
    assert "users.yaml" in found["rights"].remedy
    found = await rows(peer(beta, authority.issue("remote-gamma")))
    assert bad(found) == {"rights": "fail"}
    assert "cilium/cluster-config/beta" in found["rights"].says


async def test_the_role_that_an_api_server_gives_its_peers_is_enough(beta: LocalEtcd, authority: Authority) -> None:
    async with EtcdClient(beta.endpoints, authority.issue("admin")) as admin:
        await auth.ensure_role(admin, "root", [])
        await auth.ensure_user(admin, "admin", "root")
        await auth.ensure_role(admin, REMOTE_ROLE, roles(Cluster(name="beta", id=2, max_clusters=511))[REMOTE_ROLE])
        await auth.ensure_user(admin, "remote-alpha", REMOTE_ROLE)
        await auth.enable(admin)
    assert bad(await rows(peer(beta, authority.issue("remote-alpha")))) == {}


async def test_something_else_that_listens_there(authority: Authority) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\nDate: never\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        secure = await rows(peer(f"https://127.0.0.1:{port}", authority.issue("remote-alpha")))
        plain = await rows(peer(f"http://127.0.0.1:{port}", None))
    assert bad(secure) == {"tls": "fail"}
    assert "not something else" in secure["tls"].remedy
    assert bad(plain) == {"etcd": "fail"}


async def test_what_a_mirror_serves_is_judged_by_the_copies(etcd: LocalEtcd, client: EtcdClient) -> None:
    config = cluster_config.encode(ClusterConfig(id=2, synced_canaries=True, cached=True, max_connected_clusters=511))
    beat = format_time(int(time.time())).encode()
    copies = [Put(keys.cache_key(each.key, "beta"), each.value) for each in [*CANARIES, *ENTRIES]]
    await client.transact([Put(keys.cluster_config_key("beta"), config), Put(keys.HEARTBEAT, beat), *copies])
    found = await rows(peer(etcd, None))
    assert bad(found) == {}
    assert found["keys"].says == "1 nodes, 1 services, 0 identities, 0 endpoints"


async def test_a_closed_port(authority: Authority) -> None:
    found = await rows(peer(f"https://127.0.0.1:{free_port()}", authority.issue("remote-alpha")))
    assert bad(found) == {"tcp": "fail"}
    assert "nothing listens there" in found["tcp"].remedy


async def test_a_port_that_takes_connections_and_says_nothing(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = peer(f"https://127.0.0.1:{silent.getsockname()[1]}", authority.issue("remote-alpha"))
        found = await rows(file, 0.2)
    assert bad(found) == {"tls": "fail"}
    assert "no connection within 0.2 s" in found["tls"].says


async def test_a_name_that_nobody_knows(authority: Authority) -> None:
    found = await rows(peer("https://beta.invalid:2379", authority.issue("remote-alpha")), 5.0)
    assert bad(found) == {"dns": "fail"}


async def test_no_heartbeat_and_no_canaries(beta: LocalEtcd, authority: Authority) -> None:
    async with EtcdClient(beta.endpoints, authority.issue("admin")) as admin:
        await admin.delete(keys.HEARTBEAT)
        await admin.delete(keys.canary_key("beta", "nodes"))
    found = await rows(peer(beta, authority.issue("remote-alpha")))
    assert bad(found) == {"heartbeat": "fail", "canaries": "fail"}
    assert "nodes" in found["canaries"].says


async def test_more_peers_than_are_asked_at_once_are_all_told_of(authority: Authority) -> None:
    tls, url = authority.issue("remote-alpha"), f"https://127.0.0.1:{free_port()}"
    files = {f"c{i}": peer(url, tls) for i in range(150)}
    found = await gather(PeersFolder(files, []), files, PATIENCE)
    assert [each.name for each in found] == list(files)
    assert all(each.endpoints[0].tcp_error for each in found)


async def test_what_a_mirror_keeps_is_counted(client: EtcdClient) -> None:
    await client.put(keys.cluster_config_key("alpha"), b"{}")
    assert await cached_counts(client, "alpha", ["beta"]) == {}
    await client.put(keys.cluster_config_key("gamma"), b"{}")
    none = {"nodes": 0, "services": 0, "identities": 0, "endpoints": 0}
    assert await cached_counts(client, "alpha", ["beta"]) == {"beta": none}
    await client.transact([Put(keys.cache_key(entry.key, "beta"), b"{}") for entry in ENTRIES])
    assert await cached_counts(client, "alpha", ["beta"]) == {"beta": {**none, "nodes": 1, "services": 1}}
