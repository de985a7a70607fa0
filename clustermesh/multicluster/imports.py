"""What the API should have of one name that clusters export: a ServiceImport, the Service behind it, and what each
ServiceExport's conditions say. Pure.

The Service (`derived_name`) is global, so that it has the backends of all clusters by the mesh's own ways; where this
cluster exports the name, it selects the same pods, or has the same EndpointSlices. A port by which this cluster means
something else is given a name that no container has, so that it has no backends here. The Service asks for all IP
families, which tells those of this cluster, and keeps those that all exporters have. An import of another
implementation, which says so by not naming that Service, is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from msgspec import Struct

from clustermesh.model import ExportPort, Protocol, ServiceExport
from clustermesh.multicluster.documents import (
    DERIVED,
    SERVICE_NAME,
    SERVICES,
    SOURCE_CLUSTER,
    Document,
    Name,
    Write,
    annotations_of,
    derived_name,
    exports_at,
    imports_at,
    labels_of,
    owned_by,
    settle,
    whole,
)
from clustermesh.multicluster.exported import exported_slices, exported_writes
from clustermesh.multicluster.merge import Import, merge
from clustermesh.sources.objects import EndpointSlice, Service
from clustermesh.sources.services import GLOBAL, SHARED
from clustermesh.wire.timestamp import format_time

NOT_HERE: Final = "not-exported"
"""A container port's name that nobody uses."""
NOBODY: Final = {DERIVED: NOT_HERE}
"""Selects no pod: from a Service without a selector Kubernetes would not take the slices that it has."""
_TIMEOUT: Final = 10800
_SAID: Final = 1000
"""Characters of a condition's message: what other clusters say is in some, and the API takes no more than 32,768."""
_OURS: Final = ("Valid", "Ready", "Conflict")
"""Conditions."""


class Facts(Struct, frozen=True, kw_only=True):
    """Everything that a name is decided by. `exports` are those of connected clusters, `own` what this one's says, but
    for its `faults`; `service` is what it exports, `slices` what that has. `unheard` are connected clusters of which
    not all exports are known. `export`, `held`, `derived` and `made` are the ServiceExport, the ServiceImport, its
    Service and this cluster's slices of that (`exported`) as the API has them."""

    cluster: str
    name: Name
    version: str
    in_mesh: bool
    exports: Sequence[ServiceExport] = ()
    own: ServiceExport | None = None
    faults: Sequence[str] = ()
    service: Service | None = None
    slices: Mapping[str, EndpointSlice] = {}
    unheard: Set[str] = frozenset()
    export: Document | None = None
    held: Document | None = None
    derived: Document | None = None
    made: Mapping[Name, Document] = {}

    @property
    def behind(self) -> str:
        """The name of the Service behind it."""
        return derived_name(*self.name)

    @property
    def is_anothers(self) -> bool:
        """Somebody else keeps the import."""
        return self.held is not None and annotations_of(self.held).get(DERIVED) != self.behind

    @property
    def families(self) -> tuple[str, ...] | None:
        """Those that the Service has, in its order; None where that is not known yet."""
        found = _spec(self.derived).get("ipFamilies")
        return tuple(found) if found else None


def writes(facts: Facts, now: float) -> list[Write]:
    """What is to be written, at `now`, Unix seconds: what follows from it comes next time."""
    found = merge((*facts.exports, *([facts.own] if facts.own else []))) if facts.in_mesh else None
    if awaited := facts.unheard & {*_clusters(facts.held)}:
        # What the import says of these may be all there is to know; this cluster's own backends are known.
        own = _exported(facts, _held_ports(facts.held))
        return [*_withdraw_own(facts), *exported_writes(own, facts.made), *_wait(facts, awaited, now)]
    wanted = [] if facts.is_anothers else _keep(facts, found, now) if found else _remove(facts)
    own = _exported(facts, found.ports if found else ())
    wanted = [*(_withdraw_own(facts) if found else ()), *wanted]  # alone: the API may not take the rest
    return [*wanted, *exported_writes(own, facts.made), *_tell(facts, found, now)]


def _withdraw_own(facts: Facts) -> list[Write]:
    """The Service finds no pods here that are not exported any more."""
    if facts.derived is None or facts.is_anothers or (facts.in_mesh and facts.own):
        return []
    nobody = {"spec": {"selector": whole(_spec(facts.derived).get("selector") or {}, NOBODY)}}
    return settle(SERVICES, (facts.name[0], facts.behind), facts.derived, nobody)


def _exported(facts: Facts, ports: Iterable[ExportPort]) -> dict[Name, Document]:
    """This cluster's slices of the Service behind an import of `ports`."""
    service, derived = facts.service, facts.derived
    if not facts.in_mesh or facts.own is None or service is None or service.spec.selector or derived is None:
        return {}
    if facts.is_anothers:
        return {}
    here = {port.name for port in ports if _target(port, facts) != NOT_HERE}
    return exported_slices(facts.cluster, facts.name, derived, facts.slices, here)


def _held_ports(held: Document | None) -> list[ExportPort]:
    return [
        ExportPort(port=each["port"], protocol=each.get("protocol") or Protocol.TCP, name=each.get("name") or "")
        for each in _spec(held).get("ports") or ()
    ]


