"""Every etcd key: Cilium's own, the copies kvstoremesh keeps of them, and this project's under clustermesh/v1/.

Builders take names and give bytes, parsers take bytes and give names. Builders raise Invalid for a name no key can
hold, parsers DecodeError for a key that is not of their kind. A parser of Cilium's data keys takes the state and the
cache form alike; `cluster` is None where the key does not name it (identities and addresses under cilium/state).

A resource is called here by its folder: nodes, services, identities, ip, serviceexports, endpointslices.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from clustermesh import address
from clustermesh.address import Address, Prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.wire.decoding import decodes

STATE: Final = b"cilium/state/"
CACHE: Final = b"cilium/cache/"
CLUSTER_CONFIGS: Final = b"cilium/cluster-config/"
SYNCED: Final = b"cilium/synced/"
HEARTBEAT: Final = b"cilium/.heartbeat"  # granted and watched as a prefix, without a slash
KVSTOREMESH_LOCK: Final = b"cilium/kvstoremesh-lock"

DIRECTORIES: Final = ("nodes", "services", "identities", "ip", "serviceexports", "endpointslices")

OWN: Final = b"clustermesh/v1/"
LOCAL_SERVICES: Final = OWN + b"services/"
LOCAL_SERVICES_SYNCED: Final = OWN + b"synced/services"
AGENTS: Final = OWN + b"agents/"
CHANGES: Final = OWN + b"changes/"
CHANGED_SERVICES: Final = CHANGES + b"services"
OLD_STAMPS: Final = OWN + b"stamps/services/"  # one for each service, by API servers before this; to be removed
STATUSES: Final = OWN + b"status/"
API_SERVER: Final = OWN + b"apiserver"
MIRROR: Final = OWN + b"kvstoremesh"
API_SERVER_LEADERS: Final = OWN + b"leaders/apiserver/"
REVOKED: Final = OWN + b"revoked/"  # and a user's name: removed, its connections not cut yet

_SEGMENT: Final = r"([^/]+)"
_NODE: Final = re.compile(rf"cilium/(?:state|cache)/nodes/v1/{_SEGMENT}/{_SEGMENT}")
_NAMESPACED: Final = {
    directory: re.compile(rf"cilium/(?:state|cache)/{directory}/v1/{_SEGMENT}/{_SEGMENT}/{_SEGMENT}")
    for directory in ("services", "serviceexports", "endpointslices")
}
_IDENTITY: Final = re.compile(r"cilium/(?:state/identities/v1|cache/identities/v1/([^/]+))/id/(0|[1-9][0-9]{0,9})")
_ENDPOINT: Final = re.compile(
    r"cilium/(?:state/ip/v1/default|cache/ip/v1/([^/]+))/([0-9a-f.:]+)(?:/(0|[1-9][0-9]{0,2}))?"
)
_CANARY: Final = re.compile(rf"cilium/synced/{_SEGMENT}/cilium/(state|cache)/{_SEGMENT}/v1")


class NodeKey(NamedTuple):
    cluster: str
    name: str


class NamespacedKey(NamedTuple):
    """Of a service, a service export or an endpoint slice."""

    cluster: str
    namespace: str
    name: str


class IdentityKey(NamedTuple):
    cluster: str | None
    id: int


class EndpointKey(NamedTuple):
    """`place` is a Prefix for a CIDR."""

    cluster: str | None
    place: Address | Prefix


class CanaryKey(NamedTuple):
    """Of the resource in the folder `directory`; `cached` under cilium/cache."""

    cluster: str
    directory: str
    cached: bool


def check_name(name: str, where: str) -> str:
    """`name`, or Invalid unless a key can hold it: 1 to 253 printable characters, no "/", not "." or ".."."""
    if not 1 <= len(name) <= 253 or "/" in name or not name.isprintable() or name in (".", ".."):
        raise Invalid(where, name, "must be 1 to 253 printable characters without '/'")
    return name


# -- builders ---------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def state_prefix(directory: str, cluster: str) -> bytes:
    """Where `cluster` itself writes a resource; ends in "/"."""
    _check_directory(directory)
    check_name(cluster, "cluster name")
    inner = {"identities": "id", "ip": "default"}.get(directory, cluster)
    return f"cilium/state/{directory}/v1/{inner}/".encode()


@lru_cache(1024)
def cache_prefix(directory: str, cluster: str) -> bytes:
    """Where kvstoremesh keeps its copy of a resource of `cluster`; ends in "/"."""
    _check_directory(directory)
    check_name(cluster, "cluster name")
    inner = f"{cluster}/id" if directory == "identities" else cluster
    return f"cilium/cache/{directory}/v1/{inner}/".encode()


def cluster_config_key(cluster: str) -> bytes:
    return CLUSTER_CONFIGS + _name(cluster, "cluster name")


def canary_prefix(cluster: str) -> bytes:
    """Everything in which `cluster` says that a resource is complete; ends in "/"."""
    return SYNCED + _name(cluster, "cluster name") + b"/"


def canary_key(cluster: str, directory: str, cached: bool = False) -> bytes:
    """The key that says that a resource of `cluster` is completely listed; it names neither "id" nor "default"."""
    _check_directory(directory)
    return canary_prefix(cluster) + f"cilium/{'cache' if cached else 'state'}/{directory}/v1".encode()


def node_key(cluster: str, name: str) -> bytes:
    return state_prefix("nodes", cluster) + _name(name, "node name")


def service_key(cluster: str, namespace: str, name: str) -> bytes:
    return state_prefix("services", cluster) + _namespaced(namespace, name)


def service_export_key(cluster: str, namespace: str, name: str) -> bytes:
    return state_prefix("serviceexports", cluster) + _namespaced(namespace, name)


def endpoint_slice_key(cluster: str, namespace: str, name: str) -> bytes:
    return state_prefix("endpointslices", cluster) + _namespaced(namespace, name)


def identity_key(identity: int) -> bytes:
    """Not scoped by cluster: one etcd describes one cluster."""
    if not 0 <= identity <= 0xFFFF_FFFF:
        raise Invalid("identity", identity, "must be a number of 32 bits")
    return b"cilium/state/identities/v1/id/%d" % identity


def endpoint_key(place: Address | Prefix) -> bytes:
    """Not scoped by cluster: one etcd describes one cluster."""
    named = address.prefix_text(place) if isinstance(place, Prefix) else address.text(place)
    return b"cilium/state/ip/v1/default/" + named.encode()


def local_service_key(namespace: str, name: str) -> bytes:
    return LOCAL_SERVICES + _namespaced(namespace, name)


def agent_key(node: str) -> bytes:
    return AGENTS + _name(node, "node name")


def status_key(node: str) -> bytes:
    return STATUSES + _name(node, "node name")


# -- state <-> cache --------------------------------------------------------------------------------------------------


def cache_key(key: bytes, cluster: str) -> bytes:
    """Where kvstoremesh keeps what `cluster` has at `key`: data, a canary or the cluster config. Invalid for others."""
    for directory in DIRECTORIES:
        if key.startswith(prefix := state_prefix(directory, cluster)):
            return cache_prefix(directory, cluster) + key[len(prefix) :]
        if key == canary_key(cluster, directory):
            return canary_key(cluster, directory, cached=True)
    if key == cluster_config_key(cluster):
        return key
    raise Invalid("key", key, f"must be one that cluster {cluster} shares")


def state_key(key: bytes, cluster: str) -> bytes:
    """The inverse of `cache_key`."""
    for directory in DIRECTORIES:
        if key.startswith(prefix := cache_prefix(directory, cluster)):
            return state_prefix(directory, cluster) + key[len(prefix) :]
        if key == canary_key(cluster, directory, cached=True):
            return canary_key(cluster, directory)
    if key == cluster_config_key(cluster):
        return key
    raise Invalid("key", key, f"must be a cached one of cluster {cluster}")


# -- parsers ----------------------------------------------------------------------------------------------------------


@decodes("key")
def parse_cluster_config(key: bytes) -> str:
    """The cluster's name."""
    return _tail(key, CLUSTER_CONFIGS)


