"""cilium/cluster-config/<cluster>: what a cluster tells its readers first (Cilium: pkg/clustermesh/types/types.go)."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from clustermesh.errors import Invalid
from clustermesh.model import ClusterConfig, check_cluster_id
from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes
from clustermesh.wire.go_json import UInt32

_LARGEST_MESH: Final = 511


class _Capabilities(Struct, frozen=True, gc=False, omit_defaults=True):
    synced_canaries: bool = field(name="syncedCanaries", default=False)
    cached: bool = False
    max_connected_clusters: UInt32 = field(name="maxConnectedClusters", default=0)
    service_exports_enabled: bool | None = field(name="serviceExportsEnabled", default=None)
    endpoint_slices_export_mode: str = field(name="endpointSlicesExportMode", default="")


class _Config(Struct, frozen=True, gc=False):
    id: UInt32 = 0
    capabilities: _Capabilities | UnsetType | None = UNSET


_DECODER: Final = msgspec.json.Decoder(_Config)


def encode(config: ClusterConfig) -> bytes:
    """JSON; `capabilities` always stands there, its fields only when set. Invalid for an id no cluster can have."""
    _check(config)
    capabilities = _Capabilities(
        config.synced_canaries,
        config.cached,
        config.max_connected_clusters,
        config.service_exports_enabled,
        config.endpoint_slices_export_mode,
    )
    return go_json.encode(_Config(config.id, capabilities))


@decodes("cluster config")
def decode(data: bytes) -> ClusterConfig:
    """Raises DecodeError; an id of 0, and a mesh size other than 255 or 511, are refused, an absent size is 0."""
    wire = _DECODER.decode(data)
    capabilities = wire.capabilities or _Capabilities()
    config = ClusterConfig(
        id=wire.id,
        synced_canaries=capabilities.synced_canaries,
        cached=capabilities.cached,
        max_connected_clusters=capabilities.max_connected_clusters,
        service_exports_enabled=capabilities.service_exports_enabled,
        endpoint_slices_export_mode=capabilities.endpoint_slices_export_mode,
    )
    _check(config)
    return config


def _check(config: ClusterConfig) -> None:
    if config.max_connected_clusters not in (0, 255, _LARGEST_MESH):
        raise Invalid("maxConnectedClusters", config.max_connected_clusters, "must be 255 or 511, or absent")
    check_cluster_id(config.id, config.max_connected_clusters or _LARGEST_MESH)