def _clusters(held: Document | None) -> Iterable[str]:
    return [each.get("cluster", "") for each in _listed(held, "clusters")]


def _listed(held: Document | None, part: str) -> list[Document]:
    """That part of the status, where another's definition may let anything stand."""
    status = (held or {}).get("status")
    found = status.get(part) if isinstance(status, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _remove(facts: Facts) -> list[Write]:
    place, behind = imports_at(facts.version), (facts.name[0], facts.behind)
    gone = [Write("DELETE", place, facts.name)] if facts.held is not None else []
    return gone + ([Write("DELETE", SERVICES, behind)] if facts.derived is not None else [])


def _keep(facts: Facts, found: Import, now: float) -> list[Write]:
    place, held = imports_at(facts.version), facts.held
    steps = settle(place, facts.name, held, _import(facts, found))
    if held is None:
        return steps
    clusters = [{"cluster": name} for name in found.clusters]
    status = {"status": {"clusters": clusters, "conditions": _settled(held, [_reached(facts, found)], now)}}
    return [*steps, *settle(place, facts.name, held, status, "/status"), *_keep_service(facts, found, held)]


def _import(facts: Facts, found: Import) -> Document:
    oldest, held = found.oldest, facts.held
    # By the families that are told the Service is made anew, where it is to have another first one: who has them
    # not yet tells those of before.
    families = _spec(held).get("ipFamilies") if facts.families is None else _usable(facts.families, found)
    held_ips = zip(facts.families or (), _spec(facts.derived).get("clusterIPs") or [], strict=False)
    ips = [ip for family, ip in held_ips if ip != "None" and family in (families or ())]
    return {
        "metadata": {
            "labels": whole(labels_of(held), oldest.labels),
            "annotations": whole(annotations_of(held), {**oldest.annotations, DERIVED: facts.behind}),
        },
        "spec": {
            "type": oldest.type,
            "ports": [_port(port) for port in found.ports],
            "ips": ips or None,
            "ipFamilies": list(families or ()) or None,
            "internalTrafficPolicy": oldest.internal_traffic_policy or None,
            "trafficDistribution": oldest.traffic_distribution or None,
            **_affinity(oldest),
        },
    }


def _keep_service(facts: Facts, found: Import, owner: Document) -> list[Write]:
    name, held, headless = (facts.name[0], facts.behind), facts.derived, found.oldest.type == "Headless"
    if held is not None and (_spec(held).get("clusterIP") == "None") != headless:
        return [Write("DELETE", SERVICES, name)]  # which of the two it is stays for its life
    narrow = _narrowed(facts, found)
    if held is not None and narrow and facts.families and facts.families[0] != narrow:
        return [Write("DELETE", SERVICES, name)]  # and so does its first family
    wanted = _service(facts, found)
    if held is None:
        by = owned_by(imports_at(facts.version), facts.name[1], owner["metadata"]["uid"])
        wanted["metadata"]["ownerReferences"] = by
        wanted["spec"]["clusterIP"] = "None" if headless else None
        wanted["spec"]["ipFamilies"] = [narrow] if narrow else None
    steps = settle(SERVICES, name, held, wanted)
    if held is not None:  # by itself, for other clusters know words of it that the API here may not
        spread = {"spec": {"trafficDistribution": found.oldest.traffic_distribution or None}}
        steps += settle(SERVICES, name, held, spread)
    return steps


def _service(facts: Facts, found: Import) -> Document:
    oldest, local = found.oldest, facts.service.spec if facts.own and facts.service else None
    labels = {**oldest.labels, SERVICE_NAME: facts.name[1], SOURCE_CLUSTER: facts.cluster}
    annotations = {key: value for key, value in oldest.annotations.items() if key not in SHARED}  # each for itself
    selector = (local.selector if local else {}) or NOBODY
    return {
        "metadata": {
            "labels": whole(labels_of(facts.derived), labels),
            "annotations": whole(annotations_of(facts.derived), {**annotations, GLOBAL[0]: "true"}),
        },
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "SingleStack" if _narrowed(facts, found) else "PreferDualStack",
            "selector": whole(_spec(facts.derived).get("selector") or {}, selector),
            "ports": [{**_port(port), "targetPort": _target(port, facts)} for port in found.ports] or None,
            "publishNotReadyAddresses": True if local and local.publish_not_ready else None,
            "internalTrafficPolicy": oldest.internal_traffic_policy or "Cluster",
            **_affinity(oldest),
        },
    }


def _usable(families: Sequence[str], found: Import) -> list[str]:
    """Of this Service's those that all exporters have, as far as they say."""
    return [family for family in families if not found.ip_families or family in found.ip_families]


def _narrowed(facts: Facts, found: Import) -> str:
    """The one family that the Service is to have where this cluster has both, "" for all that it has. It is known of a
    Service that asked for all, and of one that was narrowed then."""
    if len(found.ip_families) != 1:
        return ""
    (family,) = found.ip_families
    if facts.families is None:
        return family if _spec(facts.held).get("ipFamilies") == [family] else ""
    if _spec(facts.derived).get("ipFamilyPolicy") == "SingleStack":
        return family if facts.families == (family,) else ""
    return family if len(facts.families) > 1 and family in facts.families else ""