@decodes("key")
def parse_canary(key: bytes) -> CanaryKey:
    """Also for resources this version does not know."""
    cluster, root, directory = _match(_CANARY, key)
    return CanaryKey(cluster, directory, root == "cache")


@decodes("key")
def parse_node(key: bytes) -> NodeKey:
    return NodeKey(*_match(_NODE, key))


@decodes("key")
def parse_service(key: bytes) -> NamespacedKey:
    return NamespacedKey(*_match(_NAMESPACED["services"], key))


@decodes("key")
def parse_service_export(key: bytes) -> NamespacedKey:
    return NamespacedKey(*_match(_NAMESPACED["serviceexports"], key))


@decodes("key")
def parse_endpoint_slice(key: bytes) -> NamespacedKey:
    return NamespacedKey(*_match(_NAMESPACED["endpointslices"], key))


@decodes("key")
def parse_identity(key: bytes) -> IdentityKey:
    cluster, number = _match(_IDENTITY, key)
    identity = int(number)
    identity_key(identity)
    return IdentityKey(cluster or None, identity)


@lru_cache(16)  # asked for the entry's name, and again when its value is held against its key
@decodes("key")
def parse_endpoint(key: bytes) -> EndpointKey:
    match = _ENDPOINT.fullmatch(key.decode())
    if match is None:
        raise DecodeError("key", key[:300], f"must look like {_ENDPOINT.pattern}")
    cluster, ip, length = match.groups("")
    single = address.parse(ip)
    if ":" in ip and address.text(single) != ip:  # an IPv4 address has one spelling only
        raise Invalid("address", ip, f"must be spelled {address.text(single)}")
    place = address.parse_prefix(f"{ip}/{length}") if length else single
    return EndpointKey(check_name(cluster, "key") if cluster else None, place)


