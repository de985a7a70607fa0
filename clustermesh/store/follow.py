"""Follow every key under a prefix, for ever: the shell around `Follower`.

    async with aclosing(follow(client, b"cilium/state/services/v1/")) as items:
        async for item in items:
            match item:
                case Listed(events, revision): ...      # a complete list; events is what differs from what was known
                case Changed(events, revision): ...     # in order; no events: up again after an interruption
                case Interrupted(error): ...            # keep the last state, call it stale

`aclosing` ends the stream at once when the loop is left early; without it that is left to the garbage collector.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from clustermesh.errors import ClusterMeshError, Refused, Unavailable
from clustermesh.store.backoff import STEADY, Backoff, Reconnect
from clustermesh.store.client import EtcdClient
from clustermesh.store.faults import NobodyListens
from clustermesh.store.follower import (
    Changed,
    Deleted,
    Event,
    Follower,
    Interrupted,
    Item,
    ListAll,
    Listed,
    Newest,
    Nothing,
    Prove,
    Put,
    State,
    WatchFrom,
)
from clustermesh.store.silence import Silence
from clustermesh.store.watch import open_watch

__all__ = [
    "Changed",
    "Deleted",
    "Event",
    "Follower",
    "Interrupted",
    "Item",
    "Listed",
    "Newest",
    "Nothing",
    "Put",
    "follow",
]

QUIET: Final = 40.0  # the connection's pings notice sooner that it is dead; who asks every 30 s hears enough
ALONE: Final = 90.0  # longer than a writer is silent between two beats
_REFUSED_WAIT: Final = 1.0  # a person must act first: ask seldom


async def follow(
    client: EtcdClient,
    prefix: bytes,
    *,
    follower: Follower | None = None,
    quiet: float = QUIET,
    alone: float = ALONE,
    most_bytes: int | None = None,
    reconnect: Reconnect | None = None,
) -> AsyncGenerator[Item, None]:
    """Tell what is under `prefix` and every change of it. Never ends and raises nothing of ClusterMeshError.

    A `follower` from an earlier call keeps what it knows: the next list tells only the difference. A server that says
    nothing for `quiet` seconds on the whole connection, or for `alone` seconds here, and then does not answer within
    the client's timeout is taken for gone. A list of more than `most_bytes` interrupts with Oversized, each time it is
    tried. `reconnect` is shared by all who follow by this client, where thousands of others read the same etcd.
    """
    brain = Follower() if follower is None else follower
    if brain.state is not State.UNLISTED:
        brain.interrupted(Unavailable("followed again"))
    clock = asyncio.get_running_loop().time
    backoff, silence = Backoff(), Silence(client.timeout, quiet, alone)
    while True:
        began: float | None = None
        error: ClusterMeshError
        try:
            async with aclosing(_attempt(client, prefix, brain, silence, most_bytes)) as items:
                async for item in items:
                    if began is None and brain.state is State.FOLLOWING:
                        began = clock()
                    if item is not None:
                        yield item
        except ClusterMeshError as e:
            error = e
        yield brain.interrupted(error)
        lasted = 0.0 if began is None else clock() - began
        if reconnect is not None and isinstance(error, Unavailable):
            await asyncio.sleep(reconnect.wait(clock(), lasted, nobody=isinstance(error, NobodyListens)))
        elif isinstance(error, Refused):
            await asyncio.sleep(backoff.next(lasted if lasted > STEADY else 0.0, _REFUSED_WAIT))
        else:
            await asyncio.sleep(backoff.next(lasted))


async def _attempt(
    client: EtcdClient, prefix: bytes, brain: Follower, silence: Silence, most_bytes: int | None
) -> AsyncGenerator[Item | None, None]:
    """Do what the brain asks for until something fails, the only way out; None where there is nothing to tell."""
    while True:
        match brain.step():
            case ListAll() if brain.paged:
                async with aclosing(client.pages(prefix, most_bytes=most_bytes)) as pages:
                    async for page, more in pages:
                        yield brain.listed(page, more)
            case ListAll():
                yield brain.listed(await client.range(prefix, most_bytes=most_bytes))
            case Prove(key, revision):
                brain.proved(await client.get(key, revision=revision))
            case WatchFrom(revision):
                async with open_watch(client, prefix, revision, silence) as watch:
                    while True:
                        yield brain.received(await watch.read())
