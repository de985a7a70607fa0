"""What can happen to any mesh bed: each fault lasts while its block does, and is over, or being mended, after it."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from mesh_bed import BORN, MeshBed, frozen

from certs.names import remote
from clustermesh.standalone.users_file import add_user, remove_user
from clustermesh.wire import keys

Block = Callable[[MeshBed, random.Random], AbstractAsyncContextManager[None]]
LONG: Final = 30.0
"""Seconds that something may stand still."""


class Fault(NamedTuple):
    """A block, and what it needs for itself: "source", "peers_server", "peers_etcd", "way", "own_etcd", "own_server"
    and the like. `deletes`: keys go by it, and what a plain watcher hears go is theirs."""

    block: Block
    needs: Set[str]
    deletes: bool = False

    def __call__(self, bed: MeshBed, rng: random.Random) -> AbstractAsyncContextManager[None]:
        return self.block(bed, rng)


def pause(rng: random.Random) -> float:
    """Seconds to stand still: mostly for less time than anybody waits, seldom for more."""
    return rng.choice([rng.uniform(0.1, 4.0)] * 9 + [LONG])


@asynccontextmanager
async def etcd_killed(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """As by a power cut; it comes back with its data."""
    etcd = rng.choice(bed.members_of(whose))
    etcd.kill()
    yield
    await etcd.start()


@asynccontextmanager
async def etcd_emptied(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """It comes back without its data: as another cluster, unless the bed's flags name a token."""
    members = bed.members_of(whose)
    for etcd in members:
        etcd.kill()
        shutil.rmtree(etcd.data_dir)
    yield
    await asyncio.gather(*(etcd.start() for etcd in members))


@asynccontextmanager
async def etcd_frozen(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """SIGSTOP: it holds its connections, and says nothing."""
    async with frozen(rng.choice(bed.members_of(whose)).pid):
        await asyncio.sleep(pause(rng))
        yield


@asynccontextmanager
async def etcd_compacted(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """The way is cut, and what happens meanwhile is compacted away."""
    for way in bed.ways:
        await way.refuse()
    yield
    await bed.until_published()
    for client in (bed.alpha.client, bed.beta):
        await client.compact((await client.range(keys.OWN)).revision)
    for way in bed.ways:
        way.heal()


@asynccontextmanager
async def way_cut(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Again and again, in the middle of whatever is said."""
    for way in bed.ways:
        await way.ration(rng.randrange(2_000, 60_000))
    yield
    await asyncio.sleep(rng.uniform(0.5, 2.0))
    for way in bed.ways:
        way.heal()


@asynccontextmanager
async def way_silent(bed: MeshBed, rng: random.Random) -> AsyncIterator[None]:
    """Connections carry nothing, for a while or, those of before, for ever."""
    if rng.random() < 0.5:
        for way in bed.ways:
            way.strand()
        yield
        return
    for way in bed.ways:
        way.freeze()
    yield
    await asyncio.sleep(rng.uniform(0.1, 3.0))
    for way in bed.ways:
        way.heal()


@asynccontextmanager
async def server_killed(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """The API server or the mirror."""
    role = _ROLES[whose]
    await bed.kill(role)
    yield
    await bed.start(role)


@asynccontextmanager
async def server_frozen(bed: MeshBed, rng: random.Random, whose: str) -> AsyncIterator[None]:
    """For longer than it leads without being heard of."""
    role = _ROLES[whose]
    bed.signal(role, signal.SIGSTOP)
    yield
    await asyncio.sleep(pause(rng))
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
    for way in bed.ways:
        await way.cut()
    yield
    bed.certify("beta", remote("beta"), datetime.now(UTC))


_ROLES: Final = {"peers": "apiserver", "own": "mirror"}


def _of(whose: str) -> dict[str, Fault]:
    """Those of one cluster's servers. The server of the own cluster is its mirror."""
    etcd, server = {f"{whose}_etcd"}, {f"{whose}_server"}
    made = {
        "etcd_killed": Fault(partial(etcd_killed, whose=whose), etcd),
        "etcd_emptied": Fault(partial(etcd_emptied, whose=whose), etcd, deletes=True),
        "etcd_frozen": Fault(partial(etcd_frozen, whose=whose), etcd),
        "server_killed": Fault(partial(server_killed, whose=whose), server),
        "server_frozen": Fault(partial(server_frozen, whose=whose), server),
        "lease_lost": Fault(partial(lease_lost, whose=whose), etcd, deletes=True),
    }
    return {f"{whose}_{name}": fault for name, fault in made.items()}


FAULTS: Final[Mapping[str, Fault]] = {
    **_of("peers"),
    **_of("own"),
    "etcd_compacted": Fault(etcd_compacted, {"way", "source", "peers_etcd", "own_etcd", "peers_server"}),
    "way_cut": Fault(way_cut, {"way"}),
    "way_silent": Fault(way_silent, {"way"}),
    "reader_restarted": Fault(reader_restarted, {"reader"}),
}
"""Those that may come at any time, one in the other."""
OF_TRUST: Final[Mapping[str, Fault]] = {
    "user_revoked": Fault(user_revoked, {"user", "peers_etcd"}),
    "certificate_expired": Fault(certificate_expired, {"way"}),
    "clock_jumped": Fault(clock_jumped, {"clock"}),
}
"""The last one needs a bed with a clock."""


def draw(rng: random.Random, faults: Mapping[str, Fault], special: Mapping[str, Fault]) -> dict[str, Fault]:
    """Up to four that do not stand in each other's way, in the order in which they are to come; half the time one that
    is `special` is among them."""
    every = {**faults, **special}
    names = rng.sample(sorted(every), len(every))
    if special and rng.random() < 0.5:
        names.insert(0, rng.choice(sorted(special)))
    taken, drawn = set[str](), dict[str, Fault]()
    for name in names[: rng.choice([1, 1, 2, 2, 3, 4])]:
        if taken.isdisjoint(every[name].needs):
            drawn[name] = every[name]
            taken |= every[name].needs
    return drawn
