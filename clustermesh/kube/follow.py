"""Follow every object of a kind, for ever: the shell around `Brain`.

async with KubeClient(access) as client:
    async with aclosing(follow(client, pods)) as items:
        async for item in items:
            match item:
                case Listed(changes): ...       # a complete list; changes is what differs from what was known
                case Changed(changes): ...      # no changes: up again after an interruption
                case Interrupted(error): ...    # keep the last state, call it stale

`compare` beside it from time to time tells what the watch has kept from us.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Generic

from clustermesh.errors import ClusterMeshError, Unavailable
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import KubeClient
from clustermesh.kube.decoding import Lines, decode_events, decode_items, decode_page, outline
from clustermesh.kube.hearing import (
    Abandoned,
    Changed,
    Compared,
    Due,
    Ended,
    Event,
    Failed,
    Interrupted,
    Item,
    List,
    Listed,
    Opened,
    Page,
    Probed,
    Started,
    Tell,
    Wait,
    Watch,
)
from clustermesh.kube.resource import K, Resource, V
from clustermesh.kube.rounds import Rounds

__all__ = ["Changed", "Interrupted", "Item", "Listed", "compare", "follow"]

WATCH_SECONDS: Final = (300, 600)
"""How long the server is asked to keep a watch, at random between these, so that they do not all end together."""
_AT_ONCE: Final = 100
"""Objects read before others have their turn."""
_REST: Final = 0.1
"""Seconds between two pages that nobody waits for: all of 100,000 objects are compared in less than half a minute."""

_LOG: Final = logging.getLogger(__name__)


async def follow(
    client: KubeClient, resource: Resource[K, V], brain: Brain[K, V] | None = None
) -> AsyncGenerator[Item[K, V], None]:
    """Tell what there is of `resource` and every change of it. Never ends and raises nothing of ClusterMeshError.

    A `brain` from an earlier call keeps what it knows.
    """
    brain = Brain() if brain is None else brain
    clock = asyncio.get_running_loop().time
    source, pages = _nothing(), _Pages(client, resource)
    commands = brain.hear(Started(), clock())
    try:
        while True:
            for command in commands:
                match command:
                    case Tell(item):
                        yield item
                    case Wait(seconds):
                        await source.aclose()
                        await asyncio.sleep(seconds)
                    case request:
                        await source.aclose()
                        source = _perform(client, resource, request, pages)
            commands = brain.hear(await anext(source), clock())
    finally:
        await source.aclose()
        await pages.drop()


async def compare(
    client: KubeClient, resource: Resource[K, V], brain: Brain[K, V], rest: float = _REST
) -> AsyncGenerator[Item[K, V], None]:
    """Compare what `brain` knows, which somebody follows, with a list, once. What is certain only later the follower
    tells. Raises nothing of ClusterMeshError."""
    clock, pages = asyncio.get_running_loop().time, _Pages(client, resource)
    event: Event[K, V] = Due()
    try:
        while True:
            request = None
            for command in brain.hear(event, clock()):
                match command:
                    case Tell(item):
                        yield item
                    case List():
                        request = command
            if request is None:
                return
            found = await _list(resource, request, pages)
            event = Compared(found.entries, found.version, found.next)
            await asyncio.sleep(rest)
    except ClusterMeshError as error:
        _LOG.debug("what is known is not compared now: %s", error)
        brain.hear(Abandoned(), clock())
    finally:
        await pages.drop()


async def _nothing() -> AsyncGenerator[Any, None]:
    return
    yield


async def _perform(
    client: KubeClient, resource: Resource[K, V], request: List | Watch, pages: _Pages[K, V]
) -> AsyncGenerator[Event[K, V], None]:
    """What comes of `request`; the last of it is a Page, Ended or Failed."""
    try:
        if isinstance(request, List):
            yield await _list(resource, request, pages)
        else:
            async with aclosing(_watch(client, resource, request)) as events:
                async for event in events:
                    yield event
    except ClusterMeshError as error:
        yield Failed(error)


class _Pages(Generic[K, V]):
    """Asks for pages of lists, and for the one that follows before anybody does: one, while that before it is read."""

    def __init__(self, client: KubeClient, resource: Resource[K, V]) -> None:
        self._client, self._resource = client, resource
        self._ahead: tuple[List, asyncio.Task[bytes]] | None = None
        self.rounds = Rounds()  # of the list that is read

    async def get(self, request: List) -> bytes:
        """Raises ClusterMeshError."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == request:
            return await ahead[1]
        await _end(ahead)
        return await self._ask(request)

    def ask_ahead(self, request: List) -> None:
        task = asyncio.create_task(self._ask(request))
        task.add_done_callback(_look_at)
        self._ahead = request, task

    async def drop(self) -> None:
        """Nobody will ask for what was asked for ahead."""
        ahead, self._ahead = self._ahead, None
        await _end(ahead)

    async def _ask(self, request: List) -> bytes:
        params = {"limit": str(request.limit), **_selector(self._resource)}
        if request.next:
            params["continue"] = request.next
        if request.cached:  # resourceVersion 0 would do as well, but has the limit ignored
            params |= {"resourceVersion": "1", "resourceVersionMatch": "NotOlderThan"}
        what = f"list {self._resource.title}"
        return await self._client.get(self._resource.path, what, params, fresh=request.fresh)


async def _end(ahead: tuple[List, asyncio.Task[bytes]] | None) -> None:
    if ahead is not None:
        ahead[1].cancel()
        await asyncio.wait([ahead[1]])


def _look_at(ended: asyncio.Task[bytes]) -> None:
    """Where nobody comes for it, how it ended is nobody's concern, and asyncio would complain."""
    if not ended.cancelled():
        ended.exception()


async def _list(resource: Resource[K, V], request: List, pages: _Pages[K, V]) -> Page[K, V]:
    if not request.next:
        pages.rounds = Rounds()
    items, version, token = outline(resource, await pages.get(request))
    if pages.rounds.closes(token):
        raise Unavailable(f"list {resource.title}: its pages go round: the next one came before")
    if token:
        pages.ask_ahead(List(request.limit, token))
    entries = []
    for begin in range(0, len(items), _AT_ONCE):
        entries += decode_items(resource, items[begin : begin + _AT_ONCE])
        await asyncio.sleep(0)
    pages.rounds.note(token)  # not before: a page that fails is asked for again, and has the same one next
    return Page(entries, version, token)


async def _watch(client: KubeClient, resource: Resource[K, V], request: Watch) -> AsyncGenerator[Event[K, V], None]:
    params = {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": request.version,
        "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        **_selector(resource),
    }
    what, lines = f"watch {resource.title}", Lines()
    async with client.watch(resource.path, what, params, fresh=request.fresh) as pieces:
        yield Opened()
        async for piece in pieces:
            if not piece:
                yield await _probe(client, resource)
            for event in decode_events(resource, lines.feed(piece)):
                yield event
    yield Ended()


async def _probe(client: KubeClient, resource: Resource[K, V]) -> Probed:
    body = await client.get(resource.path, f"list {resource.title}", {"limit": "1", **_selector(resource)})
    return Probed(decode_page(resource, body).version)


def _selector(resource: Resource[K, V]) -> dict[str, str]:
    named = {"fieldSelector": resource.fields, "labelSelector": resource.labels}
    return {name: text for name, text in named.items() if text}
