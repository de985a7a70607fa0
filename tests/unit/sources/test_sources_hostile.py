"""Whatever a Service, a slice or a Pod says: translating it raises nothing, and what comes of it can be published."""

from __future__ import annotations

from typing import Any

import kube
from hypothesis import given
from hypothesis import strategies as st

from clustermesh.apiserver.identities import Allocator
from clustermesh.apiserver.publish import Publisher
from clustermesh.errors import Invalid
from clustermesh.model import LocalService
from clustermesh.sources.decoding import decode_objects
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.sources.translate import translate
from clustermesh.wire import local

_TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["Local", "Cluster", "ClientIP", "NodePort", "LoadBalancer", "PreferClose", "PreferSameNode", "maglev", "0"]
    ),
    st.sampled_from(["10.1.0.5", "fd00::5", "::", "10.1.0.0/8", "0.0.0.0/0", "::/0", "10.1.0.5=0", "10.1.0.5=x,", "="]),
)
_NUMBERS = st.integers(-(2**63), 2**63) | st.sampled_from([0, 1, 80, 30000, 65535, 65536])
_ODD = st.none() | st.booleans() | st.floats() | _NUMBERS | _TEXTS
_LISTS = st.lists(_TEXTS, max_size=3)
_ANNOTATIONS = st.dictionaries(
    st.sampled_from(
        [
            "service.cilium.io/global",
            "service.cilium.io/lb-algorithm",
            "clustermesh.io/backend-state",
            "clustermesh.io/backend-weight",
        ]
    ),
    _TEXTS,
)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, with what they are to hold; seldom with anything at all."""
    odd = {name: st.one_of(each, each, each, each, each, _ODD) for name, each in fields.items()}
    return st.fixed_dictionaries({}, optional=odd)


_PORTS = st.lists(_some(name=_TEXTS, port=_NUMBERS, nodePort=_NUMBERS, protocol=_TEXTS), max_size=3)
_INGRESS = st.lists(_some(ip=_TEXTS, ipMode=_TEXTS, hostname=_TEXTS), max_size=3)
_SPECS = _some(
    type=_TEXTS,
    clusterIP=_TEXTS,
    ports=_PORTS,
    externalIPs=_LISTS,
    externalTrafficPolicy=_TEXTS,
    internalTrafficPolicy=_TEXTS,
    healthCheckNodePort=_NUMBERS,
    sessionAffinity=_TEXTS,
    sessionAffinityConfig=_some(clientIP=_some(timeoutSeconds=_NUMBERS)),
    loadBalancerSourceRanges=_LISTS,
    trafficDistribution=_TEXTS,
    publishNotReadyAddresses=st.booleans(),
)
_HINTS = st.lists(_some(name=_TEXTS), max_size=2)
_ENDPOINTS = st.lists(
    _some(
        addresses=_LISTS,
        nodeName=_TEXTS,
        zone=_TEXTS,
        hints=_some(forZones=_HINTS, forNodes=_HINTS),
        conditions=_some(ready=st.booleans(), serving=st.booleans(), terminating=st.booleans()),
    ),
    max_size=3,
)
_CONTAINERS = st.lists(
    _some(ports=st.lists(_some(containerPort=_NUMBERS, hostPort=_NUMBERS, hostIP=_TEXTS, protocol=_TEXTS), max_size=2)),
    max_size=2,
)


@st.composite
def _manifests(draw: st.DrawFn) -> list[dict[str, Any]]:
    service = kube.service("cart", **draw(_SPECS))
    service["metadata"]["annotations"] |= draw(_ANNOTATIONS)
    service["status"] = draw(_some(loadBalancer=_some(ingress=_INGRESS)))
    pod = kube.pod("a", "10.1.0.5", {}, containers=draw(_CONTAINERS), nodeName=draw(_TEXTS))
    pod["metadata"]["annotations"] = draw(_ANNOTATIONS)
    return [service, pod, kube.endpoint_slice("cart-1", "cart", [], endpoints=draw(_ENDPOINTS))]


@given(_manifests())
def test_no_object_raises_and_what_is_made_of_it_can_be_told(manifests: list[dict[str, Any]]) -> None:
    found = [each for manifest in manifests for each in decode_objects(manifest)]
    snapshot, _ = translate(kube.ALPHA, dict(each for each in found if not isinstance(each, Invalid)))
    publisher = Publisher(kube.ALPHA, Allocator(kube.ALPHA))
    publisher.apply(Snapshot(services=snapshot.services), Change(services=dict.fromkeys(snapshot.services, 1)), 1)
    assert publisher.problems == {}
    for service in snapshot.services.values():
        assert _as_read(service) == service


def _as_read(service: LocalService) -> LocalService:
    return local.decode_service(local.encode_service(service))
