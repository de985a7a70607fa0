"""Whoever stops asking leaves no connection behind that waits for an API server's goodbye."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pki import Authority

from clustermesh.errors import Unavailable
from clustermesh.kube.access import Access, Grant, tls_context
from clustermesh.kube.client import KubeClient, Patience


class Silent:
    """A server that takes one request, and neither answers it nor anything after it."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.asked, self.over = Authority(folder), threading.Event(), threading.Event()
        pair = self.authority.issue("server", "127.0.0.1")
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(pair.cert, pair.key)
        self.socket = socket.create_server(("127.0.0.1", 0))

    def run(self) -> None:
        connection, _ = self.socket.accept()
        with self._tls.wrap_socket(connection, server_side=True) as taken:
            taken.recv(1)
            self.asked.set()
            self.over.wait(60)


@contextmanager
def silent(folder: Path) -> Iterator[Silent]:
    made = Silent(folder)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        thread.join()
        made.socket.close()


async def give_up(server: Silent, *, cancel: bool) -> None:
    ca = tls_context(server.authority.ca.read_text())
    grant = Grant(server=f"https://127.0.0.1:{server.socket.getsockname()[1]}", tls=ca)

    async def read() -> Grant:
        return grant

    async with KubeClient(Access(read), Patience(read=60.0 if cancel else 0.5)) as client:
        task = asyncio.create_task(client.get("/", "ask", {}))
        await asyncio.to_thread(server.asked.wait)
        if cancel:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if cancel else Unavailable):
            await task


@pytest.mark.parametrize("cancel", [True, False], ids=["cancelled", "too late"])
def test_a_request_that_is_given_up_leaves_no_connection(tmp_path: Path, cancel: bool) -> None:
    with silent(tmp_path) as server, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(give_up(server, cancel=cancel))
        gc.collect()
        assert [str(each.message) for each in told] == []
