"""What `connect`, `disconnect` and `peers` do where clusters are contexts of a kubeconfig."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import combinations

from clustermesh.address import Prefix
from clustermesh.cli.contexts import Which
from clustermesh.errors import ClusterMeshError, Invalid, Refused, Unavailable
from clustermesh.joining.connect import Site, Wanted, connect, disconnect, open_api, read_site
from clustermesh.joining.connections import list_connections
from clustermesh.joining.links import Mode, known_peers
from clustermesh.joining.member import Entrance
from clustermesh.joining.objects import Objects
from clustermesh.standalone.connect import Outcome
from clustermesh.standalone.connections import Connection


async def connect_contexts(
    which: Which,
    destinations: Sequence[str],
    mode: str,
    entrances: Mapping[str, Entrance | None],
    allowed: tuple[Prefix, ...],
    unreached: bool,
) -> Outcome:
    """Raises an ExceptionGroup of all that is wrong, ClusterMeshError."""
    async with _opened(which, [which.context, *destinations]) as found:
        if errors := [each for each in found if isinstance(each, ClusterMeshError)]:
            raise ExceptionGroup("clusters that cannot be read", errors)
        ours, *theirs = [each for each in found if isinstance(each, Site)]
        wanted = Wanted(mode=Mode(mode), allowed=allowed, unreached=unreached, **entrances)
        return await connect(ours, theirs, wanted, datetime.now(UTC))


async def disconnect_contexts(which: Which, destinations: Sequence[str], peer: str | None, mode: str) -> Outcome:
    """Raises ClusterMeshError for what fails on the side of `source`."""
    async with _opened(which, [which.context, *destinations]) as (ours, *others):
        if isinstance(ours, ClusterMeshError):
            raise ours
        gone = [(peer, None)] if peer else []
        silent = [str(each) for each in others if isinstance(each, Unavailable)]
        pairs = [(ours, *_named(ours, *each)) for each in zip(destinations, others, strict=True)]
        pairs += [(ours, *each) for each in gone]
        if Mode(mode) is Mode.MESH:
            alive = [each for each in others if isinstance(each, Site)]
            pairs += [(first, second.member.name, second) for first, second in combinations(alive, 2)]
        for reader, name, _ in pairs:
            if name == reader.member.name:
                raise Invalid("peer", name, "is this cluster itself")
        outcome, failed = Outcome([], silent), list[ClusterMeshError]()
        for reader, name, other in pairs:
            try:
                each = await disconnect(reader, name, other, Mode(mode))
            except ClusterMeshError as e:
                failed.append(e)
                continue
            outcome.done.extend(each.done)
            outcome.warnings.extend(each.warnings)
        if failed:
            done = "".join(f"; done: {sentence}" for sentence in outcome.done)
            raise ExceptionGroup("cannot be taken apart", [*failed[:-1], Refused(f"{failed[-1]}{done}")])
        return outcome


async def peers_of_context(which: Which) -> list[Connection]:
    """Raises ClusterMeshError."""
    async with _opened(which, [which.context]) as (found,):
        if isinstance(found, ClusterMeshError):
            raise found
        return list_connections(found.member, datetime.now(UTC))


def _named(source: Site, context: str, found: Site | ClusterMeshError) -> tuple[str, Site | None]:
    """Of a cluster that is gone nothing tells the name, but that of its context may be the same. One whose API answers
    is not gone, whatever keeps it from being read."""
    if isinstance(found, Site):
        return found.member.name, found
    connected = known_peers(source.member.entries)
    if context in connected and isinstance(found, Unavailable):
        return context, None
    names = ", ".join(connected) or "none"
    raise Refused(f"{found}. To leave a cluster that is gone, name it: --peer NAME (connected: {names})") from found


@asynccontextmanager
async def _opened(which: Which, contexts: Sequence[str]) -> AsyncIterator[list[Site | ClusterMeshError]]:
    """Each of `contexts`, or why it cannot be read."""
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(open_api(which.kubeconfig, each, which.namespace)) for each in contexts]
        yield list(await asyncio.gather(*map(_read, apis, contexts)))


async def _read(objects: Objects, context: str) -> Site | ClusterMeshError:
    try:
        return await read_site(objects, context)
    except ClusterMeshError as e:
        return e
