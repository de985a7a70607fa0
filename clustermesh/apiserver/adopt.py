"""What was published before this process began and is taken over from etcd: numbers of identities, keys of nodes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.publish import Publisher
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import AgentRecord, Cluster
from clustermesh.wire import cluster_config
from clustermesh.wire.entries import decode_identity, decode_node

_LOG: Final = logging.getLogger(__name__)


def adopt_identities(
    allocator: Allocator, found: Mapping[bytes, bytes], cluster: Cluster, now: int
) -> dict[bytes, bytes | None]:
    """A restart renumbers nothing. What is to stand, for the grace where nobody uses it."""
    adopted = dict[bytes, bytes | None]()
    for key in sorted(found):
        try:
            if allocator.adopt(decode_identity(key, found[key], cluster), now):
                adopted[key] = found[key]
        except DecodeError as e:
            _LOG.warning("an identity found in etcd is not taken over: %s", e)
    if found:
        _LOG.info("%d identities taken over from etcd", len(allocator))
    return adopted


def exported(config: bytes | None) -> bool:
    """Whether a cluster config says that services are exported; one that cannot be read says nothing."""
    with suppress(Invalid):
        return config is not None and bool(cluster_config.decode(config).service_exports_enabled)
    return False


def adopt_keys(publisher: Publisher, found: Mapping[bytes, bytes], cluster: Cluster) -> None:
    """A node's key outlives the record of its agent also where that was lost while no API server ran."""
    for key, value in found.items():
        with suppress(Invalid):  # somebody's scribble: it is overwritten
            node = decode_node(key, value, cluster)
            if public_key := node.wireguard_public_key:
                publisher.adopt(AgentRecord(node=node.name, wireguard_public_key=public_key, boot_id=node.boot_id))
