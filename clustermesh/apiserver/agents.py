"""What the agents say of their nodes, under clustermesh/v1/agents/: kept while etcd has lost it, and put back there.

A record has no lease, and its agent alone may change it. So one that vanishes was lost with an etcd that was emptied:
it is written again where nothing stands, in case this API server ends before the agent has noticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from clustermesh.errors import ClusterMeshError, DecodeError, Unavailable
from clustermesh.logs import about
from clustermesh.model import AgentRecord
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Changed, Listed, Put
from clustermesh.wire import keys
from clustermesh.wire.entries import decode_agent_record

_LOG: Final = logging.getLogger(__name__)


class AgentRecords:
    """Follows the records: give `take` what is heard of them. `problems` says which cannot be read, by key."""

    def __init__(self, client: EtcdClient, is_node: Callable[[str], bool]) -> None:
        self.problems: dict[bytes, str] = {}
        self.expected = False
        self._client, self._is_node = client, is_node
        self._values: dict[bytes, bytes] = {}
        self._lost: set[bytes] = set()
        self._wake = asyncio.Event()

    def take(self, item: Listed | Changed) -> Iterator[tuple[str, AgentRecord | None]]:
        """Node by node what its agent says now, None where it says nothing any more."""
        for event in item.events:
            key, value = (event.kv.key, event.kv.value) if isinstance(event, Put) else (event.key, None)
            self.problems.pop(key, None)
            self._note(key, value)
            try:
                yield keys.parse_agent(key), None if value is None else decode_agent_record(key, value)
            except DecodeError as e:
                self._values.pop(key, None)
                self.problems[key] = str(e)

    def expect(self, seconds: float, then: Callable[[], None]) -> None:
        """etcd is new, or was emptied while nobody here knew its records: the agents do, and come one by one.

        For so many `seconds` they are `expected`; `then` is called afterwards.
        """

        def end() -> None:
            self.expected = False
            then()

        self.expected = seconds > 0
        asyncio.get_running_loop().call_later(seconds, end)

    def _note(self, key: bytes, value: bytes | None) -> None:
        if value is not None:
            self._values[key] = value
            self._lost.discard(key)
        elif key in self._values:
            self._lost.add(key)
            self._wake.set()

    async def run(self) -> None:
        """Put back what is lost. Until cancelled."""
        backoff = Backoff(last=5.0)
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._put_back()
                backoff = Backoff(last=5.0)
            except ClusterMeshError as e:
                _LOG.debug("records of agents are not put back yet: %s", e)
                self._wake.set()
                await asyncio.sleep(backoff.next())

    async def _put_back(self) -> None:
        for key in sorted(self._lost):
            if not self._is_node(keys.parse_agent(key)):
                del self._values[key]
            elif await self._client.swap(key, 0, self._values[key]):
                _LOG.info("%s was lost and is put back", key.decode(), extra=about(key=key.decode()))
            elif await self._client.get(key) is None:  # the fence is of before etcd was emptied
                raise Unavailable(f"{key.decode()} cannot be put back yet")
            self._lost.discard(key)
