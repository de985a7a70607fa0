"""No room in an etcd: its disk, or what it was told to use at most. What is known stays, and it goes on later."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from mesh_bed import MeshBed

from clustermesh.errors import ClusterMeshError
from clustermesh.store import endpoint
from clustermesh.store.client import EtcdClient

BALLAST = b"ballast/"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 320 MB: etcd begins with 130."""
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(place)], check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True, timeout=10)


async def write_until_refused(client: EtcdClient) -> None:
    """One megabyte after the other, at a place that is nobody's."""
    for number in range(1000):
        try:
            await client.put(BALLAST + b"%d" % number, os.urandom(1 << 20))
        except ClusterMeshError:
            return
    pytest.fail("there is room for everything")


@pytest.mark.parametrize("whose", ["peers", "own"])
async def test_the_disk_is_full_and_then_it_is_not(tmp_path: Path, small_disk: Path, whose: str) -> None:
    rng = random.Random(whose)
    async with MeshBed(tmp_path / "mesh", disks={whose: small_disk}) as bed:
        etcd, client = bed.etcd_of(whose)
        await write_until_refused(client)
        bed.change(rng)
        etcd.kill()  # it has ended, or is about to: a service manager starts it again
        grow(small_disk)
        await etcd.start()
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()


@pytest.mark.parametrize("whose", ["peers", "own"])
async def test_the_quota_is_reached_and_the_alarm_is_taken_back(tmp_path: Path, whose: str) -> None:
    """etcd is read-only then: what was written stays, leases are renewed, and nothing new comes."""
    rng = random.Random(whose)
    async with MeshBed(tmp_path, flags=["--quota-backend-bytes=30000000"]) as bed:
        _, client = bed.etcd_of(whose)
        await write_until_refused(client)
        assert any("NOSPACE" in error for error in (await client.status()).errors)
        bed.change(rng)
        known = bed.readers["far"].comparable()
        with pytest.raises(ClusterMeshError, match="space exceeded"):
            await client.put(b"more", b"x")
        assert bed.readers["far"].comparable() == known
        await client.delete_prefix(BALLAST)
        await client.compact((await client.range(b"cilium/")).revision)
        await defragment(bed, whose)
        bed.change(rng)
        await bed.until_true()
        bed.check_heard()


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


async def defragment(bed: MeshBed, whose: str) -> None:
    """As etcdctl would, and takes the alarm back: DefragmentRequest{}, AlarmRequest{DEACTIVATE, it, NOSPACE}."""
    member = (await bed.etcd_of(whose)[1].status()).member_id
    deactivate = b"\x08\x02\x10" + varint(member) + b"\x18\x01"
    where = endpoint.parse(bed.etcd_of(whose)[0].endpoints[0])
    tls = bed.alpha.tls("admin")
    secret = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    make = grpc.aio.secure_channel(where.target, secret) if where.secure else grpc.aio.insecure_channel(where.target)
    async with make as channel:
        for name, request in (("Defragment", b""), ("Alarm", deactivate)):
            await channel.unary_unary(f"/etcdserverpb.Maintenance/{name}")(request, timeout=30)
