"""Who owns which numeric identity.

An identity has 32 bits: the upper 8 are its scope (0 global, 1 local or CIDR, 2 remote node), the lower 24 hold the
cluster id above and a number of that cluster below. With 255 clusters the cluster id begins at bit 16, with 511 at
bit 15. Identities below 256 mean the same in every cluster. Scopes 1 and 2 never leave their node.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from clustermesh.errors import Invalid
from clustermesh.model import MAX_CLUSTERS, Cluster, Label, check_cluster_id

HOST: Final = 1
WORLD: Final = 2
REMOTE_NODE: Final = 6
MIN_ALLOCATED: Final = 256  # below are the reserved and the well-known identities
_SHIFTS: Final = {255: 16, 511: 15}
_RESERVED_NAMES: Final = (
    ("unknown",),
    ("host",),
    ("world",),
    ("unmanaged",),
    ("health",),
    ("init",),
    ("remote-node",),
    ("kube-apiserver", "remote-node"),
    ("ingress",),
    ("world-ipv4",),
    ("world-ipv6",),
    (),  # encrypted-overlay carries no label
)
RESERVED: Final[Mapping[int, tuple[Label, ...]]] = MappingProxyType(
    {i: tuple(Label(source="reserved", key=key) for key in keys) for i, keys in enumerate(_RESERVED_NAMES)}
)
"""The labels of each reserved identity, 0 (unknown) to 11 (encrypted-overlay)."""


def cluster_shift(max_clusters: int = MAX_CLUSTERS) -> int:
    """Where the cluster id begins: bit 16 for 255 clusters, 15 for 511; Invalid for any other number."""
    if max_clusters not in _SHIFTS:
        raise Invalid("max connected clusters", max_clusters, "must be 255 or 511")
    return _SHIFTS[max_clusters]


@lru_cache(1024)
def identity_range(cluster_id: int, max_clusters: int = MAX_CLUSTERS) -> range:
    """The identities a cluster allots from; id 0 (no mesh) allots from 256. Invalid for an id out of range."""
    shift = cluster_shift(max_clusters)
    if cluster_id:
        check_cluster_id(cluster_id, max_clusters)
    return range(max(cluster_id << shift, MIN_ALLOCATED), (cluster_id + 1) << shift)


def usual_number(labels: tuple[Label, ...], cluster: Cluster) -> int:
    """The number that `labels`, sorted by key, have in `cluster` where no others of the same usual number had it first:
    here this project's choice; Cilium's own allocators draw theirs."""
    text = "".join(f"{label.source}:{label.key}={label.value};" for label in labels)
    owned = identity_range(cluster.id, cluster.max_clusters)
    return owned[int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % len(owned)]


def cluster_of(identity: int, max_clusters: int = MAX_CLUSTERS) -> int:
    """The id of the cluster that allotted `identity` (0: none, it is reserved)."""
    return (identity >> cluster_shift(max_clusters)) & max_clusters


def is_reserved(identity: int) -> bool:
    """True for identities that belong to no cluster and mean the same in all."""
    return 0 <= identity < MIN_ALLOCATED


def check_allotted(identity: int, cluster: Cluster) -> int:
    """`identity`, or Invalid unless `cluster` may allot it."""
    owned = identity_range(cluster.id, cluster.max_clusters)
    if identity not in owned:
        raise Invalid("identity", identity, f"must be {owned[0]} to {owned[-1]}, the range of cluster {cluster.name}")
    return identity


def remote_identity(identity: int, cluster: Cluster) -> int:
    """What `identity` in an entry of `cluster` means elsewhere: its host is a remote node. Else as check_allotted."""
    if identity == HOST:
        return REMOTE_NODE
    return identity if is_reserved(identity) else check_allotted(identity, cluster)
