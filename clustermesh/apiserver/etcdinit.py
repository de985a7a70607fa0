"""An etcd data folder that knows the cluster's users before any etcd listens on it for others.

The etcd of Cilium's chart lives as long as its pod: an init container makes the folder, and leaves it to the etcd
beside the API server, which is started with the same name and token.
"""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path
from typing import Final

from clustermesh.apiserver.users import set_up
from clustermesh.errors import Refused
from clustermesh.model import Cluster
from clustermesh.store.client import EtcdClient
from clustermesh.store.local import LocalEtcd

_DATA: Final = "member"  # where etcd has everything
_SAID: Final = "etcdinit.log"  # what etcd says meanwhile; beside the folder nothing may be written there
_PEER: Final = "http://localhost:2380"  # etcd's own default, which the etcd that comes after has, too
_OTHERS: Final = frozenset({"lost+found"})

_LOG: Final = logging.getLogger(__name__)


async def make_data(folder: Path, cluster: Cluster, name: str, token: str, patience: float) -> None:
    """Empty `folder` and make it the data of an etcd called `name` that lets in `cluster`'s users only.

    `token` makes it a cluster of its own. Refused for a folder with something else in it, Unavailable where etcd takes
    longer than `patience` seconds to begin.
    """
    _empty(folder)
    flags = (
        f"--name={name}",
        f"--initial-cluster={name}={_PEER}",
        f"--initial-advertise-peer-urls={_PEER}",
        f"--initial-cluster-token={token}",
    )
    etcd = LocalEtcd(folder, [f"http://127.0.0.1:{_free_port()}"], flags=flags, log=folder / _SAID)
    _LOG.info("etcd begins in %s", folder)
    await etcd.start(patience)
    try:
        async with EtcdClient(etcd.endpoints, timeout=patience) as client:
            await set_up(client, cluster)
    finally:
        await etcd.stop()
    (folder / _SAID).unlink()
    _LOG.info("%s is ready for the etcd of cluster %s", folder, cluster.name)


def _free_port() -> int:
    """Not etcd's usual one: in the network of a node somebody has that."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _empty(folder: Path) -> None:
    """Of what an etcd has left, and a try before this one: nobody else's files are deleted for a mistyped name."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {path.name for path in folder.iterdir()} - _OTHERS
    if strange := sorted(found - {_DATA, _SAID}):
        raise Refused(f"{folder}: has {strange[0]}, which is no etcd's: empty it, or name another folder")
    if _DATA in found:
        shutil.rmtree(folder / _DATA)
    (folder / _SAID).unlink(missing_ok=True)
