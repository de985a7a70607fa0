"""How often the clusters of a peers folder are compared with what their etcds have."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from clustermesh.errors import Unavailable
from clustermesh.mesh.messages import AUDIT, AUDIT_SHARE
from clustermesh.mesh.peer_files import PeerFile, encode_peer
from clustermesh.mesh.peers import Peers
from clustermesh.mesh.state import MeshState
from clustermesh.mesh.tables import peer_tables
from clustermesh.model import Cluster

MIRROR = "http://192.0.2.1:2379"


class NoEtcd(AbstractAsyncContextManager[Any]):
    async def __aenter__(self) -> Any:
        raise Unavailable("no etcd here")

    async def __aexit__(self, *_error: object) -> None: ...


def write(folder: Path, name: str, *endpoints: str) -> None:
    (folder / name).write_bytes(encode_peer(PeerFile(name=name, endpoints=endpoints)))


async def test_an_etcd_with_many_clusters_is_asked_about_each_the_more_seldom(tmp_path: Path) -> None:
    folder = tmp_path / "peers"
    folder.mkdir()
    write(folder, "alone", "http://192.0.2.2:2379")
    for number in range(20):
        write(folder, f"c{number}", MIRROR)
    own = Cluster(name="own", id=255)
    peers = Peers(folder, own, MeshState("own"), lambda _file: NoEtcd(), peer_tables, tmp_path / "kept")  # type: ignore[arg-type,return-value]

    def audits() -> dict[str, float]:
        return {name: reader.brain.terms.audit for name, reader in peers.readers.items()}

    async with asyncio.TaskGroup() as tasks:
        await peers.sync(tasks)
        assert set(audits().values()) == {AUDIT}
        for number in range(20, 100):
            write(folder, f"c{number}", MIRROR)
        await peers.sync(tasks)
        assert audits() == {"alone": AUDIT} | {f"c{number}": 100 * AUDIT_SHARE for number in range(100)}
        for task in peers._tasks.values():
            task.cancel()