@decodes("key")
def parse_local_service(key: bytes) -> tuple[str, str]:
    """The namespace and the name."""
    return _namespaced_tail(key, LOCAL_SERVICES)


@decodes("key")
def parse_agent(key: bytes) -> str:
    """The node's name."""
    return _tail(key, AGENTS)


@decodes("key")
def parse_changes(key: bytes) -> str:
    """The kind of what changed."""
    return _tail(key, CHANGES)


@decodes("key")
def parse_status(key: bytes) -> str:
    """The node's name."""
    return _tail(key, STATUSES)


def _check_directory(directory: str) -> None:
    if directory not in DIRECTORIES:
        raise Invalid("resource", directory, f"must be one of {', '.join(DIRECTORIES)}")


def _name(name: str, where: str) -> bytes:
    return check_name(name, where).encode()


def _namespaced(namespace: str, name: str) -> bytes:
    return _name(namespace, "namespace") + b"/" + _name(name, "name")


def _match(shape: re.Pattern[str], key: bytes) -> list[str]:
    """The groups of `shape` ("" where one took no part), each checked to be a name."""
    match = shape.fullmatch(key.decode())
    if match is None:
        raise DecodeError("key", key[:300], f"must look like {shape.pattern}")
    return [check_name(group, "key") if group else "" for group in match.groups()]


def _tail(key: bytes, prefix: bytes) -> str:
    if not key.startswith(prefix):
        raise DecodeError("key", key[:300], f"must begin with {prefix.decode()}")
    return check_name(key[len(prefix) :].decode(), "key")


def _namespaced_tail(key: bytes, prefix: bytes) -> tuple[str, str]:
    if not key.startswith(prefix):
        raise DecodeError("key", key[:300], f"must begin with {prefix.decode()}")
    namespace, _, name = key[len(prefix) :].decode().partition("/")
    return check_name(namespace, "key"), check_name(name, "key")
