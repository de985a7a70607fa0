"""What the own etcd holds, as an API server hears of it: each place of its own is listed, and followed from there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from clustermesh.apiserver.ledger import Ledger
from clustermesh.apiserver.resources import watched_places
from clustermesh.apiserver.writer import Writer
from clustermesh.model import Cluster
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Follower, Interrupted, Listed, Newest, follow
from clustermesh.wire import keys

_LOG: Final = logging.getLogger(__name__)


class Listening:
    """Tells the ledger, and wakes whoever writes. `may_list` is for the owner to set, `listed` is once all of it was;
    `settle` is called where a long wait begins. `interrupted` says of each place that is not heard why."""

    def __init__(
        self, client: EtcdClient, etcd: str, ledger: Ledger, writer: Writer, settle: Callable[[], None]
    ) -> None:
        self._client, self._etcd, self._ledger, self._writer, self._settle = client, etcd, ledger, writer, settle
        self.may_list, self.listed = asyncio.Event(), asyncio.Event()
        self.interrupted: dict[bytes, str] = {}
        self._unlisted = set[bytes]()

    def tasks(
        self, cluster: Cluster, take_records: Callable[[Listed | Changed], None], again: Callable[[], None]
    ) -> Iterator[Coroutine[Any, Any, None]]:
        """Everything that has to run; `again` is called for each list after the first of all."""
        watched = watched_places(cluster)
        self._unlisted = {*watched, keys.AGENTS}
        yield self._follow(keys.AGENTS, Follower(), take_records, again)
        for place in watched:
            yield self._follow(place, Follower(Newest()), partial(self._ledger.take, place), again)

    async def _follow(
        self, place: bytes, follower: Follower, take: Callable[[Listed | Changed], None], again: Callable[[], None]
    ) -> None:
        await self.may_list.wait()
        async with aclosing(follow(self._client, place, follower=follower)) as items:
            async for item in items:
                if isinstance(item, Interrupted):
                    self._interrupt(place, str(item.error))
                    continue
                if self.interrupted.pop(place, None) is not None:
                    self._writer.hurry()
                take(item)
                if isinstance(item, Listed) and not item.more:
                    self._note_listed(place, again)
                self._writer.wake()

    def _interrupt(self, place: bytes, reason: str) -> None:
        if not self.interrupted:
            _LOG.warning("etcd at %s: %s; nothing is lost, waiting for it", self._etcd, reason)
            self._settle()  # the start may take long now
        self.interrupted[place] = reason
        self._ledger.interrupt(place)

    def _note_listed(self, place: bytes, again: Callable[[], None]) -> None:
        self._unlisted.discard(place)
        if self._unlisted:
            return
        if self.listed.is_set():
            again()
        else:
            _LOG.info("etcd at %s is listed", self._etcd)
        self.listed.set()
