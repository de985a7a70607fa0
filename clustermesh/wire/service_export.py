"""cilium/state/serviceexports/v1/<cluster>/<namespace>/<name>: an MCS export (Cilium: pkg/clustermesh/mcsapi/types).

Old releases spell two fields `Annotations` and `Labels`, new ones in lower case: both are written, either is read.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from clustermesh.errors import Invalid
from clustermesh.model import ExportPort, ServiceExport
from clustermesh.wire import go_json
from clustermesh.wire.decoding import decodes
from clustermesh.wire.keys import check_name
from clustermesh.wire.ports import check_port, read_protocol, write_protocol
from clustermesh.wire.timestamp import format_time, parse_time

_Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Map = dict[str, str] | None | UnsetType
_ALLOWED: Final = {
    "type": ("ClusterSetIP", "Headless"),
    "session_affinity": ("ClientIP", "None"),
    "internal_traffic_policy": ("", "Cluster", "Local"),
    "traffic_distribution": ("", "PreferClose", "PreferSameZone", "PreferSameNode"),
}
_ZERO_TIME: Final = -62135596800  # year 1, which Go calls unset


class _Port(Struct, frozen=True, gc=False):
    name: str | UnsetType = UNSET
    protocol: str | UnsetType = UNSET
    app_protocol: str | UnsetType | None = field(name="appProtocol", default=UNSET)
    port: _Int32 = 0


class _ClientIP(Struct, frozen=True, gc=False):
    timeout: _Int32 | UnsetType | None = field(name="timeoutSeconds", default=UNSET)


class _AffinityConfig(Struct, frozen=True, gc=False):
    client_ip: _ClientIP | UnsetType | None = field(name="clientIP", default=UNSET)


class _Export(Struct, frozen=True, gc=False):
    """The fields in the order in which they are written."""

    cluster: str
    name: str
    namespace: str
    annotations: _Map = UNSET
    old_annotations: _Map = field(name="Annotations", default=UNSET)
    labels: _Map = UNSET
    old_labels: _Map = field(name="Labels", default=UNSET)
    created: str = field(name="exportCreationTimestamp", default="")
    ports: list[_Port] | None = None
    type: str = ""
    session_affinity: str = field(name="sessionAffinity", default="")
    affinity_config: _AffinityConfig | UnsetType | None = field(name="sessionAffinityConfig", default=UNSET)
    ip_families: list[str] | UnsetType | None = field(name="ipFamilies", default=UNSET)
    internal_traffic_policy: str | UnsetType | None = field(name="internalTrafficPolicy", default=UNSET)
    traffic_distribution: str | UnsetType | None = field(name="trafficDistribution", default=UNSET)


_DECODER: Final = msgspec.json.Decoder(_Export)


def encode(export: ServiceExport) -> bytes:
    """JSON; Invalid for what Cilium's validator refuses."""
    _check(export)
    annotations, labels = dict(export.annotations) or UNSET, dict(export.labels) or UNSET
    return go_json.encode(
        _Export(
            export.cluster,
            export.name,
            export.namespace,
            annotations,
            annotations,
            labels,
            labels,
            format_time(export.created),
            [_write_port(port) for port in export.ports],
            export.type,
            export.session_affinity,
            _write_timeout(export.session_affinity_timeout),
            list(export.ip_families) or UNSET,
            export.internal_traffic_policy or UNSET,
            export.traffic_distribution or UNSET,
        )
    )


@decodes("service export")
def decode(data: bytes) -> ServiceExport:
    """Raises DecodeError. An empty session affinity, which some releases write, is read as None."""
    wire = _DECODER.decode(data)
    config = wire.affinity_config or _AffinityConfig()
    timeout = config.client_ip.timeout if config.client_ip else None
    export = ServiceExport(
        cluster=wire.cluster,
        namespace=wire.namespace,
        name=wire.name,
        created=parse_time(wire.created),
        type=wire.type,
        ports=tuple(_read_port(port) for port in wire.ports or ()),
        session_affinity=wire.session_affinity or "None",
        session_affinity_timeout=None if timeout is UNSET else timeout,
        ip_families=tuple(wire.ip_families or ()),
        internal_traffic_policy=wire.internal_traffic_policy or "",
        traffic_distribution=wire.traffic_distribution or "",
        annotations=wire.annotations or wire.old_annotations or {},
        labels=wire.labels or wire.old_labels or {},
    )
    _check(export)
    return export


def _check(export: ServiceExport) -> None:
    check_name(export.cluster, "cluster")
    check_name(export.namespace, "namespace")
    check_name(export.name, "name")
    if export.created == _ZERO_TIME:
        raise Invalid("exportCreationTimestamp", export.created, "must be set")
    for field_name, allowed in _ALLOWED.items():
        value = getattr(export, field_name)
        if value not in allowed:
            raise Invalid(field_name, value, f"must be one of {', '.join(filter(None, allowed))}")


def _write_port(port: ExportPort) -> _Port:
    return _Port(port.name or UNSET, write_protocol(port.protocol), port.app_protocol or UNSET, check_port(port.port))


def _read_port(wire: _Port) -> ExportPort:
    return ExportPort(
        port=check_port(wire.port),
        protocol=read_protocol(wire.protocol or "TCP"),
        name=wire.name or "",
        app_protocol=wire.app_protocol or "",
    )


def _write_timeout(timeout: int | None) -> _AffinityConfig | UnsetType:
    return UNSET if timeout is None else _AffinityConfig(_ClientIP(timeout))
