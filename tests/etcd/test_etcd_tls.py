"""Mutual TLS with a real etcd: who is let in, and what one reads when not."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mirror import Mirror
from pki import Authority

from clustermesh.errors import Invalid, Refused, Unavailable
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
async def secure(authority: Authority, make_etcd: Callable[..., LocalEtcd]) -> LocalEtcd:
    """An etcd that wants client certificates; its own is for 127.0.0.1 and alpha.mesh.cilium.io."""
    server = make_etcd(tls=authority.issue("server", "127.0.0.1", "alpha.mesh.cilium.io"))
    await server.start()
    return server


async def test_a_certificate_of_the_same_ca_gets_in(secure: LocalEtcd, authority: Authority, make_client) -> None:
    client = make_client(secure, authority.issue("somebody"))
    assert await client.put(b"k", b"v") > 0


async def test_a_name_is_dialled_at_its_alias_and_its_certificate_checked(
    secure: LocalEtcd, authority: Authority, stack
) -> None:
    port = secure.endpoints[0].rpartition(":")[2]
    aliases = {"alpha.mesh.cilium.io": ["127.0.0.1"], "beta.mesh.cilium.io": ["127.0.0.1"]}
    tls = authority.issue("somebody")
    right = await stack.enter_async_context(EtcdClient([f"https://alpha.mesh.cilium.io:{port}"], tls, aliases=aliases))
    assert await right.put(b"k", b"v") > 0
    wrong = await stack.enter_async_context(EtcdClient([f"https://beta.mesh.cilium.io:{port}"], tls, aliases=aliases))
    with pytest.raises(Refused, match=r"certificate is not accepted: Hostname mismatch"):
        await wrong.put(b"k", b"v")


async def test_of_several_addresses_of_a_name_each_is_dialled_in_turn(
    secure: LocalEtcd, authority: Authority, stack
) -> None:
    port = secure.endpoints[0].rpartition(":")[2]
    aliases = {"alpha.mesh.cilium.io": ["127.0.0.2", "127.0.0.3", "127.0.0.1"]}
    url, tls = f"https://alpha.mesh.cilium.io:{port}", authority.issue("somebody")
    client = await stack.enter_async_context(EtcdClient([url], tls, aliases=aliases))
    for _ in range(2):
        with suppress(Unavailable):
            await client.get(b"k")
    assert await client.put(b"k", b"v") > 0


async def test_a_server_of_another_ca_is_refused_by_us(
    secure: LocalEtcd, authority: Authority, tmp_path: Path, make_client
) -> None:
    tls = authority.issue("somebody")
    other = Authority(tmp_path / "other", "other")
    client = make_client(secure, Tls(other.ca, tls.cert, tls.key))
    with pytest.raises(Refused, match=r"certificate is not accepted: .*issuer"):
        await client.put(b"k", b"v")


async def test_a_certificate_of_another_ca_is_refused_by_etcd_and_we_say_so(
    secure: LocalEtcd, authority: Authority, tmp_path: Path, make_client
) -> None:
    stranger = Authority(tmp_path / "other", "other").issue("somebody")
    client = make_client(secure, Tls(authority.ca, stranger.cert, stranger.key))
    with pytest.raises(Refused, match=r"does not accept our certificate: .*(bad certificate|unknown ca)"):
        await client.put(b"k", b"v")


async def test_an_expired_certificate_is_refused_and_its_renewal_taken_up_without_a_restart(
    secure: LocalEtcd, authority: Authority, make_client
) -> None:
    tls = authority.issue("somebody", expired=True)
    client = make_client(secure, tls)
    async with Mirror(client, b"p/") as mirror:
        await mirror.until_error(Refused)
        assert "does not accept our certificate" in str(mirror.errors[0])
        authority.issue("somebody")  # into the same files
        await client.put(b"p/a", b"1")
        await mirror.until_table({b"p/a": b"1"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda tls: tls.cert.unlink(), r"somebody\.leaf\.crt: No such file"),
        (lambda tls: tls.key.write_text("nonsense"), r"somebody\.leaf\.key"),
        (lambda tls: tls.ca.write_text("nonsense"), r"ca\.crt: holds no CA certificate"),
    ],
    ids=["missing", "broken key", "broken CA"],
)
async def test_unusable_files_are_refused_by_name(
    secure: LocalEtcd, authority: Authority, make_client, spoil, sentence
) -> None:
    tls = authority.issue("somebody")
    spoil(tls)
    with pytest.raises(Refused, match=sentence):
        await make_client(secure, tls).put(b"k", b"v")


def test_secrecy_is_never_dropped_silently(authority: Authority) -> None:
    with pytest.raises(Invalid, match="https needs a CA"):
        EtcdClient(["https://127.0.0.1:2379"])
    with pytest.raises(Invalid, match="must be https"):
        EtcdClient(["http://127.0.0.1:2379"], authority.issue("somebody"))
