"""Kubernetes' objects in, or Cilium's, and byte for byte what Cilium 1.18.4 wrote for the same cluster out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.publish import publish
from clustermesh.apiserver.resources import canary_keys, config_value
from clustermesh.model import Affinity, AgentRecord, Cluster
from clustermesh.sources.decoding import decode_json, ref_of
from clustermesh.sources.objects import KINDS, Object, Ref, Service
from clustermesh.sources.table import ObjectTable, read_manifest
from clustermesh.sources.translate import translate
from clustermesh.wire import identity, keys, local
from clustermesh.wire.kinds import LOCAL_SERVICES

ALPHA = Cluster(name="alpha", id=1)
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "cilium-1.18.4.json").read_text())["state"]
OURS = ',"terminatingBackends":["10.1.0.6"]'
KEY = "aGVsbG9oZWxsb2hlbGxvaGVsbG9oZWxsb2hlbGxvMTI="


GOLDEN_FOLDER = Path(__file__).parents[2] / "golden"


def decoded(text: str) -> dict[Ref, Object]:
    table = ObjectTable()
    table.put("golden.yaml", read_manifest("golden.yaml", text.encode()))
    assert list(table.problems()) == []
    return table.objects


def published(objects: Mapping[Ref, Object]) -> dict[str, dict[bytes, bytes | None]]:
    """With the identity number that Cilium drew, as found in etcd by whoever starts next, and the agent's key."""
    snapshot, faults = translate(ALPHA, objects)
    assert faults == []
    allocator = Allocator(ALPHA)
    allocator.adopt(identity.decode(GOLDEN["cilium/state/identities/v1/id/65999"].encode(), 65999), now=0)
    record = AgentRecord(node="n1", wireguard_public_key=KEY, reads_shared=True)
    return publish(ALPHA, snapshot, allocator, {"n1": record}, now=5)


def in_plain_kubernetes() -> dict[Ref, Object]:
    return decoded((Path(__file__).parent / "golden_manifests.yaml").read_text())


def as_recorded() -> dict[Ref, Object]:
    """The very manifests, with the cluster IP that the Kubernetes API allotted."""
    objects = decoded((GOLDEN_FOLDER / "cilium-1.18.4.yaml").read_text())
    cart = Ref("Service", "default", "cart")
    service = objects[cart]
    assert isinstance(service, Service)
    return {**objects, cart: replace(service, spec=replace(service.spec, cluster_ip="10.101.150.178"))}


def through_the_api() -> dict[Ref, Object]:
    """As the API lists them: JSON, kind by kind."""
    documents = list(yaml.safe_load_all((GOLDEN_FOLDER / "cilium-1.18.4.yaml").read_text()))
    documents[0]["spec"]["clusterIP"] = "10.101.150.178"
    kinds = [KINDS[document["kind"]] for document in documents]
    objects = [decode_json(k, msgspec.json.encode(d)) for k, d in zip(kinds, documents, strict=True)]
    return {ref_of(kind, found): found for kind, found in zip(kinds, objects, strict=True)}


@pytest.mark.parametrize("objects", [in_plain_kubernetes, as_recorded, through_the_api])
def test_every_key_and_value_is_the_recorded_one(objects: Callable[[], dict[Ref, Object]]) -> None:
    entries = {key: value for some in published(objects()).values() for key, value in some.items()}
    state = {k.decode(): v.decode() for k, v in entries.items() if v is not None and k.startswith(keys.STATE)}
    cart = "cilium/state/services/v1/alpha/default/cart"
    assert OURS in state[cart]
    state[cart] = state[cart].replace(OURS, "")
    assert state == {key: value for key, value in GOLDEN.items() if key.startswith("cilium/state/")}


def test_the_config_and_the_canaries_are_the_recorded_ones() -> None:
    assert config_value(ALPHA, exports=False).decode() == GOLDEN["cilium/cluster-config/alpha"]
    canaries = {key.decode() for key in canary_keys(ALPHA)} - {keys.LOCAL_SERVICES_SYNCED.decode()}
    assert canaries == {key for key in GOLDEN if key.startswith("cilium/synced/")}


def test_beside_them_stands_nothing_for_own_agents_but_what_no_recorded_key_says() -> None:
    entries = published(in_plain_kubernetes())[LOCAL_SERVICES]
    own = {key: local.decode_service(value) for key, value in entries.items() if value is not None}
    assert own.keys() <= entries.keys()
    for key, found in own.items():
        name = keys.parse_local_service(key)
        recorded = GOLDEN.get(keys.service_key("alpha", *name).decode())
        assert recorded is None or found.affinity is not Affinity.NONE, name
