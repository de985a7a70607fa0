"""One of several processes writes, wherever they run: whose key under a place of etcd is the oldest.

Rules (those of etcd's own concurrency package)
- Who stands has one key there, on a lease of its own that it renews: it goes when its owner dies or hangs for `ttl`.
- The key that was made first leads. Its create revision is the fence: a write that compares it fails from the moment
  the key is gone, whatever its owner believes.
- Who led and finds another leading is deposed, and does not stand again. So is who was cut off and finds its key gone:
  another one may have led meanwhile, and have ended. Who saw its key go and nobody come, or an etcd that began anew,
  makes another key and leads on. An etcd began anew where its cluster has another id, or a list is older than
  what had been heard before it was asked for.
- Nobody stands, and nobody leads after having stood by, where the owner says that it is not for us: another etcd may be
  there by now, also under who led.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final, Protocol

from clustermesh.errors import ClusterMeshError, Refused
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Event, Follower, Interrupted, Item, Listed, Nothing, Put, follow
from clustermesh.store.operations import Fence

TTL: Final = 2
"""Seconds, as short as etcd allows: how long nobody leads where the leader dies."""

_LOG: Final = logging.getLogger(__name__)


class Owner(Protocol):
    """Says whether we may write in an etcd at all."""

    @property
    def waiting(self) -> str:
        """Why not, or what is waited for to know; "" where we may."""

    async def wait(self) -> None:
        """Until we may."""

    async def look(self) -> bool:
        """Whether we may now."""


class Election:
    """Stands at `place` (a prefix) under `name` while `run` runs. `client` has no fence; `fenced` gets ours.

    `leading` is set once this process leads, `following` once another one does, `deposed` where that one did, or may
    have, after this one: end then, and stand anew with nothing in mind.
    """

    def __init__(
        self, client: EtcdClient, fenced: EtcdClient, owner: Owner, place: bytes, name: str, ttl: int = TTL
    ) -> None:
        self.leading, self.following, self.deposed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.on_lead: Callable[[], None] = lambda: None  # called whenever there is a new fence
        self.leader = ""  # the name under which the leader stands
        self.error = ""  # why etcd does not let us stand
        self._client, self._fenced, self._owner = client, fenced, owner
        self._place, self._name, self._ttl = place, name, ttl
        self._standing: dict[bytes, tuple[int, bytes]] = {}  # key -> when it was made, and by whom
        self._lease = 0  # that of our key, 0 for none
        self._key = b""
        self._newest = 0  # revision that etcd has named
        self._cut_off_at = 0  # the newest as of the last interruption
        self._led_in = 0  # the id of the etcd cluster that our fence is in
        self._first = fenced.fence = Fence(place, 0)

    @property
    def waiting(self) -> str:
        """What is waited for before it is known who leads, or before who does may write; "" for nothing."""
        if self._owner.waiting or self.leading.is_set() or self.following.is_set():
            return self._owner.waiting
        return ": ".join(["who leads is not known yet", *filter(None, [self.error])])

    async def run(self) -> None:
        """Until cancelled, which gives way to the next at once."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._stand())

    async def _stand(self) -> None:
        backoff = Backoff(last=self._ttl / 2)
        try:
            while True:
                try:
                    await self._renew()
                    self.error = ""
                    backoff, wait = Backoff(last=self._ttl / 2), self._ttl / 4
                except ClusterMeshError as e:
                    self._note_error(e)
                    wait = backoff.next()
                await asyncio.sleep(wait)
        finally:
            await self._give_way()

    def _note_error(self, error: ClusterMeshError) -> None:
        told = isinstance(error, Refused) and str(error) != self.error  # an etcd that is away, others tell of
        _LOG.log(logging.WARNING if told else logging.DEBUG, "election at %s: %s", self._place.decode(), error)
        self.error = str(error)

    async def _renew(self) -> None:
        """Renew our lease, or get another one where it is gone; our key on it is made where there is none.

        A write that fails may have been done: its lease is ours all the same.
        """
        if not self._lease or not (await self._client.keep_alive([self._lease])).get(self._lease):
            await self._owner.wait()
            self._lease, self._key = await self._client.grant(self._ttl), b""
        self._hear()
        key = self._place + b"%x" % self._lease
        if key not in self._standing:
            self._key = key
            await self._client.swap(key, 0, self._name.encode(), self._lease)

    async def _give_way(self) -> None:
        self._fenced.fence = Fence(self._place, 0)
        if self._lease:
            with suppress(ClusterMeshError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._client.revoke(self._lease)

    async def _watch(self) -> None:
        # After every cut a whole list: a key may have been made anew with the value it had.
        async with aclosing(follow(self._client, self._place, follower=Follower(Nothing()))) as items:
            async for item in items:
                self._take(item)
                await self._lead()

    def _hear(self) -> None:
        self._newest = max(self._newest, self._client.revision, self._fenced.revision)

    def _take(self, item: Item) -> None:
        match item:
            case Listed():
                self._take_list(item)
            case Changed():
                for event in item.events:  # one by one: who came and went led in between
                    self._note([event])
            case Interrupted():
                self._hear()
                self._cut_off_at = self._newest

    def _take_list(self, item: Listed) -> None:
        """One page holds all that ever stand."""
        self._standing = {}
        self._note(item.events)
        fence = self._fenced.fence
        if self._client.cluster_id != self._led_in or item.revision < self._cut_off_at:
            # Our key there is yet to be seen, and with the old one nothing is lost.
            self._newest, self._fenced.fence = item.revision, Fence(self._place, 0)
        elif fence is not None and fence.create_revision and not self._stands(fence):
            self._depose("was cut off, and another one may have led meanwhile")

    def _stands(self, fence: Fence) -> bool:
        made, _ = self._standing.get(fence.key, (0, b""))
        return made == fence.create_revision

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Put):
                made, _ = self._standing.get(event.kv.key, (event.kv.mod_revision, b""))
                self._standing[event.kv.key] = made, event.kv.value
            else:
                self._standing.pop(event.key, None)
        if self._standing:
            self._follow(min(self._standing, key=self._standing.__getitem__))

    def _follow(self, first: bytes) -> None:
        made, name = self._standing[first]
        self.leader = name.decode(errors="replace")
        self._first = Fence(first, made)
        if first == self._key:
            return
        if self.leading.is_set():
            self._depose(f"no longer leads, {self.leader} does")
        else:
            self.following.set()

    def _depose(self, why: str) -> None:
        if not self.deposed.is_set():
            _LOG.warning("%s %s", self._name, why)
        self._fenced.fence = Fence(self._place, 0)
        self.deposed.set()

    async def _lead(self) -> None:
        """Where our key is the first."""
        fence = self._first
        if fence.key != self._key or self.deposed.is_set() or fence == self._fenced.fence:
            return
        if self.following.is_set() and not self.leading.is_set() and not await self._owner.look():
            self._depose("does not lead: what it was told is its etcd is not")
            return
        self._fenced.fence, self._led_in = fence, self._client.cluster_id
        if not self.leading.is_set():
            _LOG.info("%s leads", self._name)
        self.leading.set()
        self.on_lead()
