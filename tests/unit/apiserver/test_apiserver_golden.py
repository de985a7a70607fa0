"""Plain Kubernetes objects in, byte for byte what Cilium 1.18.4 wrote for the same cluster out."""

from __future__ import annotations

import json
from pathlib import Path

from clustermesh.address import parse
from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.publish import publish
from clustermesh.apiserver.resources import canary_keys, config_value
from clustermesh.model import AgentRecord, Cluster
from clustermesh.sources.table import ObjectTable, read_manifest
from clustermesh.sources.translate import translate
from clustermesh.wire import identity, keys, local
from clustermesh.wire.kinds import LOCAL_SERVICES, SERVICES

ALPHA = Cluster(name="alpha", id=1)
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "cilium-1.18.4.json").read_text())["state"]
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="


def published() -> dict[str, dict[bytes, bytes | None]]:
    """With the identity number that Cilium drew, as found in etcd by whoever starts next, and the agent's key."""
    table = ObjectTable()
    table.put(
        "golden.yaml", read_manifest("golden.yaml", (Path(__file__).parent / "golden_manifests.yaml").read_bytes())
    )
    assert list(table.problems()) == []
    snapshot, faults = translate(ALPHA, table.objects)
    assert faults == []
    allocator = Allocator(ALPHA)
    allocator.adopt(identity.decode(GOLDEN["cilium/state/identities/v1/id/65999"].encode(), 65999), now=0)
    record = AgentRecord(node="n1", wireguard_public_key=KEY)
    return publish(ALPHA, snapshot, allocator, {"n1": record}, now=5)


def test_every_key_and_value_is_the_recorded_one() -> None:
    entries = {key: value for resource, some in published().items() for key, value in some.items()}
    state = {k.decode(): v.decode() for k, v in entries.items() if v is not None and k.startswith(keys.STATE)}
    assert state == {key: value for key, value in GOLDEN.items() if key.startswith("cilium/state/")}


def test_the_config_and_the_canaries_are_the_recorded_ones() -> None:
    assert config_value(ALPHA).decode() == GOLDEN["cilium/cluster-config/alpha"]
    canaries = {key.decode() for key in canary_keys(ALPHA)} - {keys.LOCAL_SERVICES_SYNCED.decode()}
    assert canaries == {key for key in GOLDEN if key.startswith("cilium/synced/")}


def test_beside_them_stand_the_stamps_and_the_local_services_with_their_zones() -> None:
    found = published()
    stamp = found[SERVICES][keys.stamp_key("default", "cart")]
    assert stamp == b'{"observed":0,"published":5}'
    value = found[LOCAL_SERVICES][keys.local_service_key("default", "cart")]
    assert value is not None
    assert local.decode_service(value).service.zones[parse("10.1.0.5")].zone == "z1"
