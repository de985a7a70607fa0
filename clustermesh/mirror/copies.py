"""What of a cluster is copied, and where to. Pure.

Source of the places: Cilium, pkg/clustermesh/kvstoremesh/reflector.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from clustermesh.address import Address, Prefix, prefix_text, text
from clustermesh.mesh.tables import Table, peer_tables
from clustermesh.model import Cluster, ClusterConfig, Endpoint, Identity, Service
from clustermesh.wire import RESOURCES, Resource, cluster_config, keys, service
from clustermesh.wire.entries import MOST_BACKENDS
from clustermesh.wire.kinds import (
    ENDPOINT_SLICES,
    ENDPOINTS,
    IDENTITIES,
    NODES,
    SERVICE_EXPORTS,
    SERVICES,
    STAMPS,
)

KINDS: Final = (NODES, IDENTITIES, ENDPOINTS, SERVICES, SERVICE_EXPORTS, ENDPOINT_SLICES)
"""Everything there is a canary for, in the order in which it is written."""


_ANYBODY: Final = Identity(id=0, labels=())
_NOWHERE: Final = Address(bytes(16))


class Copy(Struct, frozen=True, gc=False):
    """An entry as it was decoded, and the bytes it was decoded from."""

    entry: Any
    value: bytes


def copied_kinds(config: ClusterConfig) -> tuple[str, ...]:
    """What a cluster with `config` has to be copied. The others are complete without an entry."""
    absent = set() if config.service_exports_enabled else {SERVICE_EXPORTS}
    absent |= set() if config.endpoint_slices_export_mode else {ENDPOINT_SLICES}
    return tuple(kind for kind in KINDS if kind not in absent)


def copied_tables(cluster: str, config: ClusterConfig) -> list[Table]:
    """What is read of `cluster`; from its own cache where it says so. Values are decoded to Copies, but not times of
    changes, which are not copied."""
    tables = [_table(RESOURCES[kind], cluster, config.cached) for kind in copied_kinds(config)]
    return [*tables, *(table for table in peer_tables(cluster, config) if table.kind == STAMPS)]


def copied_config(config: ClusterConfig) -> bytes:
    """What the own agents are told of a cluster with `config`."""
    copy = ClusterConfig(
        id=config.id,
        synced_canaries=True,
        cached=True,
        max_connected_clusters=config.max_connected_clusters,
        service_exports_enabled=config.service_exports_enabled,
        endpoint_slices_export_mode=config.endpoint_slices_export_mode,
    )
    return cluster_config.encode(copy)


def cache_place(kind: str) -> bytes:
    """Where the copies of `kind` of all clusters are."""
    return keys.CACHE + f"{RESOURCES[kind].directory}/v1/".encode()


def cache_key(cluster: str, kind: str, name: Any) -> bytes:
    """Where the copy of the entry `name` is."""
    if kind in (NODES, IDENTITIES):
        tail = str(name)
    elif kind == ENDPOINTS:
        tail = prefix_text(name) if isinstance(name, Prefix) else text(name)
    else:
        tail = "/".join(name)
    return RESOURCES[kind].prefix(cluster, cached=True) + tail.encode()


@lru_cache(4096)  # asked for at each pass, for every cluster
def canary_key(cluster: str, kind: str) -> bytes:
    """What says that all copies of `kind` are there."""
    return keys.canary_key(cluster, RESOURCES[kind].directory, cached=True)


def cluster_of(key: bytes) -> str:
    """Whose copy is at `key`, any key under the cache; "" where it is nobody's."""
    parts = key.split(b"/", 5)
    return parts[4].decode(errors="replace") if len(parts) > 5 else ""


def outline(kind: str, entry: Any) -> Any:
    """What judging takes of a decoded entry; whoever needs more decodes it again."""
    if kind == IDENTITIES:
        return _ANYBODY
    if kind == ENDPOINTS:
        return _who(entry.identity, entry.host_ip)
    if kind == SERVICES:
        return Service(
            cluster=entry.cluster,
            cluster_id=entry.cluster_id,
            namespace=entry.namespace,
            name=entry.name,
            backends=entry.backends,
        )
    return entry


def with_backends(value: bytes, used: Service) -> bytes:
    """The service in `value` with the backends of `used`."""
    return service.encode(replace(service.decode(value, MOST_BACKENDS), backends=used.backends))


@lru_cache(1 << 16)  # most endpoints of a node have one of a few identities
def _who(identity: int, host: Address | None) -> Endpoint:
    return Endpoint(ip=_NOWHERE, identity=identity, host_ip=host)


def _table(resource: Resource, cluster: str, cached: bool) -> Table:
    return Table(
        kind=resource.name,
        prefix=resource.prefix(cluster, cached),
        canary=resource.canary(cluster, cached),
        name_of=resource.name_of,
        decode=_copying(resource.decode),
    )


def _copying(decode: Callable[[bytes, bytes, Cluster], Any]) -> Callable[[bytes, bytes, Cluster], Copy]:
    return lambda key, value, cluster: Copy(decode(key, value, cluster), value)
