"""Byte for byte what Cilium 1.18.4 wrote, and what Go's encoder makes of awkward values."""

from __future__ import annotations

import pytest
from wire_values import ALPHA, RECORDED, STATE, go_values

from clustermesh.model import Endpoint, Identity, Node, Service
from clustermesh.wire import RESOURCES, cluster_config, decode_entry, endpoint, identity, keys, node, service, timestamp

ENTRIES = {key: value for key, value in STATE.items() if key.startswith(keys.STATE)}
CANARIES = {key: value for key, value in STATE.items() if key.startswith(keys.SYNCED)}
ENCODERS = {Node: node.encode, Service: service.encode, Endpoint: endpoint.encode, Identity: identity.encode}
MODULES = {"service": service, "node": node, "endpoint": endpoint, "config": cluster_config}


@pytest.mark.parametrize("key", ENTRIES, ids=bytes.decode)
def test_recorded_entry_is_written_back_byte_for_byte(key: bytes) -> None:
    entry = decode_entry(key, ENTRIES[key], ALPHA)
    assert ENCODERS[type(entry)](entry) == ENTRIES[key]


@pytest.mark.parametrize("key", ENTRIES, ids=bytes.decode)
def test_recorded_entry_reads_the_same_from_the_cache(key: bytes) -> None:
    cached = keys.cache_key(key, "alpha")
    assert decode_entry(cached, ENTRIES[key], ALPHA) == decode_entry(key, ENTRIES[key], ALPHA)


def test_recorded_cluster_config_is_written_back_byte_for_byte() -> None:
    value = STATE[keys.cluster_config_key("alpha")]
    assert cluster_config.encode(cluster_config.decode(value)) == value


@pytest.mark.parametrize(("kind", "value"), go_values())
def test_what_go_encodes_is_written_back_byte_for_byte(kind: str, value: bytes) -> None:
    assert MODULES[kind].encode(MODULES[kind].decode(value)) == value


def test_recorded_canaries_are_those_of_the_resources() -> None:
    known = {resource.canary("alpha") for resource in RESOURCES.values() if resource.directory}
    assert set(CANARIES) <= known
    assert known - set(CANARIES) == {b"cilium/synced/alpha/cilium/state/endpointslices/v1"}  # since 1.20


@pytest.mark.parametrize("value", CANARIES.values(), ids=bytes.decode)
def test_recorded_canary_time_is_written_back(value: bytes) -> None:
    assert timestamp.format_time(timestamp.parse_time(value.decode())).encode() == value


def test_every_key_kvstoremesh_wrote_is_the_cache_key_of_one_it_read() -> None:
    ours = {keys.cache_key(key, "alpha") for key in STATE}
    recorded = {key.encode() for key in RECORDED["cache_keys"]}
    assert recorded <= ours
    assert ours - recorded == {b"cilium/cache/services/v1/alpha/default/db"}  # not among the recorded keys


@pytest.mark.parametrize("key", STATE, ids=bytes.decode)
def test_state_key_undoes_cache_key(key: bytes) -> None:
    assert keys.state_key(keys.cache_key(key, "alpha"), "alpha") == key
