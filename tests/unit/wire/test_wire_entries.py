"""A cluster speaks only for itself: what its neighbours must not be told in its name is refused."""

from __future__ import annotations

import pytest
from wire_values import ALPHA, CART, LABELS, N1, POD

from clustermesh.address import parse_prefix
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import (
    AgentRecord,
    Cluster,
    Endpoint,
    EndpointSlice,
    Identity,
    LocalService,
    Service,
    ServiceExport,
)
from clustermesh.wire import RESOURCES, decode_entry, endpoint_slice, keys, local, resource_of, service_export
from clustermesh.wire.entries import decode_agent_record, decode_local_service

SERVICE = b"cilium/state/services/v1/alpha/default/cart"
NODE = b"cilium/state/nodes/v1/alpha/n1"
PODS = b"cilium/state/ip/v1/default/"
IDS = b"cilium/state/identities/v1/id/"
BIG = Cluster(name="alpha", id=1, max_clusters=511)


def refuses(key: bytes, value: bytes, field: str, cluster: Cluster = ALPHA) -> None:
    with pytest.raises(DecodeError) as raised:
        decode_entry(key, value, cluster)
    assert raised.value.field == field, str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SERVICE, CART.replace(b'"cluster":"alpha"', b'"cluster":"beta"')),
        (NODE, N1.replace(b'"Cluster":"alpha"', b'"Cluster":"beta"')),
    ],
)
def test_entry_of_another_cluster_is_refused(key: bytes, value: bytes) -> None:
    refuses(key, value, "cluster")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (SERVICE, CART.replace(b'"clusterID":1', b'"clusterID":2')),
        (NODE, N1.replace(b'"ClusterID":1', b'"ClusterID":2')),
    ],
)
def test_entry_with_another_cluster_id_is_refused(key: bytes, value: bytes) -> None:
    refuses(key, value, "cluster id")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"cilium/state/services/v1/beta/default/cart", CART),
        (b"cilium/cache/services/v1/beta/default/cart", CART),
        (b"cilium/state/services/v1/alpha/default/other", CART),
        (b"cilium/state/services/v1/alpha/other/cart", CART),
        (b"cilium/state/nodes/v1/beta/n1", N1),
        (b"cilium/state/nodes/v1/alpha/n2", N1),
        (PODS + b"10.1.0.6", POD),
        (PODS + b"10.1.0.5/32", POD),
        (b"cilium/cache/ip/v1/beta/10.1.0.5", POD),
        (b"cilium/cache/identities/v1/beta/id/65999", LABELS),
    ],
    ids=repr,
)
def test_entry_under_a_key_it_does_not_name_is_refused(key: bytes, value: bytes) -> None:
    refuses(key, value, "key")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        SERVICE + b"/more",
        b"/" + SERVICE,
        b"cilium/state/services/v1/alpha/default/",
        b"cilium/state/services/v1/alpha//cart",
        b"cilium/state/ip/v1/other/10.1.0.5",
        PODS + b"FD00:1::5",
        PODS + b"fd00:1:0:0:0:0:0:5",
        PODS + b"010.1.0.5",
        IDS + b"065999",
        IDS + b"+65999",
        IDS + b"4294967296",
        b"cilium/state/identities/v1/value/k8s:app=cart;/n1",
        b"cilium/state/other/v1/x",
    ],
    ids=repr,
)
def test_key_of_no_known_shape_is_refused(key: bytes) -> None:
    for value in (CART, N1, POD, LABELS):
        with pytest.raises(DecodeError):
            decode_entry(key, value, ALPHA)


@pytest.mark.parametrize("number", [65536, 65999, 131071])
def test_identity_in_the_range_of_its_cluster_is_taken(number: int) -> None:
    entry = decode_entry(keys.identity_key(number), LABELS, ALPHA)
    assert isinstance(entry, Identity)
    assert entry.id == number


@pytest.mark.parametrize(
    "number", [0, 1, 255, 256, 65535, 131072, 1 << 24, (1 << 24) + 65536, (2 << 24) + 65536, 2**32 - 1]
)
def test_identity_out_of_the_range_of_its_cluster_is_refused(number: int) -> None:
    refuses(keys.identity_key(number), LABELS, "identity")


def test_identity_range_follows_the_size_of_the_mesh() -> None:
    assert decode_entry(keys.identity_key(32768), LABELS, BIG)
    refuses(keys.identity_key(65999), LABELS, "identity", BIG)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.replace(b"cluster=alpha", b"cluster=beta"),
        LABELS.replace(b"k8s:io.cilium.k8s.policy.cluster=alpha;", b""),
        LABELS.replace(b"k8s:io.cilium.k8s.policy.cluster", b"any:io.cilium.k8s.policy.cluster"),
        LABELS + b"k8s:io.cilium.k8s.policy.cluster=beta;",
        LABELS + b"any:io.cilium.k8s.policy.cluster=alpha;",
    ],
    ids=repr,
)
def test_identity_that_does_not_name_its_cluster_is_refused(labels: bytes) -> None:
    refuses(keys.identity_key(65999), labels, "label io.cilium.k8s.policy.cluster")


def pod(identity: int) -> bytes:
    return POD.replace(b'"ID":65999', b'"ID":%d' % identity)


@pytest.mark.parametrize(
    ("number", "means"), [(0, 0), (1, 6), (2, 2), (6, 6), (255, 255), (65536, 65536), (131071, 131071)]
)
def test_endpoint_identity_is_reserved_or_its_clusters_own(number: int, means: int) -> None:
    entry = decode_entry(PODS + b"10.1.0.5", pod(number), ALPHA)
    assert isinstance(entry, Endpoint)
    assert entry.identity == means


