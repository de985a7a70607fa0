"""What the agent tells its own cluster of itself for ever: its node's WireGuard key, under the node's name, and which
numbers of its pods' identities nobody could work out who has lost them.

Two agents may go by one name (a machine that was cloned, a unit file that was copied). Each would put back its own key
for ever, and every node of every cluster would change that node's tunnel each time. So an agent takes a name that
nobody goes by, and another's only where its Node's address is; and whoever finds another's record in the place of its
own leaves it there for a while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from msgspec.structs import replace

from agent.reporter import FEW_NODES
from clustermesh.errors import ClusterMeshError, DecodeError
from clustermesh.model import AgentRecord, Identity
from clustermesh.store.backoff import Backoff
from clustermesh.store.client import EtcdClient
from clustermesh.store.follow import Interrupted, follow
from clustermesh.wire import keys, local

_log = logging.getLogger(__name__)
_LOST_PER_SECOND: Final = 10  # records that vanished, written by all nodes together
_NEWS_PER_SECOND: Final = 5  # of identities: nobody waits for them
_LOOK: Final = 1.0  # seconds until an etcd that did not answer is asked again whether the name is free
FIRST: Final = 1.0  # seconds that another agent's record stands the first time ...
LAST: Final = 60.0  # ... and at most


class Contest:
    """Another agent writes this node's record as well: how long to let it stand, and what to say. Pure."""

    def __init__(self, record: AgentRecord) -> None:
        self._record = record
        self._other: AgentRecord | None = None
        self._met_at = self._wait = 0.0

    def meet(self, value: bytes, now: float) -> float:
        """Seconds to let `value` stand, 0 where no other agent wrote it. Anew after a long peace."""
        other = self._as_another(value)
        if other is None:
            return 0.0
        if self.problem(now) == "":
            self._wait = 0.0
        self._other, self._met_at, self._wait = other, now, min(max(self._wait * 2, FIRST), LAST)
        return self._wait

    def _as_another(self, value: bytes) -> AgentRecord | None:
        try:
            other = local.decode_agent(value)
        except DecodeError:
            return None
        return None if self._is_same(other) else other

    def is_ours(self, value: bytes) -> bool:
        """Whether this agent wrote it, whatever it knew then."""
        try:
            return self._is_same(local.decode_agent(value))
        except DecodeError:
            return False

    def _is_same(self, other: AgentRecord) -> bool:
        ours = self._record
        return (other.wireguard_public_key, other.boot_id) == (ours.wireguard_public_key, ours.boot_id)

    def problem(self, now: float) -> str:
        """What a person should know, "" once none was met for so long that there is none."""
        if (other := self._other) is None or now - self._met_at > 2 * LAST:
            return ""
        same = other.boot_id and other.boot_id == self._record.boot_id
        where = "this machine" if same else f"another machine (boot id {other.boot_id or 'unknown'})"
        key = other.wireguard_public_key
        return f"another agent says that it is Node {other.node}, on {where} with WireGuard key {key}"


class Registration:
    """`record` under this node's key, whoever changes or deletes it; `rival` says who else claims the name."""

    def __init__(
        self,
        record: AgentRecord,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._key, self._value = keys.agent_key(record.node), local.encode_agent(record)
        self._contest = Contest(record)
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._registered = False
        self._record, self._news = record, asyncio.Event()

    def remember(self, identities: tuple[Identity, ...]) -> None:
        """Say from now on that pods of this node have these, which do not follow from their labels."""
        if identities != self._record.identities:
            self._record = replace(self._record, identities=identities)
            self._value = local.encode_agent(self._record)
            self._news.set()

    def rival(self) -> str:
        """A sentence, "" where there is none."""
        return self._contest.problem(self._clock())

    async def keep(self, client: EtcdClient, prepared: asyncio.Event, nodes: Callable[[], int]) -> None:
        """Never returns. From `prepared` on, which an agent under another node's name never is; before, only a name
        that nobody goes by is taken, once.

        The key has no lease: the tunnels of a node whose agent is down still work, and its peers must not forget its
        key. A node that begins is heard at once; keys that vanish later do so for all of `nodes`, which write them one
        by one.
        """
        await self._take_if_free(client, prepared)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_written(client, nodes))
            tasks.create_task(self._write_news(client, nodes))

    async def _write_news(self, client: EtcdClient, nodes: Callable[[], int]) -> None:
        """A label that changes does so for pods of many nodes: each waits for its turn, and two waves never meet."""
        backoff = Backoff(first=1.0)
        while True:
            await self._news.wait()
            await self._sleep(_turn(nodes(), _NEWS_PER_SECOND) * self._draw())
            self._news.clear()
            try:
                await self._renew(client)
                await self._sleep(_turn(nodes(), _NEWS_PER_SECOND))
            except ClusterMeshError as e:
                _log.debug("what this node remembers of identities is not in etcd: %s", e)
                self._news.set()
                await self._sleep(backoff.next())

    async def _renew(self, client: EtcdClient) -> None:
        """In the place of this node's own record only: one that is missing, or another's, has its turn."""
        held = await client.get(self._key)
        if held is None or held.value == self._value or not self._contest.is_ours(held.value):
            return
        if not await client.swap(self._key, held.mod_revision, self._value):
            self._news.set()

    async def _keep_written(self, client: EtcdClient, nodes: Callable[[], int]) -> None:
        backoff = Backoff(first=1.0)
        while True:
            began = time.monotonic()
            try:
                await self._follow(client, nodes)
            except ClusterMeshError as e:
                _log.warning("this node's WireGuard key is not in etcd: %s", e)
            await asyncio.sleep(backoff.next(time.monotonic() - began))

    async def _take_if_free(self, client: EtcdClient, prepared: asyncio.Event) -> None:
        """Until `prepared`. In a cluster that begins, what this waits for waits for every node's key.

        Once: a name that is free later is so in an etcd that was emptied, and the node's own agent waits its turn.
        """
        answered = False
        while not prepared.is_set():
            with suppress(ClusterMeshError):
                if not answered:
                    await client.swap(self._key, 0, self._value)
                    answered = True
            with suppress(TimeoutError):
                async with asyncio.timeout(None if answered else _LOOK):
                    await prepared.wait()

    async def _follow(self, client: EtcdClient, nodes: Callable[[], int]) -> None:
        async with aclosing(follow(client, self._key)) as items:
            async for item in items:
                held = None if isinstance(item, Interrupted) else await client.get(self._key)
                if isinstance(item, Interrupted):
                    continue
                if held is not None and held.value == self._value:
                    self._registered = True
                    continue
                if self._registered:
                    await self._give_way(b"" if held is None else held.value, nodes())
                await client.put(self._key, self._value)
                self._registered = True

    async def _give_way(self, value: bytes, nodes: int) -> None:
        if wait := self._contest.meet(value, self._clock()):
            _log.warning("%s: its record stands for %g s", self.rival(), wait)
        await self._sleep(wait or _turn(nodes, _LOST_PER_SECOND) * self._draw())


def _turn(nodes: int, per_second: float) -> float:
    """Seconds until all of `nodes` had a turn to write, so many in each."""
    return nodes / per_second if nodes > FEW_NODES else 0.0
