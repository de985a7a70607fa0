"""ServiceExport and the Service of its name -> what other clusters are told of it by the MCS API. Pure.

As Cilium's API server does it: whether a Service is global says nothing here, and an ExternalName is never exported.
"""

from __future__ import annotations

from collections.abc import Iterator

from clustermesh import model
from clustermesh.errors import Invalid
from clustermesh.model import Cluster, ExportPort
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Ref, Service, ServiceExport
from clustermesh.sources.rules import check_port, parse_protocol
from clustermesh.wire.timestamp import parse_time

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
    return model.ServiceExport(
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
