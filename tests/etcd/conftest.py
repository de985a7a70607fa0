"""A real etcd for each test: on the loopback, a free port, its data in a temporary folder, ended by its process id."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_flags import QUICK
from ports import free_port

from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd
from clustermesh.store.tls import Tls


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("etcd") is None:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="no etcd installed (Debian: apt-get install etcd-server)"))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What the test's etcds and clients are closed by, in reverse order."""
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
def make_etcd(stack: AsyncExitStack, tmp_path: Path) -> Callable[..., LocalEtcd]:
    """Makes etcds that are not started yet; `flags` go to etcd."""

    def make(name: str = "etcd", tls: Tls | None = None, client_tls: Tls | None = None, flags: list[str] | None = None):
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{free_port()}"
        server = LocalEtcd(tmp_path / name, [url], tls, client_tls=client_tls, flags=[*QUICK, *(flags or [])])
        stack.callback(server.kill)
        return server

    return make


@pytest.fixture
async def etcd(make_etcd: Callable[..., LocalEtcd]) -> LocalEtcd:
    """A running etcd without TLS."""
    server = make_etcd()
    await server.start()
    return server


@pytest.fixture
def make_client(stack: AsyncExitStack) -> Callable[..., EtcdClient]:
    """Makes clients: of an etcd, or of a URL."""

    def make(server: LocalEtcd | str, tls: Tls | None = None, **options: object) -> EtcdClient:
        endpoints = [server] if isinstance(server, str) else server.endpoints
        client = EtcdClient(endpoints, tls, **options)  # type: ignore[arg-type]
        stack.push_async_exit(client)
        return client

    return make


@pytest.fixture
def client(etcd: LocalEtcd, make_client: Callable[..., EtcdClient]) -> EtcdClient:
    """A client of `etcd`."""
    return make_client(etcd)