@pytest.mark.parametrize("number", [256, 65535, 131072, (1 << 24) + 65536, (2 << 24) + 65536, 2**32 - 1])
def test_endpoint_identity_of_another_cluster_or_scope_is_refused(number: int) -> None:
    refuses(PODS + b"10.1.0.5", pod(number), "identity")


def test_endpoint_of_a_network_is_named_with_its_length() -> None:
    value = POD.replace(b'"IP":"10.1.0.5","Mask":null', b'"IP":"10.1.0.0","Mask":"////AA=="')
    entry = decode_entry(PODS + b"10.1.0.0/24", value, ALPHA)
    assert isinstance(entry, Endpoint)
    assert entry.prefix_length == 96 + 24
    refuses(PODS + b"10.1.0.0", value, "key")
    refuses(PODS + b"10.1.0.0/25", value, "key")


def test_service_that_is_not_shared_is_decoded_for_its_reader_to_drop() -> None:
    entry = decode_entry(SERVICE, CART.replace(b'"shared":true', b'"shared":false'), ALPHA)
    assert isinstance(entry, Service)
    assert not entry.shared


def test_export_is_held_to_its_key_and_cluster() -> None:
    value = service_export.encode(ServiceExport(cluster="alpha", namespace="shop", name="cart", created=1))
    assert decode_entry(keys.service_export_key("alpha", "shop", "cart"), value, ALPHA)
    refuses(keys.service_export_key("alpha", "shop", "other"), value, "key")
    refuses(keys.service_export_key("beta", "shop", "cart"), value, "key")
    refuses(keys.service_export_key("alpha", "shop", "cart"), value.replace(b"alpha", b"beta"), "cluster")


def test_slice_is_held_to_its_key_cluster_and_id() -> None:
    def written(cluster: str, cluster_id: int) -> bytes:
        return endpoint_slice.encode(
            EndpointSlice(cluster=cluster, cluster_id=cluster_id, namespace="shop", name="cart-1", address_type="IPv4")
        )

    key = keys.endpoint_slice_key("alpha", "shop", "cart-1")
    assert decode_entry(key, written("alpha", 1), ALPHA)
    refuses(keys.endpoint_slice_key("alpha", "shop", "cart-2"), written("alpha", 1), "key")
    refuses(key, written("beta", 1), "cluster")
    refuses(key, written("alpha", 2), "cluster id")


def test_local_service_is_held_to_its_key_and_owner() -> None:
    def written(cluster: str, cluster_id: int) -> bytes:
        service = Service(cluster=cluster, cluster_id=cluster_id, namespace="shop", name="cart")
        return local.encode_service(LocalService(service=service))

    key = keys.local_service_key("shop", "cart")
    assert decode_local_service(key, written("alpha", 1), ALPHA).service.name == "cart"
    for wrong_key, value, field in (
        (keys.local_service_key("shop", "other"), written("alpha", 1), "key"),
        (SERVICE, written("alpha", 1), "key"),
        (key, written("beta", 1), "cluster"),
        (key, written("alpha", 2), "cluster id"),
    ):
        with pytest.raises(DecodeError) as raised:
            decode_local_service(wrong_key, value, ALPHA)
        assert raised.value.field == field


def test_agent_speaks_for_its_own_node() -> None:
    value = local.encode_agent(AgentRecord(node="n1", wireguard_public_key="A" * 43 + "="))
    assert decode_agent_record(keys.agent_key("n1"), value).node == "n1"
    with pytest.raises(DecodeError):
        decode_agent_record(keys.agent_key("n2"), value)


def test_mesh_of_an_impossible_size_is_refused_as_the_inputs_fault() -> None:
    refuses(IDS + b"65999", LABELS, "max connected clusters", Cluster(name="alpha", id=1, max_clusters=300))


def test_resources_tell_where_they_are_and_what_their_entries_are_called() -> None:
    cart = ("default", "cart")
    names = {
        "nodes": (b"cilium/state/nodes/v1/alpha/n1", b"cilium/cache/nodes/v1/alpha/n1", "n1"),
        "identities": (IDS + b"65999", b"cilium/cache/identities/v1/alpha/id/65999", 65999),
        "endpoints": (PODS + b"10.1.0.0/24", b"cilium/cache/ip/v1/alpha/10.1.0.0/24", parse_prefix("10.1.0.0/24")),
        "services": (SERVICE, b"cilium/cache/services/v1/alpha/default/cart", cart),
        "service_exports": (
            b"cilium/state/serviceexports/v1/alpha/default/cart",
            b"cilium/cache/serviceexports/v1/alpha/default/cart",
            cart,
        ),
        "endpoint_slices": (
            b"cilium/state/endpointslices/v1/alpha/default/cart",
            b"cilium/cache/endpointslices/v1/alpha/default/cart",
            cart,
        ),
    }
    shared = {name: resource for name, resource in RESOURCES.items() if resource.directory}
    assert list(names) == list(shared)
    for resource in shared.values():
        state, cache, name = names[resource.name]
        assert state.startswith(resource.prefix("alpha"))
        assert cache.startswith(resource.prefix("alpha", cached=True))
        assert resource.name_of(state) == resource.name_of(cache) == name
        assert resource_of(state) is resource_of(cache) is resource


def test_authority_errors_are_invalid_input() -> None:
    assert issubclass(DecodeError, Invalid)