def _target(port: ExportPort, facts: Facts) -> int | str:
    """What the port leads to on this cluster's pods."""
    for each in facts.service.spec.ports if facts.own and facts.service else ():
        if (each.name, each.protocol, each.port) == (port.name, port.protocol, port.port):
            return each.target_port or each.port
    return NOT_HERE


def _port(port: ExportPort) -> Document:
    named = {"name": port.name, "appProtocol": port.app_protocol}
    said = {key: value for key, value in named.items() if value}
    return {**said, "protocol": str(port.protocol), "port": port.port}


def _affinity(export: ServiceExport) -> Document:
    if export.session_affinity != "ClientIP":
        return {"sessionAffinity": "None", "sessionAffinityConfig": None}
    seconds = export.session_affinity_timeout or _TIMEOUT
    return {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}


def _spec(held: Document | None) -> Mapping[str, Any]:
    return {} if held is None else held.get("spec") or {}


# -- what conditions say -----------------------------------------------------------------------------------


def _tell(facts: Facts, found: Import | None, now: float) -> list[Write]:
    if facts.export is None:
        return []
    conditions = _settled(facts.export, _conditions(facts, found), now)
    return settle(
        exports_at(facts.version), facts.name, facts.export, {"status": {"conditions": conditions}}, "/status"
    )


def _wait(facts: Facts, awaited: Set[str], now: float) -> list[Write]:
    """A ServiceExport of which nothing was said yet."""
    if facts.export is None or any(each.get("type") in _OURS for each in _listed(facts.export, "conditions")):
        return []
    waits = f"not heard: {', '.join(sorted(awaited))}, where it is exported, too; disconnect one that is gone"
    told = {"conditions": _settled(facts.export, [_condition("Ready", False, "Pending", waits)], now)}
    return settle(exports_at(facts.version), facts.name, facts.export, {"status": told}, "/status")


def _settled(held: Document, told: Sequence[Document], now: float) -> list[Document]:
    """All conditions of what is `held`, those of ours as `told`."""
    before = _listed(held, "conditions")
    known = {each.get("type"): each for each in before}
    others = [each for each in before if each.get("type") not in _OURS]
    generation = held["metadata"].get("generation")
    return others + [_dated(each, known.get(each["type"]), generation, now) for each in told]


def _reached(facts: Facts, found: Import) -> Document:
    usable = _usable(facts.families or (), found)
    if not usable and (facts.families is None or _spec(facts.derived).get("ipFamilyPolicy") == "SingleStack"):
        return _condition("Ready", False, "Pending", "the Service behind it is being made, or made anew")
    if not usable:
        said = (
            f"all exporters have {', '.join(found.ip_families)}, and this cluster has {', '.join(facts.families or ())}"
        )
        return _condition("Ready", False, "IPFamilyNotSupported", said)
    return _condition("Ready", True, "Ready", "it can be called in this cluster")


def _conditions(facts: Facts, found: Import | None) -> list[Document]:
    if wrong := _invalid(facts):
        return [_condition("Valid", False, *wrong), _condition("Ready", False, "Pending", "the export is not valid")]
    without = f", without {'; '.join(facts.faults)}" if facts.faults else ""
    valid = _condition("Valid", True, "Valid", f"the Service is exported{without}")
    conflict = found.conflict if found else None
    disagree = (
        _condition("Conflict", True, conflict.reason, conflict.sentence)
        if conflict
        else _condition("Conflict", False, "NoConflicts", "all clusters agree")
    )
    return [valid, _ready(facts), disagree]


def _invalid(facts: Facts) -> tuple[str, str] | None:
    if not facts.in_mesh:
        return "NamespaceNotGlobal", "the namespace is not in the mesh (annotation clustermesh.cilium.io/global)"
    if facts.service is None:
        return "NoService", "there is no Service of this name"
    if facts.service.spec.type == "ExternalName":
        return "InvalidServiceType", "spec.type: ExternalName: an alias in DNS cannot be exported"
    if facts.own is None and facts.faults:
        return "InvalidExport", "; ".join(facts.faults)
    return None


def _ready(facts: Facts) -> Document:
    if facts.is_anothers:
        said = f"the ServiceImport of this name is another implementation's: it has no annotation {DERIVED} of ours"
        return _condition("Ready", False, "Failed", said)
    if facts.held is None or facts.derived is None:
        return _condition("Ready", False, "Pending", "the ServiceImport is being made")
    return _condition("Ready", True, "Ready", "the Service is told to all connected clusters, and imported here")


def _condition(kind: str, holds: bool, reason: str, message: str) -> Document:
    return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": message[:_SAID]}


def _dated(told: Document, before: Document | None, generation: int | None, now: float) -> Document:
    stays = before is not None and before.get("status") == told["status"]
    since = before.get("lastTransitionTime") if before and stays else None
    seen = {} if generation is None else {"observedGeneration": generation}
    return {**told, "lastTransitionTime": since or format_time(int(now)), **seen}
