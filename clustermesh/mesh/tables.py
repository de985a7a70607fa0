"""Which tables a reader follows: of a peer, and of the own cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from clustermesh.model import Cluster, ClusterConfig
from clustermesh.wire import RESOURCES, Resource, keys
from clustermesh.wire.kinds import LOCAL_SERVICES, SERVICES


class Twin(NamedTuple):
    """The table `kind` of the same cluster, where an entry may move to. `keys_of(name)` are those in both tables: what
    has come back while the other told of it is there, too."""

    kind: str
    keys_of: Callable[[Any], tuple[bytes, bytes]]


class Table(Struct, frozen=True, kw_only=True):
    """One table of a cluster: where it is, which key says that it is complete, how an entry is decoded.

    `name_of(key)` gives the entry's name in the table and `decode(key, value, cluster)` its value; both raise Invalid
    for what may not be there. The kind nothing depends on (`required` False) may be forbidden or absent. What vanishes
    here and stands in the `twin` has moved there: it is kept until it is heard of there.
    """

    kind: str
    prefix: bytes
    canary: bytes | None
    name_of: Callable[[bytes], Any]
    decode: Callable[[bytes, bytes, Cluster], Any]
    required: bool = True
    twin: Twin | None = None


def peer_tables(cluster: str, config: ClusterConfig) -> list[Table]:
    """What is read of another cluster, from its own keys or, where it says `cached`, from kvstoremesh's copies.

    kvstoremesh copies nothing of this project's own.
    """
    return [
        _table(resource, cluster, config.cached)
        for resource in RESOURCES.values()
        if resource.of_peers and (resource.directory or not config.cached)
    ]


def own_tables(cluster: str, config: ClusterConfig) -> list[Table]:
    """What is read of the own cluster. A service is where peers read it, under this project's prefix, or in both."""

    def both(name: tuple[str, str]) -> tuple[bytes, bytes]:
        return keys.service_key(cluster, *name), keys.local_service_key(*name)

    twins = {SERVICES: Twin(LOCAL_SERVICES, both), LOCAL_SERVICES: Twin(SERVICES, both)}
    tables = [_table(resource, cluster, config.cached) for resource in RESOURCES.values() if resource.of_own]
    return [replace(table, twin=twins.get(table.kind)) for table in tables]


def _table(resource: Resource, cluster: str, cached: bool) -> Table:
    return Table(
        kind=resource.name,
        prefix=resource.prefix(cluster, cached),
        canary=resource.canary(cluster, cached),
        name_of=resource.name_of,
        decode=resource.decode,
        required=not resource.optional,
    )
