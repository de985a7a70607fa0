"""etcd kept running: started again where it is to trust other authorities, and ended as whoever keeps it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from etcd_flags import QUICK
from pki import Authority
from ports import free_port

from clustermesh.errors import ClusterMeshError
from clustermesh.store.client import EtcdClient
from clustermesh.store.keeper import kept
from clustermesh.store.local import command
from clustermesh.store.tls import Tls

PATIENCE = 30.0


class Bed:
    """A kept etcd that trusts `one`, and later `other`, too."""

    def __init__(self, folder: Path) -> None:
        self.one, self.other = Authority(folder / "one", "one"), Authority(folder / "other", "other")
        self.ca, self.url = folder / "ca.crt", f"https://127.0.0.1:{free_port()}"
        self.ca.write_bytes(self.one.ca.read_bytes())
        server = self.one.issue("server", "127.0.0.1")
        self.argv = command(folder / "data", [self.url], Tls(self.ca, server.cert, server.key), flags=QUICK)
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(kept(self.ca, self.argv), stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    async def client(self, of: Authority) -> EtcdClient:
        """One that is let in; it shows what `of` signed."""
        shown = of.issue("reader")
        client = EtcdClient([self.url], Tls(self.one.ca, shown.cert, shown.key), timeout=2.0)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    if (await client.status()).leader:
                        return client
                except ClusterMeshError:
                    await asyncio.sleep(0.05)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


def etcd_of(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


async def test_clients_of_another_authority_are_let_in_once_it_is_trusted_and_nothing_is_lost(bed: Bed) -> None:
    with bed.running() as process:
        async with await bed.client(bed.one) as client:
            await client.put(b"k", b"v")
        first = etcd_of(process)
        bed.ca.write_bytes(b"")  # as one that is being written
        bed.ca.write_bytes(bed.one.ca.read_bytes() + b"\n" + bed.other.ca.read_bytes())
        async with await bed.client(bed.other) as client:
            found = await client.get(b"k")
        assert found is not None
        assert etcd_of(process) != first


async def test_the_same_authorities_in_another_order_restart_nothing(bed: Bed) -> None:
    bed.ca.write_bytes(bed.one.ca.read_bytes() + bed.other.ca.read_bytes())
    with bed.running() as process:
        async with await bed.client(bed.one):
            first = etcd_of(process)
            bed.ca.write_bytes(bed.other.ca.read_bytes() + b"# a comment\n" + bed.one.ca.read_bytes())
            await asyncio.sleep(2.5)  # two looks
            assert etcd_of(process) == first


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_whatever_ends_the_keeper_ends_etcd(bed: Bed, end: signal.Signals) -> None:
    with bed.running() as process:
        async with await bed.client(bed.one):
            watched = os.pidfd_open(etcd_of(process))
        process.send_signal(end)
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(process.wait)
            while not _has_ended(watched):
                await asyncio.sleep(0.02)
        os.close(watched)
    assert process.returncode in (0, 128 + signal.SIGTERM, -end)


async def test_the_keeper_ends_as_etcd_does(bed: Bed) -> None:
    bed.argv.append("--no-such-flag")
    with bed.running() as process:
        assert await asyncio.to_thread(process.wait, PATIENCE) not in (0, None)


def _has_ended(watched: int) -> bool:
    try:
        signal.pidfd_send_signal(watched, 0)
    except ProcessLookupError:
        return True
    return False
