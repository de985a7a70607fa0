"""Keys: every line of the table, and names that would change what a key means."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_values import ips, names

from clustermesh.address import Address, parse, parse_prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.wire import keys

TABLE = [
    (keys.cluster_config_key("west"), "cilium/cluster-config/west"),
    (keys.HEARTBEAT, "cilium/.heartbeat"),
    (keys.canary_prefix("west"), "cilium/synced/west/"),
    (keys.canary_key("west", "nodes"), "cilium/synced/west/cilium/state/nodes/v1"),
    (keys.canary_key("west", "identities"), "cilium/synced/west/cilium/state/identities/v1"),
    (keys.canary_key("west", "ip"), "cilium/synced/west/cilium/state/ip/v1"),
    (keys.canary_key("west", "ip", cached=True), "cilium/synced/west/cilium/cache/ip/v1"),
    (keys.node_key("west", "w1"), "cilium/state/nodes/v1/west/w1"),
    (keys.identity_key(131500), "cilium/state/identities/v1/id/131500"),
    (keys.endpoint_key(parse("10.0.1.5")), "cilium/state/ip/v1/default/10.0.1.5"),
    (keys.endpoint_key(parse("fd00::1")), "cilium/state/ip/v1/default/fd00::1"),
    (keys.endpoint_key(parse_prefix("10.0.1.0/24")), "cilium/state/ip/v1/default/10.0.1.0/24"),
    (keys.service_key("west", "shop", "cart"), "cilium/state/services/v1/west/shop/cart"),
    (keys.service_export_key("west", "shop", "cart"), "cilium/state/serviceexports/v1/west/shop/cart"),
    (keys.endpoint_slice_key("west", "shop", "cart-1"), "cilium/state/endpointslices/v1/west/shop/cart-1"),
    (keys.local_service_key("shop", "cart"), "clustermesh/v1/services/shop/cart"),
    (keys.LOCAL_SERVICES_SYNCED, "clustermesh/v1/synced/services"),
    (keys.agent_key("w1"), "clustermesh/v1/agents/w1"),
    (keys.CHANGED_SERVICES, "clustermesh/v1/changes/services"),
    (keys.status_key("w1"), "clustermesh/v1/status/w1"),
]

UNREAD = {
    keys.HEARTBEAT,
    keys.canary_prefix("west"),
    b"cilium/state/identities/v1/value/k8s:a=b/c;/w1",
    b"cilium/state/noderegister/v1/w1",
    b"cilium/.initlock/0af3/694d",
    keys.LOCAL_SERVICES_SYNCED,
}


@pytest.mark.parametrize(("built", "expected"), TABLE, ids=str)
def test_key_is_built_as_the_table_says(built: bytes, expected: str) -> None:
    assert built.decode() == expected


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "a\nb", "\x1b[31m", "\ud800", "\u202e", "x" * 254])
def test_name_that_no_key_can_hold_is_invalid(name: str) -> None:
    for build in (keys.agent_key, keys.cluster_config_key, lambda n: keys.service_key("a", n, "b")):
        with pytest.raises(Invalid):
            build(name)


@pytest.mark.parametrize("tail", ["identities/v1/id/4294967296", "identities/v1/id/01", "identities/v1/id/"])
def test_identity_key_without_a_canonical_32_bit_number_is_refused(tail: str) -> None:
    with pytest.raises(DecodeError):
        keys.parse_identity(b"cilium/state/" + tail.encode())


@pytest.mark.parametrize("tail", ["fd00:0::1", "010.0.0.1", "10.0.0", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/"])
def test_endpoint_key_without_a_canonical_address_is_refused(tail: str) -> None:
    with pytest.raises(DecodeError):
        keys.parse_endpoint(b"cilium/state/ip/v1/default/" + tail.encode())


@given(cluster=names, namespace=names, name=names)
def test_parsing_a_built_key_gives_its_names_back(cluster: str, namespace: str, name: str) -> None:
    assert keys.parse_node(keys.node_key(cluster, name)) == (cluster, name)
    assert keys.parse_service(keys.service_key(cluster, namespace, name)) == (cluster, namespace, name)
    assert keys.parse_service_export(keys.service_export_key(cluster, namespace, name)) == (cluster, namespace, name)
    assert keys.parse_endpoint_slice(keys.endpoint_slice_key(cluster, namespace, name)) == (cluster, namespace, name)
    assert keys.parse_cluster_config(keys.cluster_config_key(cluster)) == cluster
    assert keys.parse_local_service(keys.local_service_key(namespace, name)) == (namespace, name)
    assert keys.parse_agent(keys.agent_key(name)) == name
    assert keys.parse_status(keys.status_key(name)) == name


@given(cluster=names, identity=st.integers(0, 2**32 - 1), ip=ips)
def test_unscoped_keys_name_their_cluster_only_in_the_cache(cluster: str, identity: int, ip: Address) -> None:
    id_key, ip_key = keys.identity_key(identity), keys.endpoint_key(ip)
    assert keys.parse_identity(id_key) == (None, identity)
    assert keys.parse_endpoint(ip_key) == (None, ip)
    assert keys.parse_identity(keys.cache_key(id_key, cluster)) == (cluster, identity)
    assert keys.parse_endpoint(keys.cache_key(ip_key, cluster)) == (cluster, ip)


@given(cluster=names, directory=st.sampled_from(keys.DIRECTORIES), cached=st.booleans())
def test_canary_names_its_cluster_resource_and_side(cluster: str, directory: str, cached: bool) -> None:
    key = keys.canary_key(cluster, directory, cached)
    assert key.startswith(keys.canary_prefix(cluster))
    assert keys.parse_canary(key) == (cluster, directory, cached)
    assert keys.cache_key(keys.canary_key(cluster, directory), cluster) == keys.canary_key(cluster, directory, True)


def test_canary_of_a_resource_to_come_is_parsed() -> None:
    assert keys.parse_canary(b"cilium/synced/west/cilium/state/gateways/v1") == ("west", "gateways", False)


@pytest.mark.parametrize(
    "key",
    [
        b"cilium/state/services/v1/east/shop/cart",  # another cluster's
        b"cilium/state/services/v1/westward/shop/cart",
        b"cilium/state/identities/v1/value/k8s:a=b;/w1",
        b"cilium/state/identities/v1/locks/x",
        b"cilium/synced/east/cilium/state/nodes/v1",
        b"cilium/.heartbeat",
        b"clustermesh/v1/services/shop/cart",
    ],
)
def test_key_that_is_not_shared_has_no_place_in_the_cache(key: bytes) -> None:
    with pytest.raises(Invalid):
        keys.cache_key(key, "west")
    with pytest.raises(Invalid):
        keys.state_key(key, "west")


@pytest.mark.parametrize(("key", "text"), TABLE, ids=str)
def test_a_key_has_one_reading_at_most(key: bytes, text: str) -> None:
    """Those without: the heartbeat, a canary prefix, locks, and what a reader of the mesh ignores."""
    readings = []
    for parser in (getattr(keys, name) for name in dir(keys) if name.startswith("parse_")):
        with suppress(DecodeError):
            readings.append(parser(key))
    assert len(readings) == (0 if key in UNREAD else 1), text
