"""What a Service says of who may call it, from where, and whom the callers get. Pure.

Fields and their rules: Kubernetes' core/v1 Service. What breaks one is left out, or taken as the default, with a fault;
but for source ranges: a list without a good one lets nobody in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from clustermesh.address import Address, Prefix
from clustermesh.errors import Invalid
from clustermesh.model import NOT_OUTSIDE, Algorithm, Outside, Port, Protocol, ServiceType
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Ref, Service, ServicePort
from clustermesh.sources.rules import check_port, parse_ip, parse_range
from clustermesh.wire.local import MAX_AFFINITY

ALGORITHM: Final = "service.cilium.io/lb-algorithm"
PREFER_SAME_NODE: Final = "PreferSameNode"
_USUAL_AFFINITY: Final = 10_800  # seconds
_TRAFFIC: Final = ("PreferClose", "PreferSameZone", PREFER_SAME_NODE)
_TYPES: Final = {each.value: each for each in ServiceType}


def service_type(ref: Ref, service: Service, faults: Faults) -> ServiceType:
    text = service.spec.type
    if text and text not in _TYPES:
        rule = f"must be {', '.join(_TYPES)} or ExternalName; taken as ClusterIP"
        faults.note(ref, Invalid("spec.type", text, rule))
    return _TYPES.get(text, ServiceType.CLUSTER_IP)


def translate_outside(
    ref: Ref, service: Service, kind: ServiceType, ports: Sequence[ServicePort], node_ports: range, faults: Faults
) -> Outside:
    """`ports` are those without fault; `node_ports` those that a service may have of a node."""
    spec = service.spec
    if kind is ServiceType.CLUSTER_IP and not spec.external_ips:
        return NOT_OUTSIDE
    balanced = kind is ServiceType.LOAD_BALANCER
    local_only = is_local(ref, "spec.externalTrafficPolicy", spec.external_traffic_policy, faults)
    checked = spec.health_check_node_port if balanced and local_only else 0

    def check(field: str, port: int) -> int:
        if check_port(field, port) not in node_ports:
            rule = f"must be {node_ports.start} to {node_ports.stop - 1} in a folder, as Kubernetes usually has it"
            raise Invalid(field, port, rule)
        return port

    return Outside(
        node_ports={} if kind is ServiceType.CLUSTER_IP else _node_ports(ref, service, kind, ports, check, faults),
        external_ips=tuple(_addresses(ref, "spec.externalIPs", spec.external_ips, faults)),
        load_balancer_ips=tuple(_ingress(ref, service, faults)) if balanced else (),
        source_ranges=_source_ranges(ref, spec.source_ranges, faults) if balanced else None,
        local_only=local_only,
        health_check_port=(faults.check(ref, check, "spec.healthCheckNodePort", checked) or 0) if checked else 0,
    )


def is_local(ref: Ref, field: str, policy: str, faults: Faults) -> bool:
    """Whether a traffic policy keeps to the backends of one node."""
    _chosen(ref, field, policy, ("Cluster", "Local"), "Cluster", faults)
    return policy == "Local"


def traffic_distribution(ref: Ref, service: Service, faults: Faults) -> str:
    """One of Kubernetes' preferences, or ""."""
    return _chosen(ref, "spec.trafficDistribution", service.spec.traffic_distribution, _TRAFFIC, "", faults)


def affinity_seconds(ref: Ref, service: Service, faults: Faults) -> int:
    """For how long a client keeps its backend, 0 for not at all."""
    spec, config = service.spec, service.spec.session_affinity_config
    chosen = _chosen(ref, "spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP"), "None", faults)
    if chosen != "ClientIP":
        return 0
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is not None and not 1 <= seconds <= MAX_AFFINITY:
        field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        rule = f"must be 1 to {MAX_AFFINITY}; taken as {_USUAL_AFFINITY}"
        faults.note(ref, Invalid(field, seconds, rule))
        seconds = None
    return _USUAL_AFFINITY if seconds is None else seconds


def algorithm(ref: Ref, annotations: Mapping[str, str], faults: Faults) -> Algorithm:
    """How its backends are chosen."""
    if (text := annotations.get(ALGORITHM)) is None:
        return Algorithm.RANDOM
    field = f"metadata.annotations[{ALGORITHM}]"
    return Algorithm[_chosen(ref, field, text.lower(), ("random", "maglev"), "random", faults).upper()]


def _chosen(ref: Ref, field: str, text: str, choices: Collection[str], default: str, faults: Faults) -> str:
    """One of `choices`, or the default with a fault; "" is none."""
    if text in choices:
        return text
    if text:
        rule = f"must be one of {', '.join(choices)}; taken as {default or 'none'}"
        faults.note(ref, Invalid(field, text, rule))
    return default


def _node_ports(
    ref: Ref,
    service: Service,
    kind: ServiceType,
    ports: Sequence[ServicePort],
    check: Callable[[str, int], int],
    faults: Faults,
) -> Mapping[str, Port]:
    """By the names of the ports. A load balancer need not have any."""
    found: dict[str, Port] = {}
    had = set[Port]()
    places = {id(port): place for place, port in enumerate(service.spec.ports)}
    for port in ports:
        field = f"spec.ports[{places[id(port)]}].nodePort"
        try:
            if not port.node_port:
                if kind is ServiceType.NODE_PORT:
                    raise Invalid(field, port.node_port, "must be there in a folder, where nobody allots it")
                continue
            named = Port(protocol=Protocol(port.protocol), port=check(field, port.node_port))
            if named in had:
                raise Invalid(field, port.node_port, f"must not be that of another {port.protocol} port of its service")
            found[port.name] = named
            had.add(named)
        except Invalid as e:
            faults.note(ref, e)
    return found


def _addresses(ref: Ref, field: str, texts: Sequence[str], faults: Faults) -> Iterator[Address]:
    for number, text in enumerate(texts):
        if ip := faults.check(ref, parse_ip, f"{field}[{number}]", text):
            yield ip


def _ingress(ref: Ref, service: Service, faults: Faults) -> Iterator[Address]:
    """Those that are served on nodes: a proxy (KEP-1860) calls node ports, and is called itself where it is."""
    for number, each in enumerate(service.status.load_balancer.ingress):
        field = f"status.loadBalancer.ingress[{number}]"
        if each.ip_mode not in ("", "VIP", "Proxy"):
            faults.note(ref, Invalid(f"{field}.ipMode", each.ip_mode, "must be VIP or Proxy; not served"))
        elif each.ip and each.ip_mode != "Proxy" and (ip := faults.check(ref, parse_ip, f"{field}.ip", each.ip)):
            yield ip


def _source_ranges(ref: Ref, texts: Sequence[str], faults: Faults) -> tuple[Prefix, ...] | None:
    """None where all may come; what is no range lets nobody in."""
    fields = ((f"spec.loadBalancerSourceRanges[{number}]", text) for number, text in enumerate(texts))
    found = [faults.check(ref, parse_range, field, text.strip()) for field, text in fields]
    return tuple(dict.fromkeys(each for each in found if each is not None)) if texts else None
