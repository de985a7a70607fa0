"""Service, its EndpointSlices or Pods, its Namespace -> LocalService. Pure.

Annotations and their meaning: Cilium's documentation of global services; conditions of endpoints: Kubernetes'
discovery/v1. Who may call it is in `outside`, what is said of single backends in `details`. A part that breaks a rule
(one address, one port) is left out with a fault; the rest counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from clustermesh import model
from clustermesh.address import Address, is_ipv4
from clustermesh.errors import Invalid
from clustermesh.model import (
    USUAL_NODE_PORTS,
    Affinity,
    BackendDetail,
    BackendState,
    Cluster,
    LocalService,
    Outside,
    Port,
    Protocol,
)
from clustermesh.sources import outside
from clustermesh.sources.details import Details, Marks, read_marks
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Conditions, EndpointSlice, Hints, Pod, Ref, Service, ServicePort
from clustermesh.sources.pods import has_ended, pod_ips
from clustermesh.sources.rules import check_dns_label, check_port, parse_ip, parse_protocol

GLOBAL: Final = ("service.cilium.io/global", "io.cilium/global-service")
SHARED: Final = ("service.cilium.io/shared", "io.cilium/shared-service")
AFFINITY: Final = ("service.cilium.io/affinity", "io.cilium/service-affinity")
SYNC_SLICES: Final = "service.cilium.io/global-sync-endpoint-slices"

_NO_HINTS: Final = Hints()
_Ports = dict[Address, Mapping[str, Port]]
_Place = tuple[str, str, Hints]
"""The node and the zone of a backend, and whom its slice means it for."""


class ServiceParts(Struct, frozen=True, gc=False, kw_only=True):
    """Everything one LocalService is made of. `pods` are those its selector holds for; `slices` win over them. Its
    namespace is in the mesh, or not. `marks` are of Pods in it, `zones` by the names of nodes. `node_ports` are those
    that may be had of a node.
    """

    ref: Ref
    service: Service
    slices: Mapping[Ref, EndpointSlice] = {}
    pods: Mapping[Ref, Pod] = {}
    in_mesh: bool = True
    marks: Marks = {}
    zones: Mapping[str, str] = {}
    node_ports: range = USUAL_NODE_PORTS


def translate_service(cluster: Cluster, parts: ServiceParts, faults: Faults) -> LocalService | None:
    """None for an ExternalName service, which is an alias in DNS and nothing else."""
    spec, metadata = parts.service.spec, parts.service.metadata
    if spec.type == "ExternalName":
        return None
    accepted = _accepted_ports(parts, faults)
    ports = {p.name: Port(protocol=Protocol(p.protocol), port=p.port) for p in accepted}
    frontends = {ip: dict(ports) for ip in _cluster_ips(parts, faults)} if ports else {}
    is_global = _is_true(_annotation(metadata.annotations, GLOBAL)) and parts.in_mesh
    kind = outside.service_type(parts.ref, parts.service, faults)
    ways = outside.translate_outside(parts.ref, parts.service, kind, accepted, parts.node_ports, faults)
    local_only = outside.is_local(parts.ref, "spec.internalTrafficPolicy", spec.internal_traffic_policy, faults)
    found = _Found(_details(parts, ways, local_only, faults))
    if parts.slices:
        _from_slices(parts.slices, found, faults)
    else:
        _from_pods(parts, accepted, list(frontends), found, faults)
    return LocalService(
        service=model.Service(
            cluster=cluster.name,
            cluster_id=cluster.id,
            namespace=parts.ref.namespace,
            name=parts.ref.name,
            frontends=frontends,
            backends=found.backends,
            hostnames=found.hostnames,
            labels=metadata.labels,
            selector=spec.selector,
            include_external=is_global,
            shared=is_global and _is_true(_annotation(metadata.annotations, SHARED, "true")),
        ),
        is_global=is_global,
        affinity=_affinity(parts, faults) if is_global else Affinity.NONE,
        type=kind,
        outside=ways,
        local_only=local_only,
        affinity_seconds=outside.affinity_seconds(parts.ref, parts.service, faults),
        algorithm=outside.algorithm(parts.ref, metadata.annotations, faults),
        details=found.details,
        draining=found.draining(),
    )


def _details(parts: ServiceParts, ways: Outside, local_only: bool, faults: Faults) -> Details:
    return Details(
        outside.traffic_distribution(parts.ref, parts.service, faults),
        nodes=local_only or ways.local_only,
        pods=parts.marks,
        own=read_marks(parts.service.metadata.annotations, parts.ref, faults),
    )


def _annotation(annotations: Mapping[str, str], names: tuple[str, str], default: str = "") -> str:
    """The value under the first of `names` that is there: a name wins over its older alias."""
    return next((annotations[name] for name in names if name in annotations), default)


def _is_true(text: str) -> bool:
    return text.lower() == "true"


def _affinity(parts: ServiceParts, faults: Faults) -> Affinity:
    text = _annotation(parts.service.metadata.annotations, AFFINITY, "none")
    try:
        return Affinity(text.lower())
    except ValueError:
        field = f"metadata.annotations[{AFFINITY[0]}]"
        faults.note(parts.ref, Invalid(field, text, "must be local, remote or none; taken as none"))
        return Affinity.NONE


def _cluster_ips(parts: ServiceParts, faults: Faults) -> Iterator[Address]:
    spec = parts.service.spec
    texts = spec.cluster_ips or [spec.cluster_ip]
    if not texts[0]:
        rule = "must be there in a folder, where nobody allots it, or be None for a headless service"
        faults.note(parts.ref, Invalid("spec.clusterIP", "", rule))
    for text in texts:
        if text and text != "None" and (ip := faults.check(parts.ref, parse_ip, "spec.clusterIP", text)):
            yield ip


def _accepted_ports(parts: ServiceParts, faults: Faults) -> list[ServicePort]:
    """The ports without fault, each with a name of its own."""
    ports: dict[str, ServicePort] = {}
    for number, port in enumerate(parts.service.spec.ports):
        field = f"spec.ports[{number}]"
        try:
            name = check_dns_label(f"{field}.name", port.name) if port.name else ""
            if name in ports:
                raise Invalid(f"{field}.name", name, "must be unique in its service: backends are matched by port name")
            parse_protocol(f"{field}.protocol", port.protocol)
            check_port(f"{field}.port", port.port)
            if isinstance(port.target_port, int):
                check_port(f"{field}.targetPort", port.target_port)
            ports[name] = port
        except Invalid as e:
            faults.note(parts.ref, e)
    return list(ports.values())


class _Found:
    """Backends gathered so far."""

    def __init__(self, details: Details) -> None:
        self.backends: _Ports = {}
        self.hostnames: dict[Address, str] = {}
        self.details: dict[Address, BackendDetail] = {}
        self._draining: _Ports = {}
        self._of = details.of

    def add(self, ip: Address, ports: Mapping[str, Port], hostname: str, state: BackendState, place: _Place) -> None:
        """Several slices may hold one address, each with other ports; where they disagree the first one counts."""
        known = self.backends.get(ip)
        self.backends[ip] = {**ports, **known} if known else ports  # nearly all of a slice have those of the slice
        if hostname:
            self.hostnames.setdefault(ip, hostname)
        if known is None and (detail := self._of(ip, state, *place)):
            self.details[ip] = detail

    def drain(self, ip: Address, ports: Mapping[str, Port]) -> None:
        """It finishes what it has."""
        self._draining[ip] = {**ports, **self._draining.get(ip, {})}

    def draining(self) -> _Ports:
        """What is a backend by another slice is none of these."""
        return {ip: ports for ip, ports in self._draining.items() if ip not in self.backends}


def _from_slices(slices: Mapping[Ref, EndpointSlice], found: _Found, faults: Faults) -> None:
    for ref, endpoint_slice in slices.items():
        if endpoint_slice.address_type not in ("IPv4", "IPv6"):
            continue  # FQDN slices name no address
        ports = _slice_ports(ref, endpoint_slice, faults)
        for number, endpoint in enumerate(endpoint_slice.endpoints):
            state = _state(endpoint.conditions)
            place = endpoint.node_name, endpoint.zone, endpoint.hints
            for text in endpoint.addresses:
                ip = faults.check(ref, parse_ip, f"endpoints[{number}].addresses", text)
                if not (ip and ports):
                    continue
                if state is None:
                    found.drain(ip, ports)
                else:
                    found.add(ip, ports, endpoint.hostname, state, place)


def _state(conditions: Conditions) -> BackendState | None:
    """Ready, or still serving while it terminates; None for what answers nobody new. Kubernetes reads an absent `ready`
    as true, `serving` as `ready`."""
    if conditions.ready is not False:
        return BackendState.ACTIVE
    return BackendState.TERMINATING if conditions.serving else None


def _slice_ports(ref: Ref, endpoint_slice: EndpointSlice, faults: Faults) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for number, port in enumerate(endpoint_slice.ports):
        if port.port is None:
            continue  # "all ports": nothing a service port could be mapped to
        field = f"ports[{number}]"
        try:
            protocol = parse_protocol(f"{field}.protocol", port.protocol or "TCP")
            ports[port.name or ""] = Port(protocol=protocol, port=check_port(f"{field}.port", port.port))
        except Invalid as e:
            faults.note(ref, e)
    return ports


def _from_pods(
    parts: ServiceParts, accepted: Sequence[ServicePort], frontends: Sequence[Address], found: _Found, faults: Faults
) -> None:
    """What Kubernetes' endpoint controller would write, of the address families the service has."""
    families = {is_ipv4(ip) for ip in frontends} or {False, True}
    for pod in parts.pods.values():
        state = _pod_state(pod, parts.service.spec.publish_not_ready)
        if state is None and has_ended(pod):
            continue
        node, ports = pod.spec.node_name, _target_ports(accepted, pod)
        place = node, parts.zones.get(node, ""), _NO_HINTS
        for ip in pod_ips(pod):
            if is_ipv4(ip) not in families or not ports:
                continue
            if state is None:
                found.drain(ip, ports)
            else:
                found.add(ip, ports, _hostname(pod, parts.ref.name), state, place)
    _check_named_ports(parts, accepted, faults)


