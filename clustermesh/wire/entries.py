"""A cluster speaks only for itself: decoding an entry also checks that its key, its value and its owner agree.

These are the checks of Cilium's validators, one decoder for each resource. Each takes the key in its state or cache
form, the value, and the cluster whose etcd (or cached copy) it was read from, and raises nothing but DecodeError.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from msgspec import Struct, structs

from clustermesh.address import Address, Prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import (
    AgentRecord,
    Cluster,
    Endpoint,
    EndpointSlice,
    Identity,
    LocalService,
    Node,
    Service,
    ServiceExport,
    Stamp,
)
from clustermesh.wire import endpoint, identity, keys, kinds, local, node, numbering, service, service_export
from clustermesh.wire.decoding import decodes

MOST_BACKENDS: Final = 10_000
"""Of one service. To read more of them would hold up everything else for more than 10 ms."""

Entry: TypeAlias = Node | Service | Identity | Endpoint | ServiceExport | EndpointSlice
Name: TypeAlias = str | int | tuple[str, str] | Address | Prefix


@decodes("node")
def decode_node(key: bytes, value: bytes, cluster: Cluster) -> Node:
    """The name, the cluster and the cluster id are the key's and the owner's."""
    found = node.decode(value)
    _check_same("key", keys.parse_node(key), (cluster.name, found.name))
    _check_owner(found.cluster, found.cluster_id, cluster)
    return found


@decodes("service")
def decode_service(key: bytes, value: bytes, cluster: Cluster) -> Service:
    """The names, the cluster and the cluster id are the key's and the owner's. Not `shared` is as good as absent."""
    found = service.decode(value, MOST_BACKENDS)
    _check_same("key", keys.parse_service(key), (cluster.name, found.namespace, found.name))
    _check_owner(found.cluster, found.cluster_id, cluster)
    return found


@decodes("identity")
def decode_identity(key: bytes, value: bytes, cluster: Cluster) -> Identity:
    """The number is in the owner's range (so not a reserved one), and the labels name the owner."""
    parsed = keys.parse_identity(key)
    _check_scope(parsed.cluster, cluster)
    found = identity.decode(value, numbering.check_allotted(parsed.id, cluster))
    _check_same(f"label {identity.CLUSTER_LABEL}", identity.cluster_of(found), cluster.name)
    return found


@decodes("endpoint")
def decode_endpoint(key: bytes, value: bytes, cluster: Cluster) -> Endpoint:
    """The address is the key's. The identity is in the owner's range or reserved; the owner's host is a remote node."""
    parsed = keys.parse_endpoint(key)
    _check_scope(parsed.cluster, cluster)
    found = endpoint.decode(value)
    if parsed.place != endpoint.place_of(found):
        raise Invalid("key", key, "must name the address or CIDR of its value")
    meant = numbering.remote_identity(found.identity, cluster)
    return found if meant == found.identity else structs.replace(found, identity=meant)


@decodes("service export")
def decode_service_export(key: bytes, value: bytes, cluster: Cluster) -> ServiceExport:
    """The names and the cluster are the key's and the owner's."""
    found = service_export.decode(value)
    _check_same("key", keys.parse_service_export(key), (cluster.name, found.namespace, found.name))
    _check_same("cluster", found.cluster, cluster.name)
    return found


@decodes("endpoint slice")
def decode_endpoint_slice(key: bytes, value: bytes, cluster: Cluster) -> EndpointSlice:
    """The names, the cluster and the cluster id are the key's and the owner's."""
    from clustermesh.wire import endpoint_slice  # protobuf and zstandard, which few clusters need

    found = endpoint_slice.decode(value)
    _check_same("key", keys.parse_endpoint_slice(key), (cluster.name, found.namespace, found.name))
    _check_owner(found.cluster, found.cluster_id, cluster)
    return found


@decodes("local service")
def decode_local_service(key: bytes, value: bytes, cluster: Cluster) -> LocalService:
    """An own service, by its API server to its agents: the names and the owner are the key's and the cluster's."""
    found = local.decode_service(value)
    _check_same("key", keys.parse_local_service(key), (found.service.namespace, found.service.name))
    _check_owner(found.service.cluster, found.service.cluster_id, cluster)
    return found


@decodes("agent record")
def decode_agent_record(key: bytes, value: bytes) -> AgentRecord:
    """What an agent says of its own node, by name."""
    node, found = keys.parse_agent(key), local.decode_agent(value)
    if found.node != node:
        raise Invalid("node", found.node, f"must be {node}, as its key says")
    return found


