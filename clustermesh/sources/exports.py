"""ServiceExport and the Service of its name -> what other clusters are told of it by the MCS API. Pure.

As Cilium's API server does it: whether a Service is global says nothing here, and an ExternalName is never exported.
The API takes any words for labels and annotations of a ServiceExport, and refuses some of them in the ServiceImport and
the Service that come of it; other clusters may send anything: `usable` leaves that out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from msgspec.structs import replace

from clustermesh import model
from clustermesh.errors import Invalid
from clustermesh.model import Cluster, ExportPort
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Ref, Service, ServiceExport
from clustermesh.sources.rules import check_dns_label, check_key, check_labels, check_port, parse_protocol
from clustermesh.wire.timestamp import parse_time

T = TypeVar("T")
_FAMILIES: Final = ("IPv4", "IPv6")
_MOST: Final = 256
"""Labels, and annotations, of one export."""
_MOST_PORTS: Final = 1000
_MOST_BYTES: Final = 64 << 10
"""Of all labels, and of all annotations: the API takes 256 KiB of annotations, others' with them."""
_TIMEOUT: Final = "sessionAffinityConfig.clientIP.timeoutSeconds"
_TIMEOUTS: Final = range(1, 86401)
_FOREVER = "must be the time at which it was created: of several clusters' exports the oldest counts"


def translate_export(
    cluster: Cluster, ref: Ref, export: ServiceExport, service: Service, faults: Faults
) -> model.ServiceExport | None:
    """None for what cannot be exported."""
    spec = service.spec
    created = faults.check(ref, _created, "metadata.creationTimestamp", export.metadata.creation_timestamp)
    if created is None or spec.type == "ExternalName":
        return None
    config = spec.session_affinity_config
    found = model.ServiceExport(
        cluster=cluster.name,
        namespace=ref.namespace,
        name=ref.name,
        created=created,
        type="Headless" if "None" in (spec.cluster_ip, *spec.cluster_ips) else "ClusterSetIP",
        ports=tuple(_ports(service)),
        session_affinity=spec.session_affinity or "None",
        session_affinity_timeout=config.client_ip.timeout_seconds if config and config.client_ip else None,
        ip_families=tuple(spec.ip_families),
        internal_traffic_policy=spec.internal_traffic_policy,
        traffic_distribution=spec.traffic_distribution,
        annotations=export.spec.exported_annotations,
        labels=export.spec.exported_labels,
    )
    return usable(ref, found, faults)


def usable(ref: Ref, export: model.ServiceExport, faults: Faults) -> model.ServiceExport | None:
    """Without what no ServiceImport can have, nor the Service behind it; `faults` are told each. None where it has
    nothing to be called by."""

    def kept(rule: Callable[[str, T], T], field: str, values: Iterable[T]) -> Iterator[T]:
        return (value for value in values if faults.check(ref, rule, field, value) is not None)

    if len(export.ports) > _MOST_PORTS:
        rule = f"must be at most {_MOST_PORTS}, the first of which hold"
        faults.note(ref, Invalid("ports", f"{len(export.ports)} of them", rule))
    ports = tuple(kept(_check_port, "ports", export.ports[:_MOST_PORTS]))
    if not ports and export.type != "Headless":
        numbers = [port.port for port in export.ports]
        faults.note(ref, Invalid("ports", numbers, "must have one that can be called"))
        return None
    families = faults.check(ref, _check_families, "ipFamilies", export.ip_families) or ()
    annotations = faults.check(ref, _check_size, "exportedAnnotations", export.annotations) or {}
    labels = faults.check(ref, _check_size, "exportedLabels", export.labels) or {}
    timeout = export.session_affinity_timeout
    return replace(
        export,
        ports=ports,
        session_affinity_timeout=None if timeout is None else faults.check(ref, _check_timeout, _TIMEOUT, timeout),
        ip_families=tuple(kept(_check_family, "ipFamilies", families)),
        annotations=dict(kept(_check_annotation, "exportedAnnotations", annotations.items())),
        labels=dict(kept(_check_label, "exportedLabels", labels.items())),
    )


def _check_port(field: str, port: ExportPort) -> ExportPort:
    check_port(f"{field}.port", port.port)
    parse_protocol(f"{field}.protocol", str(port.protocol))
    if port.name:
        check_dns_label(f"{field}.name", port.name)
    if port.app_protocol:
        check_key(f"{field}.appProtocol", port.app_protocol)
    return port


def _check_timeout(field: str, seconds: int) -> int:
    if seconds not in _TIMEOUTS:
        raise Invalid(field, seconds, "must be 1 to 86400")
    return seconds


def _check_families(field: str, families: tuple[str, ...]) -> tuple[str, ...]:
    if len(families) > len(_FAMILIES):
        raise Invalid(field, f"{len(families)} of them", f"must be at most {len(_FAMILIES)}")
    return families


def _check_family(field: str, family: str) -> str:
    if family not in _FAMILIES:
        raise Invalid(field, family, f"must be {' or '.join(_FAMILIES)}")
    return family


def _check_label(field: str, label: tuple[str, str]) -> tuple[str, str]:
    check_labels(field, dict([label]))
    return label


def _check_annotation(field: str, annotation: tuple[str, str]) -> tuple[str, str]:
    check_key(field, annotation[0].lower())
    return annotation


def _check_size(field: str, said: Mapping[str, str]) -> Mapping[str, str]:
    """All are left out where there are too many: a hostile cluster's are not worth a look at each."""
    if len(said) > _MOST:
        raise Invalid(field, f"{len(said)} of them", f"must be at most {_MOST}")
    size = sum(len(part.encode(errors="replace")) for pair in said.items() for part in pair)
    if size > _MOST_BYTES:
        raise Invalid(field, f"{size} bytes", f"must be at most {_MOST_BYTES} bytes together")
    return said


def _created(field: str, text: str) -> int:
    try:
        return parse_time(text)
    except Invalid as e:
        raise Invalid(field, text, _FOREVER) from e


def _ports(service: Service) -> Iterator[ExportPort]:
    """Those without fault; the Service's own translation says what is wrong with the others."""
    for port in service.spec.ports:
        try:
            protocol = parse_protocol("protocol", port.protocol)
            yield ExportPort(
                port=check_port("port", port.port), protocol=protocol, name=port.name, app_protocol=port.app_protocol
            )
        except Invalid:
            continue
