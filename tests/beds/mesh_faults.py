"""What can happen to the mesh bed: each fault lasts while its block does, and is over, or being mended, after it."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from mesh_bed import BORN, MeshBed, frozen

from certs.names import remote
from clustermesh.standalone.users_file import add_user, remove_user
from clustermesh.wire import keys

Fault = Callable[[MeshBed, random.Random], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def etcd_killed(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """As by a power cut; it comes back with its data."""
    etcd, _ = bed.etcd_of(whose)
    etcd.kill()
    yield
    await etcd.start()


@asynccontextmanager
async def etcd_emptied(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """It comes back without its data: as another cluster, unless the bed's flags name a token."""
    etcd, _ = bed.etcd_of(whose)
    etcd.kill()
    shutil.rmtree(etcd.data_dir)
    yield
    await etcd.start()


@asynccontextmanager
async def etcd_frozen(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """SIGSTOP: it holds its connections, and says nothing."""
    async with frozen(bed.etcd_of(whose)[0].pid):
        await asyncio.sleep(rng.uniform(0.1, 4.0))
        yield


@asynccontextmanager
async def etcd_compacted(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """The way is cut, and what happens meanwhile is compacted away."""
    await bed.way.refuse()
    yield
    await bed.until_published()
    for client in (bed.alpha.client, bed.beta):
        await client.compact((await client.range(keys.OWN)).revision)
    bed.way.heal()


@asynccontextmanager
async def way_cut(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Again and again, in the middle of whatever is said."""
    await bed.way.ration(rng.randrange(2_000, 60_000))
    yield
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    bed.way.heal()


@asynccontextmanager
async def way_silent(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Connections carry nothing, for a while or, those of before, for ever."""
    if rng.random() < 0.5:
        bed.way.strand()
        yield
        return
    bed.way.freeze()
    yield
    await asyncio.sleep(rng.uniform(0.1, 3.0))
    bed.way.heal()


@asynccontextmanager
async def server_killed(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """The API server or the mirror."""
    role = {"peers": "apiserver", "own": "mirror"}[whose]
    await bed.kill(role)
    yield
    await bed.start(role)


@asynccontextmanager
async def server_frozen(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """For longer than it leads without being heard of."""
    role = {"peers": "apiserver", "own": "mirror"}[whose]
    bed.signal(role, signal.SIGSTOP)
    yield
    await asyncio.sleep(rng.uniform(0.1, 4.0))
    bed.signal(role, signal.SIGCONT)


@asynccontextmanager
async def lease_lost(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """All of one etcd's but who leads: their keys go with them, the heartbeat first or last."""
    _, client = bed.etcd_of(whose)
    held = (await client.range(b"cilium/")).kvs
    leases = sorted({kv.lease for kv in held if not kv.key.startswith(keys.KVSTOREMESH_LOCK)} - {0})
    rng.shuffle(leases)
    for lease in leases:
        await client.revoke(lease)
    yield


@asynccontextmanager
async def reader_restarted(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Both are begun again with nothing in mind."""
    for name in list(bed.readers):
        await bed.read(name)
    yield


@asynccontextmanager
async def clock_jumped(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """By an hour, and it stays there."""
    assert bed.clock is not None
    bed.clock.jump(rng.choice([-3600, 0, 3600]))
    yield


@asynccontextmanager
async def user_revoked(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Whoever reads alpha may not for a while."""
    users = bed.alpha.context.users_file
    remove_user(users, "remote-beta")
    yield
    await asyncio.sleep(rng.uniform(0.0, 3.0))
    add_user(users, "remote-beta")


@asynccontextmanager
async def certificate_expired(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """That of whoever reads alpha; connections are cut, so that it is asked for."""
    bed.certify("beta", remote("beta"), BORN + timedelta(days=1))
    await bed.way.cut()
    yield
    bed.certify("beta", remote("beta"), datetime.now(UTC))


_OF_ONE: Final = (etcd_killed, etcd_emptied, etcd_frozen, server_killed, server_frozen, lease_lost)
_OF_BOTH: Final = (etcd_compacted, way_cut, way_silent, reader_restarted)
_OF_TRUST: Final = (user_revoked, certificate_expired, clock_jumped)
FAULTS: Final[Mapping[str, Fault]] = {
    **{f"{whose}_{each.__name__}": partial(each, whose=whose) for each in _OF_ONE for whose in ("peers", "own")},
    **{each.__name__: each for each in _OF_BOTH},
}
"""Those that may come at any time, one in the other. The server of the own cluster is its mirror."""
DELETING: Final = frozenset(name for name in FAULTS if name.endswith(("etcd_emptied", "lease_lost")))
"""Those by which keys go: what a plain watcher hears go is theirs."""
_TAKEN: Final = {
    "peers_etcd": {"peers_etcd"},
    "own_etcd": {"own_etcd"},
    "peers_server": {"peers_server"},
    "own_server": {"own_server"},
    "peers_lease": {"peers_etcd"},
    "own_lease": {"own_etcd"},
    "etcd_compacted": {"way", "peers_etcd", "own_etcd", "peers_server"},
    "way": {"way"},
    "reader": {"reader"},
    "user": {"user", "peers_etcd"},
    "certificate": {"way"},
    "clock": {"clock"},
}
"""What a fault, by how its name begins, needs for itself."""


def draw(rng: random.Random) -> dict[str, Fault]:
    """Up to four faults that do not stand in each other's way, in the order in which they are to come."""
    every = {**FAULTS, **{each.__name__: each for each in _OF_TRUST}}
    names, taken, drawn = rng.sample(sorted(every), len(every)), set[str](), dict[str, Fault]()
    most = rng.choice([1, 1, 2, 2, 3, 4])
    for name in names:
        needed = next(needed for begin, needed in _TAKEN.items() if name.startswith(begin))
        if taken.isdisjoint(needed) and len(drawn) < most:
            drawn[name] = every[name]
            taken |= needed
    return drawn
