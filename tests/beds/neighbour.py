"""A second peer beside alpha, read by the mirror and by the reader beside it: what it says must not move for alpha's
faults, nor alpha's for its garbage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from mesh_bed import PATIENCE, MeshBed
from mirror_bed import Peer, beating

from clustermesh.errors import ClusterMeshError
from clustermesh.mesh.session import State
from clustermesh.wire import keys

_NAMES = ("one", "two", "three")


class Neighbour:
    """Its services, which come and change and never go: `said` is the value of each key."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.said = peer, dict[bytes, bytes]()

    async def change(self, rng: random.Random) -> None:
        name = rng.choice(_NAMES)
        ip = f"10.{self.peer.id}.1.{rng.randrange(10, 200)}"
        self.said[self.peer.service_key(name)] = await self.peer.put_service(name, ip)

    async def until_known(self, bed: MeshBed) -> None:
        """The reader has its services and no others, and their copies are what it said."""
        wanted = {self.peer.cached(key): value for key, value in self.said.items()}
        names = {tuple(key.decode().split("/")[-2:]) for key in self.said}
        near = bed.readers["near"]
        async with asyncio.timeout(PATIENCE):
            while not (
                near.view(self.peer.name).services.keys() == names
                and bed.session("near", self.peer.name).state is State.FRESH
                and await self._copied(bed) == wanted
            ):
                await asyncio.sleep(0.05)

    async def _copied(self, bed: MeshBed) -> Mapping[bytes, bytes]:
        """The services of it that the cache has."""
        try:
            found = (await bed.beta.range(keys.CACHE)).kvs
        except ClusterMeshError:
            return {}
        place = self.peer.cached(keys.state_prefix("services", self.peer.name))
        return {kv.key: kv.value for kv in found if kv.key.startswith(place)}


@asynccontextmanager
async def neighbour_of(bed: MeshBed) -> AsyncIterator[Neighbour]:
    """Cluster gamma, whose API server beats while the block lasts."""
    peer = await bed.another("gamma", 3)
    await peer.publish()
    made = Neighbour(peer)
    web = peer.service_key("web")
    found = await peer.client.get(web)
    assert found is not None
    made.said[web] = found.value
    async with beating(peer):
        await made.until_known(bed)
        yield made
