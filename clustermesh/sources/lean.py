"""Objects of the API without what no mesh asks for, and sharing the rest: a hundred thousand of them are held.

Pods are without what only the matching of selectors needs, which is the controllers' there. Labels, nodes and service
accounts are those of a few hundred Deployments. What tools note on an object may be larger than the object itself.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from clustermesh.sources.decoding import decode_json
from clustermesh.sources.details import MARKS, STATE, WEIGHT
from clustermesh.sources.index import SERVICE_NAME
from clustermesh.sources.metadata import Metadata
from clustermesh.sources.objects import (
    KINDS,
    Condition,
    Conditions,
    Container,
    EndpointPort,
    EndpointSlice,
    Hint,
    Hints,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Ref,
    Service,
    ServiceStatus,
    SliceEndpoint,
)
from clustermesh.sources.outside import ALGORITHM
from clustermesh.sources.services import AFFINITY, GLOBAL, SHARED, SYNC_SLICES

_SHARED: Final = 1 << 16
_ANNOTATIONS: Final = frozenset((*GLOBAL, *SHARED, *AFFINITY, *MARKS, ALGORITHM, SYNC_SLICES))
# One of each is enough for all: nobody changes an object.
_NO_IPS: Final[list[PodIP]] = []
_NO_CONDITIONS: Final[list[Condition]] = []
_NO_CONTAINERS: Final[list[Container]] = []
_NO_ANNOTATIONS: Final[dict[str, str]] = {}
_NO_STATUS: Final = ServiceStatus()


class _Marks(Struct, frozen=True, gc=False):
    state: str | None = field(name=STATE, default=None)
    weight: str | None = field(name=WEIGHT, default=None)


class _Metadata(Struct, frozen=True, gc=False, rename="camel"):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: _Marks = _Marks()
    creation_timestamp: str = ""
    deletion_timestamp: str = ""


class _Port(Struct, frozen=True, gc=False, rename="camel"):
    host_port: int = 0


class _Container(Struct, frozen=True, gc=False):
    ports: tuple[_Port, ...] = ()


class _Spec(Struct, frozen=True, gc=False, rename="camel"):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = "default"
    containers: tuple[_Container, ...] = ()


class _Status(Struct, frozen=True, gc=False, rename="camel"):
    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodIP] = field(default_factory=list, name="podIPs")
    host_ip: str = field(default="", name="hostIP")


class _Pod(Struct, frozen=True, gc=False):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()


_NO_MARKS: Final = _Marks()
_DECODER: Final = msgspec.json.Decoder(_Pod)


def decode_pod(data: msgspec.Raw) -> tuple[Ref, Pod]:
    """A Pod as the API writes it. Raises DecodeError."""
    try:
        found = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pod = decode_json(KINDS["Pod"], data)
        assert isinstance(pod, Pod)
        return Ref("Pod", pod.metadata.namespace, pod.metadata.name), pod
    metadata, spec, status = found.metadata, found.spec, found.status
    namespace, marks = intern(metadata.namespace), metadata.annotations
    lean = Pod(
        Metadata(
            metadata.name,
            namespace,
            _labels(tuple(metadata.labels.items())),
            _NO_ANNOTATIONS if marks == _NO_MARKS else _annotations(marks.state, marks.weight),
            intern(metadata.creation_timestamp),
            metadata.deletion_timestamp,
        ),
        _with_host_ports(data, _spec(spec.node_name, spec.host_network, spec.service_account_name), spec.containers),
        PodStatus(
            intern(status.phase),
            status.pod_ip,
            status.pod_ips if len(status.pod_ips) > 1 else _NO_IPS,
            intern(status.host_ip),
            _NO_CONDITIONS,
        ),
    )
    return Ref("Pod", namespace, metadata.name), lean


def _with_host_ports(data: msgspec.Raw, spec: PodSpec, containers: tuple[_Container, ...]) -> PodSpec:
    """With its containers, where a port of the node leads to one: few Pods have such."""
    for container in containers:
        for port in container.ports:
            if port.host_port and not spec.host_network:
                pod = decode_json(KINDS["Pod"], data)
                assert isinstance(pod, Pod)
                return replace(spec, containers=pod.spec.containers)
    return spec


@lru_cache(_SHARED)
def _annotations(state: str | None, weight: str | None) -> dict[str, str]:
    return {name: said for name, said in ((STATE, state), (WEIGHT, weight)) if said is not None}


def decode_service(data: msgspec.Raw) -> tuple[Ref, Service]:
    """A Service as the API writes it. Raises DecodeError."""
    found = decode_json(KINDS["Service"], data)
    assert isinstance(found, Service)
    metadata = found.metadata
    annotations = tuple((key, value) for key, value in metadata.annotations.items() if key in _ANNOTATIONS)
    namespace, spec = intern(metadata.namespace), found.spec
    lean = Metadata(metadata.name, namespace, metadata.labels, _labels(annotations), uid=metadata.uid)
    shared = replace(
        spec,
        session_affinity=intern(spec.session_affinity),
        ip_families=_families(tuple(spec.ip_families)),
        internal_traffic_policy=intern(spec.internal_traffic_policy),
        traffic_distribution=intern(spec.traffic_distribution),
        external_traffic_policy=intern(spec.external_traffic_policy),
    )
    status = found.status if found.status.load_balancer.ingress else _NO_STATUS
    return Ref("Service", namespace, metadata.name), Service(lean, shared, status)


def decode_slice(data: msgspec.Raw) -> tuple[Ref, EndpointSlice]:
    """An EndpointSlice as the API writes it. Raises DecodeError."""
    found = decode_json(KINDS["EndpointSlice"], data)
    assert isinstance(found, EndpointSlice)
    metadata, namespace = found.metadata, intern(found.metadata.namespace)
    owner = {SERVICE_NAME: name} if (name := metadata.labels.get(SERVICE_NAME)) else {}
    lean = Metadata(metadata.name, namespace, owner, _NO_ANNOTATIONS)
    endpoints = [_endpoint(each) for each in found.endpoints]
    ports = _ports(tuple((port.name, port.port, port.protocol) for port in found.ports))
    return Ref("EndpointSlice", namespace, metadata.name), EndpointSlice(
        lean, intern(found.address_type), endpoints, ports
    )


def _endpoint(found: SliceEndpoint) -> SliceEndpoint:
    said, hints = found.conditions, found.hints
    conditions = _conditions(said.ready, said.serving)
    if hints.for_zones or hints.for_nodes:
        hints = _hints(tuple(h.name for h in hints.for_zones), tuple(h.name for h in hints.for_nodes))
    return SliceEndpoint(
        found.addresses, conditions, found.hostname, intern(found.zone), hints, intern(found.node_name)
    )


@lru_cache(_SHARED)
def _spec(node_name: str, host_network: bool, service_account_name: str) -> PodSpec:
    return PodSpec(intern(node_name), host_network, intern(service_account_name), "", "", _NO_CONTAINERS)


@lru_cache(_SHARED)
def _ports(ports: tuple[tuple[str | None, int | None, str | None], ...]) -> list[EndpointPort]:
    return [EndpointPort(*port) for port in ports]


@lru_cache
def _families(families: tuple[str, ...]) -> list[str]:
    return list(families)


@lru_cache
def _conditions(ready: bool | None, serving: bool | None) -> Conditions:
    return Conditions(ready, serving)


@lru_cache(_SHARED)
def _hints(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hints:
    return Hints(tuple(map(Hint, zones)), tuple(map(Hint, nodes)))


@lru_cache(_SHARED)
def _labels(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {intern(key): intern(value) for key, value in items}
