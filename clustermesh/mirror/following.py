"""The own etcd as a mirror follows it: what stands there, whoever wrote it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from clustermesh.mesh.reader import parts
from clustermesh.mirror.cache import PLACES
from clustermesh.mirror.sections import Cache
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Follower, Interrupted, Listed, Newest, follow


class Following:
    """Keeps `cache` true. `listed` is set once all that is there was told of; `interrupted` says which places cannot be
    read now, and why."""

    def __init__(self, client: EtcdClient, cache: Cache) -> None:
        self.listed = asyncio.Event()
        self.interrupted: dict[bytes, str] = {}
        self.on_news: Callable[[], None] = lambda: None
        self.on_resumed: Callable[[], None] = lambda: None  # a place can be read again
        self._client, self._cache, self._unlisted = client, cache, set(PLACES)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        return [self._follow(place) for place in PLACES]

    async def _follow(self, place: bytes) -> None:
        async with aclosing(follow(self._client, place, follower=Follower(Newest()))) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    self.interrupted[place] = str(item.error)
                    self._cache.interrupt(place)
                    continue
                if self.interrupted.pop(place, None) is not None:
                    self.on_resumed()
                for part in parts(item):
                    self._cache.take(place, part)  # type: ignore[arg-type]  # a part is what the whole is
                    await asyncio.sleep(0)
                if isinstance(item, Listed) and not item.more:
                    self._note_listed(place)
                self.on_news()

    def _note_listed(self, place: bytes) -> None:
        self._unlisted.discard(place)
        if not self._unlisted:
            self.listed.set()