def _pod_state(pod: Pod, published: bool) -> BackendState | None:
    """That of the endpoint it would have, `published` whether it is ready or not."""
    ready, leaves = pod_is_ready(pod), bool(pod.metadata.deletion_timestamp)
    return _state(Conditions(ready=published or (ready and not leaves), serving=ready))


def pod_is_ready(pod: Pod) -> bool:
    """The condition Ready; a pod that says nothing of it is not ready."""
    return not has_ended(pod) and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)


def _hostname(pod: Pod, service: str) -> str:
    return pod.spec.hostname if pod.spec.subdomain == service else ""


def _target_ports(accepted: Sequence[ServicePort], pod: Pod) -> dict[str, Port]:
    ports = ((p, _target_port(p, pod)) for p in accepted)
    return {p.name: Port(protocol=Protocol(p.protocol), port=number) for p, number in ports if 1 <= number <= 65535}


def _target_port(port: ServicePort, pod: Pod) -> int:
    """The number a service port means on this pod, 0 where the pod has no container port of that name."""
    if not isinstance(port.target_port, str):
        return port.target_port or port.port
    named = (c for container in pod.spec.containers for c in container.ports if c.name == port.target_port)
    return next((c.container_port for c in named if c.protocol == port.protocol), 0)


def _check_named_ports(parts: ServiceParts, accepted: Sequence[ServicePort], faults: Faults) -> None:
    for port in accepted:
        if isinstance(port.target_port, str) and parts.pods:
            if any(1 <= _target_port(port, pod) <= 65535 for pod in parts.pods.values()):
                continue
            rule = "must be the name of a container port of the pods, with the same protocol"
            field = f"spec.ports[{parts.service.spec.ports.index(port)}].targetPort"
            faults.note(parts.ref, Invalid(field, port.target_port, rule))
