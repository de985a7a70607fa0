"""Clusters that are read at one place share a client, for as long as one of them is read."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from clustermesh.mesh.peer_files import PeerFile
from clustermesh.mesh.shared_clients import SharedClients
from clustermesh.store.client import EtcdClient


class FakeClient:
    def __init__(self) -> None:
        self.closed = False

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True


def make() -> SharedClients:
    return SharedClients(lambda _file: cast(EtcdClient, FakeClient()))


def peer(name: str, where: str = "http://local:2379", cert: Path | None = None) -> PeerFile:
    return PeerFile(name=name, endpoints=(where,), cert=cert)


async def test_it_is_made_once_and_closed_after_the_last() -> None:
    clients = make()
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        beta = cast(FakeClient, await first.enter_async_context(clients.client(peer("beta"))))
        gamma = await second.enter_async_context(clients.client(peer("gamma")))
        assert gamma is beta
        await first.aclose()
        assert not beta.closed
        await second.aclose()
        assert beta.closed
    async with clients.client(peer("beta")) as anew:
        assert anew is not beta


async def test_another_place_or_renewed_credentials_make_another(tmp_path: Path) -> None:
    cert = tmp_path / "tls.crt"
    cert.write_text("one")
    clients = make()
    async with clients.client(peer("beta", cert=cert)) as old, clients.client(peer("beta", "http://there:1")) as other:
        assert other is not old
        cert.unlink()
        async with clients.client(peer("beta", cert=cert)) as new:
            assert new is not old
