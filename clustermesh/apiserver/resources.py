"""What this cluster keeps in its etcd: which places, in which order, and what says that they are complete."""

from __future__ import annotations

from functools import partial
from typing import Final

from clustermesh.apiserver.keys_target import WRITES, KeysTarget
from clustermesh.apiserver.ledger import Ledger, Section
from clustermesh.apiserver.stamps import Stamps
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.pace import Load, Pace
from clustermesh.store.client import EtcdClient
from clustermesh.store.lease import LeaseKeeper
from clustermesh.wire import RESOURCES, Resource, cluster_config, keys
from clustermesh.wire.kinds import SERVICES

ABOUT: Final = "cluster-config"
CANARIES: Final = "canaries"
DATA: Final = tuple(
    sorted((each.name for each in RESOURCES.values() if each.published), key=lambda kind: kind == SERVICES)
)
"""In the order in which they are written, and deleted the other way round. What own agents alone are told of a service
comes before what all are: a backend that gets nothing new is gone from there, and not gone."""


def make_ledger(cluster: Cluster, client: EtcdClient, keeper: LeaseKeeper, writes: Load = WRITES) -> Ledger:
    """The sections of `cluster`. One etcd describes one cluster: whatever stands there under another name is stale."""
    target = partial(KeysTarget, client, keeper, pace=Pace(writes))
    stamps = Stamps(RESOURCES[SERVICES].prefix(cluster.name))
    sections = [
        Section(ABOUT, target([keys.cluster_config_key(cluster.name), keys.HEARTBEAT])),
        *(Section(kind, target(_places(RESOURCES[kind]), stamps if kind == SERVICES else None)) for kind in DATA),
        Section(CANARIES, target([keys.canary_prefix(cluster.name), keys.LOCAL_SERVICES_SYNCED])),
    ]
    return Ledger(sections, stamps)


def watched_places(cluster: Cluster) -> list[bytes]:
    """The prefixes that show everything of `make_ledger`."""
    return [
        keys.STATE,
        keys.cluster_config_key(cluster.name),
        keys.HEARTBEAT,
        keys.canary_prefix(cluster.name),
        keys.LOCAL_SERVICES,
        keys.LOCAL_SERVICES_SYNCED,
        keys.OLD_STAMPS,
    ]


def canary_keys(cluster: Cluster) -> list[bytes]:
    """Also of service exports where there are none: a reader may wait to be told so."""
    canaries = (RESOURCES[kind].canary(cluster.name) for kind in DATA)
    return [canary for canary in canaries if canary is not None]


def config_value(cluster: Cluster, exports: bool) -> bytes:
    """Without `exports` it says that the MCS API is known and not in use, as Cilium's default is."""
    config = ClusterConfig(
        id=cluster.id,
        synced_canaries=True,
        max_connected_clusters=cluster.max_clusters,
        service_exports_enabled=exports,
    )
    return cluster_config.encode(config)


def _places(resource: Resource) -> list[bytes]:
    """Where the keys of a section are."""
    return [resource.place, keys.OLD_STAMPS] if resource.name == SERVICES else [resource.place]
