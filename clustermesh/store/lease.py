"""Leases for the keys this process answers for: granted as needed or taken over, kept alive, and reported when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from clustermesh.errors import ClusterMeshError
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient

T = TypeVar("T")

DEFAULT_TTL: Final = 900
DEFAULT_PER_LEASE: Final = 1000


class LeaseKeeper:
    """Spreads keys over leases of `ttl` seconds, at most `per_lease` keys each, and renews them three times per `ttl`.

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keeper.run())
            await client.put(key, value, await keeper.lease_for(key))

    When a lease turns out to be gone, etcd has deleted its keys: `on_lost` is called with them, and each needs a new
    `lease_for` and a new write. Stopping `run` revokes nothing, so keys outlive a restart by up to `ttl`: whoever comes
    next may `adopt` their leases, and then `claim` the keys. Who stands by meanwhile may `note` each key as it is heard
    of, and `take_over` all of them at once.
    """

    def __init__(self, client: EtcdClient, ttl: int = DEFAULT_TTL, per_lease: int = DEFAULT_PER_LEASE) -> None:
        self.client, self.ttl, self.per_lease = client, ttl, per_lease
        self.on_lost: Callable[[frozenset[bytes]], None] = lambda _keys: None
        self.error: ClusterMeshError | None = None
        self._keys: dict[int, set[bytes]] = {}
        self._roomy: dict[int, None] = {}  # leases with room, in the order in which they are filled
        self._lease_of: dict[bytes, int] = {}
        self._granting = asyncio.Lock()
        self._due = asyncio.Event()

    @property
    def leases(self) -> frozenset[int]:
        """The leases held now."""
        return frozenset(self._keys)

    async def lease_for(self, key: bytes) -> int:
        """The lease to write `key` with; the same one each time, until it is lost or released."""
        if lease := self._lease_of.get(key) or self._place(key):
            return lease
        async with self._granting:
            if not self._roomy:
                self._open(await self.client.grant(self.ttl))
            return self._lease_of.get(key) or self._place(key)

    async def part(self, key: bytes) -> None:
        """Give `key` a new lease that only what joins it shares, once etcd grants one."""
        lease = await _persist(lambda: self.client.grant(self.ttl))
        self.release(key)
        self._keys[lease] = set()
        self._put(key, lease)

    def join(self, key: bytes, other: bytes) -> bool:
        """Give `key` the lease of `other`, if that has one: both end together. True where that is another than before.

        What is held at `key` is to be written again then.
        """
        lease = self._lease_of.get(other)
        if lease is None or lease == self._lease_of.get(key):
            return False
        self.release(key)
        self._put(key, lease)
        return True

    async def adopt(self, leases: Collection[int]) -> None:
        """Keep alive what others granted, where it lives and lasts as long as ours, once etcd says which that are."""
        asked = sorted(set(leases) - self._keys.keys() - {0})
        left = await _persist(lambda: self.client.keep_alive(asked))
        for lease, ttl in left.items():
            if ttl >= self.ttl and lease not in self._keys:
                self._open(lease)

    def claim(self, key: bytes, lease: int) -> bool:
        """Answer for `key`, which was found on `lease`; False where that is not the one it is to hang on."""
        if lease not in self._keys:
            return False
        if key not in self._lease_of:
            self._put(key, lease)
        return self._lease_of[key] == lease

    def note(self, key: bytes, lease: int) -> bool:
        """Somebody else has `key` on `lease`, until this process may `take_over`; False where it is on none."""
        if self._lease_of.get(key) != lease:
            self.release(key)
            if lease:
                self._keys.setdefault(lease, set())
                self._put(key, lease)
        return bool(lease)

    async def take_over(self) -> None:
        """Answer for all that was noted, where etcd says that its lease lives and lasts as long as ours; the rest is
        lost."""
        noted = sorted(self._keys)
        left = await _persist(lambda: self.client.keep_alive(noted))
        lost = frozenset[bytes]().union(*(self._forget(lease) for lease in noted if left.get(lease, 0) < self.ttl))
        self._roomy = {lease: None for lease, keys in self._keys.items() if len(keys) < self.per_lease}
        if lost:
            self.on_lost(lost)

    def release(self, key: bytes) -> None:
        """Forget `key`, which its owner deleted. A lease without keys is kept for the next ones."""
        lease = self._lease_of.pop(key, None)
        if lease is not None:
            self._keys[lease].discard(key)
            self._roomy.setdefault(lease)

    def check(self) -> None:
        """Look at all leases now: for a writer that was told LeaseLost."""
        self._due.set()

    async def run(self) -> None:
        """Keep the leases alive until cancelled. `error` says why that fails at the moment, None where it does not."""
        backoff = Backoff(first=self.ttl / 100, last=self.ttl / 10)
        while True:
            self._due.clear()
            try:
                await self._renew()
                self.error, wait = None, self.ttl / 3
                backoff = Backoff(first=self.ttl / 100, last=self.ttl / 10)
            except ClusterMeshError as e:
                self.error, wait = e, backoff.next()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._due.wait()

    async def _renew(self) -> None:
        left = await self.client.keep_alive(list(self._keys)) if self._keys else {}
        lost = frozenset[bytes]().union(*(self._forget(lease) for lease, ttl in left.items() if ttl == 0))
        if lost:
            self.on_lost(lost)

    def _open(self, lease: int) -> None:
        self._keys[lease] = set()
        self._roomy[lease] = None

    def _place(self, key: bytes) -> int:
        """Put `key` on a lease with room; 0 where there is none."""
        lease = next(iter(self._roomy), 0)
        if lease:
            self._put(key, lease)
        return lease

    def _put(self, key: bytes, lease: int) -> None:
        keys = self._keys[lease]
        keys.add(key)
        self._lease_of[key] = lease
        if len(keys) >= self.per_lease:
            self._roomy.pop(lease, None)

    def _forget(self, lease: int) -> set[bytes]:
        self._roomy.pop(lease, None)
        keys = self._keys.pop(lease, set())
        for key in keys:
            del self._lease_of[key]
        return keys


async def _persist(attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What it returns once it succeeds."""
    backoff = Backoff(last=5.0)
    while True:
        try:
            return await attempt()
        except ClusterMeshError:
            await asyncio.sleep(backoff.next())
