"""ServiceExport and the Service of its name -> what other clusters are told of it by the MCS API. Pure.

As Cilium's API server does it: whether a Service is global says nothing here, and an ExternalName is never exported.
The API takes any words for labels and annotations of a ServiceExport, and refuses some of them in the ServiceImport and
the Service that come of it; other clusters may send anything: `usable` leaves that out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
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
Note = Callable[[Invalid], None]
_FAMILIES: Final = ("IPv4", "IPv6")
_MOST: Final = 256
"""Labels, and annotations, of one export."""
_MOST_PORTS: Final = 1000
_MOST_BYTES: Final = 64 << 10
"""Of all labels, and of all annotations: the API takes 256 KiB of annotations, others' with them."""
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
    return usable(found, lambda fault: faults.note(ref, fault))


def usable(export: model.ServiceExport, note: Note) -> model.ServiceExport | None:
    """Without what no ServiceImport can have, nor the Service behind it; each is told to `note`. None where it has
    nothing to be called by."""
    if len(export.ports) > _MOST_PORTS:
        note(
            Invalid("ports", f"{len(export.ports)} of them", f"must be at most {_MOST_PORTS}, the first of which hold")
        )
    ports = tuple(_kept(_check_port, export.ports[:_MOST_PORTS], note))
    if not ports and export.type != "Headless":
        note(Invalid("ports", [port.port for port in export.ports], "must have one that can be called"))
        return None
    families = next(_kept(_check_families, [export.ip_families], note), ())
    annotations = next(_kept(partial(_check_size, "exportedAnnotations"), [export.annotations], note), {})
    labels = next(_kept(partial(_check_size, "exportedLabels"), [export.labels], note), {})
    return replace(
        export,
        ports=ports,
        session_affinity_timeout=next(_kept(_check_timeout, [export.session_affinity_timeout], note), None),
        ip_families=tuple(_kept(_check_family, families, note)),
        annotations=dict(_kept(_check_annotation, annotations.items(), note)),
        labels=dict(_kept(_check_label, labels.items(), note)),
    )


def _kept(rule: Callable[[T], None], values: Iterable[T], note: Note) -> Iterator[T]:
    for value in values:
        try:
            rule(value)
        except Invalid as e:
            note(e)
        else:
            yield value


def _check_port(port: ExportPort) -> None:
    check_port("ports.port", port.port)
    parse_protocol("ports.protocol", str(port.protocol))
    if port.name:
        check_dns_label("ports.name", port.name)
    if port.app_protocol:
        check_key("ports.appProtocol", port.app_protocol)


def _check_timeout(seconds: int | None) -> None:
    if seconds is not None and seconds not in _TIMEOUTS:
        raise Invalid("sessionAffinityConfig.clientIP.timeoutSeconds", seconds, "must be 1 to 86400")


def _check_families(families: tuple[str, ...]) -> None:
    if len(families) > len(_FAMILIES):
        raise Invalid("ipFamilies", f"{len(families)} of them", f"must be at most {len(_FAMILIES)}")


def _check_family(family: str) -> None:
    if family not in _FAMILIES:
        raise Invalid("ipFamilies", family, f"must be {' or '.join(_FAMILIES)}")


def _check_label(label: tuple[str, str]) -> None:
    check_labels("exportedLabels", dict([label]))


def _check_annotation(annotation: tuple[str, str]) -> None:
    check_key("exportedAnnotations", annotation[0].lower())


def _check_size(field: str, said: Mapping[str, str]) -> None:
    """All are left out where there are too many: a hostile cluster's are not worth a look at each."""
    if len(said) > _MOST:
        raise Invalid(field, f"{len(said)} of them", f"must be at most {_MOST}")
    size = sum(len(part.encode(errors="replace")) for pair in said.items() for part in pair)
    if size > _MOST_BYTES:
        raise Invalid(field, f"{size} bytes", f"must be at most {_MOST_BYTES} bytes together")


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
