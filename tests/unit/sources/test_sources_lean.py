"""What is left out of an object of the API changes nothing of what is made of it."""

from __future__ import annotations

from typing import Any

import kube
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.address import LINK_LOCAL, from_int, nobodys, single, text
from clustermesh.errors import DecodeError, Invalid
from clustermesh.model import Algorithm
from clustermesh.sources.lean import decode_pod, decode_service, decode_slice
from clustermesh.sources.objects import Object, Ref
from clustermesh.sources.rules import parse_ip
from clustermesh.sources.translate import translate

DECODERS: dict[str, Any] = {"Pod": decode_pod, "Service": decode_service, "EndpointSlice": decode_slice}


def lean(*manifests: dict[str, Any]) -> dict[Ref, Object]:
    """By way of the API's JSON, where there is a lean form."""
    objects: dict[Ref, Object] = {}
    for manifest in manifests:
        if manifest["kind"] in DECODERS:
            ref, value = DECODERS[manifest["kind"]](msgspec.Raw(msgspec.json.encode(manifest)))
            objects[ref] = value
        else:
            objects |= kube.decode(manifest)
    return objects


def test_the_lean_form_says_what_the_whole_one_does() -> None:
    slice_ = kube.endpoint_slice("cart-1", "cart", ["10.1.0.5", "10.1.0.6"])
    slice_["endpoints"][0] |= {"hostname": "cart-0", "zone": "z1", "hints": {"forZones": [{"name": "z1"}]}}
    slice_["endpoints"][1]["conditions"] = {"ready": False, "serving": True, "terminating": True}
    slice_["endpoints"][1] |= {"nodeName": "n1", "hints": {"forNodes": [{"name": "n1"}]}}
    slice_["endpoints"].append({"addresses": ["10.1.0.7"], "conditions": {"ready": False, "terminating": True}})
    service = kube.annotated(kube.service("cart", selector={"app": "cart"}), affinity="local", shared="true")
    service["metadata"]["labels"] = {"app": "cart"}
    service["spec"] |= {"sessionAffinity": "ClientIP", "ipFamilies": ["IPv4"], "internalTrafficPolicy": "Cluster"}
    service["spec"] |= {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.7"]}
    service["spec"] |= {"loadBalancerSourceRanges": ["192.0.2.0/24"], "healthCheckNodePort": 32000}
    service["spec"]["ports"][0]["nodePort"] = 30080
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}}
    service["metadata"]["annotations"] |= {"clustermesh.io/backend-weight": "10.1.0.6=3"}
    service = kube.annotated(service, **{"lb-algorithm": "maglev"})
    export = kube.aged(kube.service_export("cart"), "2026-01-01T00:00:00Z")
    service["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "{}" * 100
    pod = kube.pod("cart-0", "10.1.0.5", {"app": "cart"}, serviceAccountName="robot")
    pod["status"]["podIPs"] = [{"ip": "10.1.0.5"}, {"ip": "fd00:1::5"}]
    pod["metadata"]["annotations"] = {"clustermesh.io/backend-state": "quarantined", "other": "thing"}
    front = kube.pod("front", "10.1.0.9", {"app": "front"})
    front["spec"]["containers"] = [{"ports": [{"containerPort": 8080, "hostPort": 80}]}]
    manifests = [service, export, slice_, pod, front, kube.node("n1", "192.0.2.1"), kube.namespace("shop", team="red")]
    found, faults = translate(kube.ALPHA, lean(*manifests))
    assert (found, faults) == translate(kube.ALPHA, kube.decode(*manifests))
    cart = found.services["shop", "cart"]
    assert (len(cart.details), len(cart.draining), cart.algorithm) == (2, 1, Algorithm.MAGLEV)
    assert ("shop", "front.host-ports") in found.services


def test_pods_of_one_kind_share_their_labels() -> None:
    one, other = lean(kube.pod("a", "10.1.0.5", {"app": "x"}), kube.pod("b", "10.1.0.6", {"app": "x"})).values()
    assert one.metadata.labels is other.metadata.labels


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"metadata":{}}', b"\xff"])
def test_garbage_raises_a_decode_error(kind: str, data: bytes) -> None:
    with pytest.raises(DecodeError):
        DECODERS[kind](msgspec.Raw(data))


_NUMBERS = st.one_of(
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**32 - 1).map(lambda n: n + (0xFFFF << 32)),
    st.integers(0, 255).map(lambda n: (n << 24) + (0xFFFF << 32)),
    st.integers(0, 255).map(lambda n: n << 120),
)


@given(_NUMBERS)
def test_a_look_at_one_byte_refuses_what_the_list_of_nobodys_addresses_does(number: int) -> None:
    address = from_int(number)
    try:
        taken = bool(parse_ip("", text(address)))
    except Invalid:
        taken = False
    assert taken == (nobodys(single(address)) in (None, *LINK_LOCAL))
