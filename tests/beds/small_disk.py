"""A disk that can be full, and an etcd that is filled until it takes nothing more."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etcd_maintenance import delete_prefix

from clustermesh.errors import ClusterMeshError
from clustermesh.store.client import EtcdClient

BALLAST = b"ballast/"
_MEGABYTE = 1 << 20
_LEFT = 16 * _MEGABYTE
"""What etcd may still write when the rest is taken."""


class SmallDisk:
    """A tmpfs at `place`: etcd begins with 130 MB, and keeps some more of what it wrote."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._taken = place / "taken"

    def take_all(self) -> None:
        """Leave next to nothing. Files of a tmpfs are full where they are allocated."""
        free = shutil.disk_usage(self.place).free
        with self._taken.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - _LEFT, 1))

    def give_back(self) -> None:
        self._taken.unlink()


@contextmanager
def small_disk(place: Path, megabytes: int = 1024) -> Iterator[SmallDisk]:
    """Mounted; needs root."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    subprocess.run(mount, check=True, timeout=10)
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


async def write_until_refused(client: EtcdClient) -> None:
    """One megabyte after the other, at a place that is nobody's. AssertionError where there is room for everything."""
    for number in range(1000):
        try:
            await client.put(BALLAST + b"%d" % number, os.urandom(_MEGABYTE))
        except ClusterMeshError:
            return
    raise AssertionError("there is room for everything")


async def throw_away(client: EtcdClient) -> None:
    """What `write_until_refused` wrote, and its history."""
    await delete_prefix(client, BALLAST)
    await client.compact((await client.range(b"cilium/")).revision)
