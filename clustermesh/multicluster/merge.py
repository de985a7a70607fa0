"""All clusters' exports of one name -> what is imported, and what they disagree on. Pure.

As the specification has it (KEP-1645), read as Cilium reads it. Of exports that disagree the oldest holds, of those of
one second the one whose cluster's name comes first. Ports are united: each name, and each protocol and number, means
what it means to the first who has it, and who means something else by it is left out with that port. Families are
those that all have, leaving out who has none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from clustermesh.model import ExportPort, ServiceExport


class Conflict(Struct, frozen=True):
    """What clusters disagree on: words of the specification's with commas in between, and a sentence for each."""

    reason: str
    sentence: str


class Import(Struct, frozen=True, kw_only=True):
    """What all clusters together export under one name; `oldest` decides what only one can. `clusters` from the oldest
    export on."""

    oldest: ServiceExport
    ports: tuple[ExportPort, ...]
    ip_families: tuple[str, ...]
    clusters: tuple[str, ...]
    conflict: Conflict | None = None


def _timeout(export: ServiceExport) -> str:
    return "" if export.session_affinity_timeout is None else str(export.session_affinity_timeout)


def _map(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={values[key]}" for key in sorted(values))


_FIELDS: Final[Sequence[tuple[str, str, Callable[[ServiceExport], Any]]]] = (
    ("TypeConflict", "type", lambda export: export.type),
    ("SessionAffinityConflict", "sessionAffinity", lambda export: export.session_affinity),
    ("SessionAffinityConfigConflict", "sessionAffinityConfig.clientIP.timeoutSeconds", _timeout),
    ("AnnotationsConflict", "exportedAnnotations", lambda export: _map(export.annotations)),
    ("LabelsConflict", "exportedLabels", lambda export: _map(export.labels)),
    (
        "InternalTrafficPolicyConflict",
        "internalTrafficPolicy",
        lambda export: export.internal_traffic_policy or "Cluster",
    ),
    ("TrafficDistributionConflict", "trafficDistribution", lambda export: export.traffic_distribution),
)


def merge(exports: Iterable[ServiceExport]) -> Import | None:
    """None of none; the `exports` are of one name and of as many clusters."""
    ordered = sorted(exports, key=lambda export: (export.created, export.cluster))
    if not ordered:
        return None
    ports, of_ports = _unite(ordered)
    families, of_families = _intersect(ordered)
    return Import(
        oldest=ordered[0],
        ports=ports,
        ip_families=families,
        clusters=tuple(export.cluster for export in ordered),
        conflict=_joined([*filter(None, (of_ports, of_families)), *_compare(ordered)]),
    )


def _joined(found: Sequence[Conflict]) -> Conflict | None:
    sentences = "; ".join(each.sentence for each in found)
    return Conflict(",".join(each.reason for each in found), sentences) if found else None


def _unite(ordered: Sequence[ServiceExport]) -> tuple[tuple[ExportPort, ...], Conflict | None]:
    names, places, whose = dict[str, ExportPort](), dict[tuple[str, int], ExportPort](), dict[str, str]()
    for export in ordered:
        for port in export.ports:
            alone = bool(names) and not (port.name and "" not in names)
            if not alone and port.name not in names and (port.protocol, port.port) not in places:
                names[port.name] = places[port.protocol, port.port] = port
                whose[port.name] = export.cluster
    for export in ordered:
        if set(export.ports) != set(names.values()):
            held = ", ".join(f"{_spelled(port)} of {whose[name]}" for name, port in names.items()) or "none"
            said = f"the ports of {export.cluster} are not those of all: the oldest hold, {held}"
            return tuple(names.values()), Conflict("PortConflict", said)
    return tuple(names.values()), None


def _spelled(port: ExportPort) -> str:
    name = f"{port.name}=" if port.name else ""
    return f"{name}{port.port}/{port.protocol}" + (f" ({port.app_protocol})" if port.app_protocol else "")


def _intersect(ordered: Sequence[ServiceExport]) -> tuple[tuple[str, ...], Conflict | None]:
    found, conflict = tuple[str, ...](), None
    for export in ordered:
        if not export.ip_families:  # older releases do not say
            continue
        common = tuple(family for family in found if family in export.ip_families) if found else export.ip_families
        if not common and conflict is None:
            said = f"{export.cluster} has none of {', '.join(found)}, which all older exports have, and which holds"
            conflict = Conflict("IPFamilyConflict", said)
        found = common or found
    return found, conflict


def _compare(ordered: Sequence[ServiceExport]) -> Iterator[Conflict]:
    oldest = ordered[0]
    for reason, name, value in _FIELDS:
        if others := sum(value(each) != value(oldest) for each in ordered):
            said = f"{others} of {len(ordered)} clusters have another {name}"
            yield Conflict(reason, f"{said}: {value(oldest)!r} of {oldest.cluster}, the oldest, holds")
