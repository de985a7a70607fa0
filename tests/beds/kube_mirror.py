"""What a reader of `follow` knows by what it was told, and nothing else: the twin that is compared with the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec

from clustermesh.kube.access import Access
from clustermesh.kube.brain import Brain
from clustermesh.kube.client import KubeClient, Patience
from clustermesh.kube.follow import Changed, Interrupted, Item, Listed, follow
from clustermesh.kube.resource import Resource

Name = tuple[str, str]
PATIENCE: Final = 60.0
QUICK: Final = Patience(connect=2.0, read=3.0, quiet=1.0)


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}


class _Object(msgspec.Struct):
    metadata: _Metadata


_DECODER: Final = msgspec.json.Decoder(_Object)


def _decode(data: msgspec.Raw) -> tuple[Name, dict[str, str]]:
    found = _DECODER.decode(data).metadata
    return (found.namespace, found.name), found.labels


def labelled(plural: str, group: str = "", version: str = "v1", fields: str = "") -> Resource[Name, dict[str, str]]:
    """A kind of which only the labels matter."""
    return Resource(group=group, version=version, plural=plural, decode=_decode, key=lambda *name: name, fields=fields)


class Mirror:
    """Follows one kind; `state` is what was told."""

    def __init__(self, resource: Resource[Name, dict[str, str]], limit: int) -> None:
        self.resource = resource
        self.brain: Brain[Name, dict[str, str]] = Brain(limit)
        self.state: dict[Name, dict[str, str]] = {}
        self.told: list[Item[Name, dict[str, str]]] = []
        self._moved = asyncio.Event()

    async def run(self, client: KubeClient) -> None:
        async with aclosing(follow(client, self.resource, self.brain)) as items:
            async for item in items:
                self.told.append(item)
                if isinstance(item, Listed | Changed):
                    self._take(item)
                self._moved.set()

    def _take(self, item: Listed[Name, dict[str, str]] | Changed[Name, dict[str, str]]) -> None:
        for key, value in item.changes.items():
            if value is None:
                del self.state[key]
            else:
                self.state[key] = value

    async def until(self, holds: Callable[[], object]) -> None:
        """Until `holds`, asked after everything that is told."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._moved.clear()
                await self._moved.wait()

    async def until_told(self, kind: type[Any]) -> Any:
        """The next item of `kind` from now on."""
        seen = len(self.told)
        await self.until(lambda: any(isinstance(item, kind) for item in self.told[seen:]))
        return next(item for item in self.told[seen:] if isinstance(item, kind))

    async def until_following(self) -> None:
        """Until the server has taken the watch, of which nothing is told where nothing was wrong."""
        async with asyncio.timeout(PATIENCE):
            while self.brain.view().state != "following":
                await asyncio.sleep(0.01)

    def interruptions(self) -> list[str]:
        return [str(item.error) for item in self.told if isinstance(item, Interrupted)]


@asynccontextmanager
async def mirrored(
    access: Access, resource: Resource[Name, dict[str, str]], *, limit: int = 500, patience: Patience = QUICK
) -> AsyncIterator[Mirror]:
    """A mirror of `resource` that has its first complete list, following until the block ends."""
    mirror = Mirror(resource, limit)
    async with KubeClient(access, patience) as client, asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(client))
        await mirror.until(lambda: mirror.brain.complete)
        yield mirror
        task.cancel()
