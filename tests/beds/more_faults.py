"""What can happen to a mesh bed that is made for it: of several members, short of room, beside a spoilt peer, or with a
Kubernetes API as its source."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from etcd_maintenance import find_leader, make_room, move_leader
from garbage import write_garbage
from mesh_bed import MeshBed, frozen
from mesh_faults import Fault, pause
from mesh_sources import Api
from mirror_bed import Peer
from neighbour import Neighbour
from small_disk import SmallDisk, throw_away, write_until_refused

from clustermesh.store.client import EtcdClient

# -- three members -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def leader_killed(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    leader = await find_leader(bed.members)
    leader.kill()
    yield
    await leader.start()


@asynccontextmanager
async def leader_frozen(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """It believes that it leads until it goes on, behind the others."""
    async with frozen((await find_leader(bed.members)).pid):
        await asyncio.sleep(pause(rng))
        yield


@asynccontextmanager
async def leader_moved(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Again and again."""
    for _ in range(rng.randrange(1, 4)):
        await move_leader(bed.members, rng.choice(bed.members))
    yield


@asynccontextmanager
async def majority_frozen(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for member in rng.sample(bed.members, 2):
            await stack.enter_async_context(frozen(member.pid))
        await asyncio.sleep(pause(rng))
        yield


OF_MEMBERS: Final[Mapping[str, Fault]] = {
    made.__name__: Fault(made, {"peers_etcd"}) for made in (leader_killed, leader_frozen, leader_moved, majority_frozen)
}

# -- no room -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def disk_full(bed: MeshBed, rng: random.Random, whose: str, disk: SmallDisk) -> AsyncIterator[None]:
    """etcd has ended, or is about to: a service manager starts it again, once there is room."""
    etcd, client = bed.etcd_of(whose)
    disk.take_all()
    await write_until_refused(client)
    yield
    etcd.kill()
    disk.give_back()
    await etcd.start()
    await throw_away(client)


@asynccontextmanager
async def quota_reached(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """etcd is read-only until somebody takes the alarm back."""
    etcd, client = bed.etcd_of(whose)
    await write_until_refused(client)
    yield
    await throw_away(client)
    await make_room(etcd)


def of_disks(disks: Mapping[str, SmallDisk]) -> dict[str, Fault]:
    """`disks` as a bed was given them."""
    return {
        f"{whose}_disk_full": Fault(partial(disk_full, whose=whose, disk=disk), {f"{whose}_etcd"})
        for whose, disk in disks.items()
    }


OF_QUOTA: Final[Mapping[str, Fault]] = {
    f"{whose}_quota_reached": Fault(partial(quota_reached, whose=whose), {f"{whose}_etcd"})
    for whose in ("peers", "own")
}
QUOTA_FLAG: Final = "--quota-backend-bytes=60000000"

# -- another peer ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def garbage_written(bed: MeshBed, rng: random.Random, peer: Peer) -> AsyncIterator[None]:
    await write_garbage(peer, rng)
    yield
    await peer.client.compact((await peer.client.range(b"nothing")).revision)


def of_neighbour(neighbour: Neighbour) -> dict[str, Fault]:
    return {"garbage_written": Fault(partial(garbage_written, peer=neighbour.peer), {"neighbour"})}


# -- a Kubernetes API --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def api_killed(bed: MeshBed, rng: random.Random, api: Api) -> AsyncIterator[None]:
    api.is_up = False
    api.bed.kill()
    yield
    await api.bed.restart()
    api.is_up = True


@asynccontextmanager
async def api_frozen(bed: MeshBed, rng: random.Random, api: Api) -> AsyncIterator[None]:
    """SIGSTOP: it holds its connections, and says nothing."""
    api.is_up = False
    api.bed.freeze()
    yield
    await asyncio.sleep(pause(rng))
    api.bed.thaw()
    api.is_up = True


@asynccontextmanager
async def api_history_gone(bed: MeshBed, rng: random.Random, api: Api) -> AsyncIterator[None]:
    """Nobody hears it meanwhile, and what happens is compacted away: 410. Killed, for it remembers longer than etcd."""
    await api.way.refuse()
    yield
    async with EtcdClient(api.bed.etcd.endpoints) as client:
        await client.compact((await client.range(b"nothing")).revision)
    await api.bed.restart()
    api.way.heal()


@asynccontextmanager
async def api_cut(bed: MeshBed, rng: random.Random, api: Api) -> AsyncIterator[None]:
    """Again and again, in the middle of whatever is said."""
    await api.way.ration(rng.randrange(3_000, 60_000))
    yield
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    api.way.heal()


@asynccontextmanager
async def token_expired(bed: MeshBed, rng: random.Random, api: Api) -> AsyncIterator[None]:
    """It is in the file, and connections are cut, so that it is asked for."""
    api.issue(-3600)
    await api.way.cut()
    yield
    await asyncio.sleep(rng.uniform(0.5, 3.0))
    api.issue()


def of_api(api: Api) -> dict[str, Fault]:
    every = (api_killed, api_frozen, api_history_gone, api_cut, token_expired)
    return {made.__name__: Fault(partial(made, api=api), {"source"}) for made in every}
