"""Two whole clusters as a user runs them: init, etcd, apiserver, connect, disconnect; read with what connect wrote.

alpha: etcd, apiserver   <── remote-alpha reads beta ──>   beta: etcd, apiserver       all on the loopback
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ports import free_port

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.mesh.peer_files import PeerFile, read_peers
from clustermesh.standalone.context import Context, load
from clustermesh.store.client import EtcdClient
from clustermesh.store.tls import Tls
from clustermesh.wire import keys

PATIENCE = 60.0
_PROGRAM = (sys.executable, "-m", "clustermesh.cli")


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as started:
        yield started


def _run(*arguments: object) -> None:
    subprocess.run([*_PROGRAM, *map(str, arguments)], check=True, timeout=60, capture_output=True)


def _start(processes: ExitStack, log: Path, *arguments: object) -> None:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*_PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    processes.callback(process.wait, PATIENCE)
    processes.callback(process.kill)


def _cluster(home: Path, name: str, cluster_id: int, processes: ExitStack) -> Context:
    folder = home / name
    _run("init", folder, "--name", name, "--id", cluster_id, "--endpoint", f"https://127.0.0.1:{free_port()}")
    _start(processes, home / f"{name}-etcd.log", "etcd", "--context", folder)
    _start(processes, home / f"{name}.log", "apiserver", "--context", folder, "--http", f"127.0.0.1:{free_port()}")
    return load(folder)


async def _eventually(attempt: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await attempt():
            await asyncio.sleep(0.1)


def _client(peer: PeerFile) -> EtcdClient:
    assert peer.ca is not None
    assert peer.cert is not None
    assert peer.key is not None
    return EtcdClient(peer.endpoints, Tls(peer.ca, peer.cert, peer.key))


async def _reads(reader: Context, owner: Context) -> None:
    """Waits until `reader` has read the cluster config of `owner` with what its peers folder holds."""

    async def attempt() -> bool:
        async with _client(read_peers(reader.peers, reader.name).peers[owner.name]) as client:
            try:
                found = await client.get(keys.cluster_config_key(owner.name))
            except ClusterMeshError:
                return False
        return found is not None and f'"id":{owner.id}'.encode() in found.value

    await _eventually(attempt)


async def test_connected_clusters_read_each_other_until_they_are_taken_apart(
    tmp_path: Path, processes: ExitStack
) -> None:
    alpha, beta = _cluster(tmp_path, "alpha", 1, processes), _cluster(tmp_path, "beta", 2, processes)
    _run("connect", "--context", alpha.path, "--destination-context", beta.path)
    await _reads(alpha, beta)
    await _reads(beta, alpha)

    peer = read_peers(alpha.peers, "alpha").peers["beta"]
    async with _client(peer) as client:
        with pytest.raises(Refused):
            await client.put(keys.cluster_config_key("beta"), b"{}")  # pull only: nobody writes to a peer
    kept = tmp_path / "kept"
    kept.mkdir()
    for path in (peer.ca, peer.cert, peer.key):
        assert path is not None
        (kept / path.name).write_bytes(path.read_bytes())

    _run("disconnect", "--context", alpha.path, "--destination-context", beta.path)
    assert read_peers(alpha.peers, "alpha").peers == {}
    await _eventually(lambda: _locked_out(beta, kept))


async def _locked_out(owner: Context, kept: Path) -> bool:
    """Whether credentials that were kept back no longer open anything."""
    name = f"{owner.name}.etcd-client"
    tls = Tls(kept / f"{name}-ca.crt", kept / f"{name}.crt", kept / f"{name}.key")
    async with EtcdClient([owner.endpoint], tls) as client:
        try:
            await client.get(keys.cluster_config_key(owner.name))
        except Refused:
            return True
        except Unavailable:  # its connection is ended with its user
            return False
    return False