class Resource(Struct, frozen=True, kw_only=True):
    """One kind of data: where it is, which key says that it is complete, how it is decoded, and who is concerned.

    `directory` is its folder under cilium/state and cilium/cache; "" for what only clusters of this project have, which
    is at `private` and complete when there is `private_canary`. `name_of(key)` is what the entry is called in a table
    of one cluster: node name, (namespace, name), identity, address or CIDR. Both callables raise DecodeError only.

    `published` by the API server; read `of_peers`, `of_own` by the agents. Nothing depends on what is `optional`: it
    may be forbidden or absent, and is not kept.
    """

    name: str
    directory: str = ""
    private: bytes = b""
    private_canary: bytes | None = None
    name_of: Callable[[bytes], Name]
    decode: Callable[[bytes, bytes, Cluster], Any]
    published: bool = False
    of_peers: bool = False
    of_own: bool = False
    optional: bool = False

    @property
    def place(self) -> bytes:
        """Where the API server has all of it, under whichever cluster's name."""
        if not self.directory or self.name == kinds.IDENTITIES:  # an allocator keeps more beside its identities
            return self.prefix("any")
        return keys.STATE + f"{self.directory}/v1/".encode()

    def prefix(self, cluster: str, cached: bool = False) -> bytes:
        """What to list and watch, with its final "/"."""
        if not self.directory:
            return self.private
        return (keys.cache_prefix if cached else keys.state_prefix)(self.directory, cluster)

    def canary(self, cluster: str, cached: bool = False) -> bytes | None:
        """The key whose presence says that everything under `prefix` was written; None where nothing says so."""
        return keys.canary_key(cluster, self.directory, cached) if self.directory else self.private_canary


def _decode_stamps(_key: bytes, value: bytes, _cluster: Cluster) -> Mapping[tuple[str, str], Stamp]:
    return local.decode_stamps(value)


_TABLE: Final = (
    # In the order in which they are written: an address refers to an identity, and goes after it.
    Resource(
        name=kinds.NODES,
        directory="nodes",
        name_of=lambda key: keys.parse_node(key).name,
        decode=decode_node,
        published=True,
        of_peers=True,
        of_own=True,
    ),
    Resource(
        name=kinds.IDENTITIES,
        directory="identities",
        name_of=lambda key: keys.parse_identity(key).id,
        decode=decode_identity,
        published=True,
        of_peers=True,
        of_own=True,
    ),
    Resource(
        name=kinds.ENDPOINTS,
        directory="ip",
        name_of=lambda key: keys.parse_endpoint(key).place,
        decode=decode_endpoint,
        published=True,
        of_peers=True,
        of_own=True,
    ),
    Resource(
        name=kinds.SERVICES,
        directory="services",
        name_of=lambda key: keys.parse_service(key)[1:],
        decode=decode_service,
        published=True,
        of_peers=True,
        of_own=True,
    ),
    Resource(
        name=kinds.SERVICE_EXPORTS,
        directory="serviceexports",
        name_of=lambda key: keys.parse_service_export(key)[1:],
        decode=decode_service_export,
        published=True,
    ),
    Resource(
        name=kinds.ENDPOINT_SLICES,
        directory="endpointslices",
        name_of=lambda key: keys.parse_endpoint_slice(key)[1:],
        decode=decode_endpoint_slice,
    ),
    Resource(
        name=kinds.LOCAL_SERVICES,
        private=keys.LOCAL_SERVICES,
        private_canary=keys.LOCAL_SERVICES_SYNCED,
        name_of=keys.parse_local_service,
        decode=decode_local_service,
        published=True,
        of_own=True,
    ),
    Resource(
        name=kinds.STAMPS,
        private=keys.CHANGES,
        name_of=keys.parse_changes,
        decode=_decode_stamps,
        of_peers=True,
        optional=True,
    ),
)
RESOURCES: Final[Mapping[str, Resource]] = MappingProxyType({resource.name: resource for resource in _TABLE})


def resource_of(key: bytes) -> Resource:
    """The resource a data key of Cilium's belongs to, in its state or cache form; DecodeError for any other key."""
    for resource in RESOURCES.values():
        tail = f"{resource.directory}/v1/".encode()
        if resource.directory and key.startswith((keys.STATE + tail, keys.CACHE + tail)):
            return resource
    raise DecodeError("key", key[:300], "must be of a known resource")


def decode_entry(key: bytes, value: bytes, cluster: Cluster) -> Entry:
    """The entry of `cluster` at `key`, whichever resource that is; raises DecodeError only."""
    entry: Entry = resource_of(key).decode(key, value, cluster)
    return entry


def _check_owner(name: str, cluster_id: int, cluster: Cluster) -> None:
    _check_same("cluster", name, cluster.name)
    _check_same("cluster id", cluster_id, cluster.id)


def _check_scope(named: str | None, cluster: Cluster) -> None:
    """Keys under cilium/state do not name their cluster where it is not part of the entry's name."""
    if named is not None:
        _check_same("key", named, cluster.name)


def _check_same(where: str, found: Hashable, expected: Hashable) -> None:
    if found != expected:
        raise Invalid(where, found, f"must be {expected!r}")
