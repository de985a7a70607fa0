"""What this cluster keeps in its etcd: which places, in which order, and what says that they are complete."""

from __future__ import annotations

from functools import partial
from typing import Final

from clustermesh.apiserver.keys_target import KeysTarget
from clustermesh.apiserver.ledger import Ledger, Resource
from clustermesh.apiserver.publish import ENDPOINTS, IDENTITIES, LOCAL_SERVICES, NODES, SERVICES
from clustermesh.model import Cluster, ClusterConfig
from clustermesh.store.client import EtcdClient
from clustermesh.store.lease import LeaseKeeper
from clustermesh.wire import cluster_config, keys

ABOUT: Final = "cluster-config"
EXPORTS: Final = "serviceexports"
CANARIES: Final = "canaries"
DATA: Final = (NODES, IDENTITIES, ENDPOINTS, SERVICES, EXPORTS, LOCAL_SERVICES)
"""In the order in which they are written: an address refers to an identity, and goes before it."""


def make_ledger(cluster: Cluster, client: EtcdClient, keeper: LeaseKeeper) -> Ledger:
    """The resources of `cluster`. One etcd describes one cluster: whatever stands there under another name is stale."""
    target = partial(KeysTarget, client, keeper)
    services = _state("services")
    return Ledger(
        [
            Resource(ABOUT, target([keys.cluster_config_key(cluster.name), keys.HEARTBEAT])),
            Resource(NODES, target([_state("nodes")])),
            Resource(IDENTITIES, target([keys.state_prefix("identities", cluster.name)])),
            Resource(ENDPOINTS, target([_state("ip")])),
            Resource(SERVICES, target([services, keys.STAMPS], partial(_service_of, services))),
            Resource(EXPORTS, target([_state("serviceexports")])),
            Resource(LOCAL_SERVICES, target([keys.LOCAL_SERVICES])),
            Resource(CANARIES, target([keys.canary_prefix(cluster.name), keys.LOCAL_SERVICES_SYNCED])),
        ]
    )


def watched_places(cluster: Cluster) -> list[bytes]:
    """The prefixes that show everything of `make_ledger`."""
    return [
        keys.STATE,
        keys.cluster_config_key(cluster.name),
        keys.HEARTBEAT,
        keys.canary_prefix(cluster.name),
        keys.LOCAL_SERVICES,
        keys.LOCAL_SERVICES_SYNCED,
        keys.STAMPS,
    ]


def canary_keys(cluster: Cluster) -> list[bytes]:
    """Service exports are none, but a reader may wait to be told so."""
    directories = ("nodes", "identities", "ip", "services", "serviceexports")
    return [*(keys.canary_key(cluster.name, directory) for directory in directories), keys.LOCAL_SERVICES_SYNCED]


def config_value(cluster: Cluster) -> bytes:
    """`service_exports_enabled` False says that the MCS API is known and not in use, as Cilium's default is."""
    config = ClusterConfig(
        id=cluster.id,
        synced_canaries=True,
        max_connected_clusters=cluster.max_clusters,
        service_exports_enabled=False,
    )
    return cluster_config.encode(config)


def _state(directory: str) -> bytes:
    return keys.STATE + directory.encode() + b"/v1/"


def _service_of(services: bytes, key: bytes) -> bytes:
    """The "<namespace>/<name>" that a service and its stamp share."""
    if key.startswith(keys.STAMPS):
        return key[len(keys.STAMPS) :]
    return key[len(services) :].partition(b"/")[2]
