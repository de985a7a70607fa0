"""Which tables a reader follows: of a peer, and of the own cluster."""

from __future__ import annotations

from clustermesh.mesh.reader import Resource
from clustermesh.model import Cluster, ClusterConfig, Stamp
from clustermesh.wire import RESOURCES, entries, keys, local


def peer_tables(cluster: str, config: ClusterConfig) -> list[Resource]:
    """What is read of another cluster, from its own keys or, where it says `cached`, from kvstoremesh's copies."""
    cached = config.cached
    tables = [_shared(name, cluster, cached) for name in ("nodes", "identities", "endpoints", "services")]
    return tables if cached else [*tables, _stamps()]


def own_tables(cluster: str, config: ClusterConfig) -> list[Resource]:
    """What is read of the own cluster: its services in full, under this project's prefix."""
    tables = [_shared(name, cluster, config.cached) for name in ("nodes", "identities", "endpoints")]
    services = Resource(
        kind="local_services",
        prefix=keys.LOCAL_SERVICES,
        canary=keys.LOCAL_SERVICES_SYNCED,
        name_of=keys.parse_local_service,
        decode=entries.decode_local_service,
    )
    return [*tables, services]


def _shared(name: str, cluster: str, cached: bool) -> Resource:
    resource = RESOURCES[name]
    return Resource(
        kind=name,
        prefix=resource.prefix(cluster, cached),
        canary=resource.canary(cluster, cached),
        name_of=resource.name_of,
        decode=resource.decode,
    )


def _stamps() -> Resource:
    """Only clusters of this project have them, and nothing depends on them."""
    return Resource(
        kind="stamps",
        prefix=keys.STAMPS,
        canary=None,
        name_of=keys.parse_stamp,
        decode=_decode_stamp,
        required=False,
    )


def _decode_stamp(_key: bytes, value: bytes, _cluster: Cluster) -> Stamp:
    return local.decode_stamp(value)
