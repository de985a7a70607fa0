"""Objects -> Snapshot: what this cluster has to say, in the mesh's own vocabulary. Pure.

`translate` does it from nothing. `Translator` keeps the last answer and redoes only what a change touches; a test holds
the two equal after any history.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final, Protocol, cast

from clustermesh import model
from clustermesh.address import Address, text
from clustermesh.errors import Invalid
from clustermesh.model import USUAL_NODE_PORTS, Cluster
from clustermesh.sources.cilium import identity_namespace, translate_endpoint, translate_identity, translate_slice
from clustermesh.sources.cilium_objects import CiliumEndpoint, CiliumEndpointSlice, CiliumIdentity, CiliumNode
from clustermesh.sources.claims import Claim, Claims
from clustermesh.sources.details import has_marks, read_mark
from clustermesh.sources.exports import translate_export
from clustermesh.sources.faults import Fault, Faults
from clustermesh.sources.host_ports import KIND as HOST_PORTS
from clustermesh.sources.host_ports import has_host_ports, host_ports_ref, pod_ref, translate_host_ports
from clustermesh.sources.index import SERVICE_NAME, Index
from clustermesh.sources.node_table import NodeTable
from clustermesh.sources.objects import EndpointSlice, Namespace, Node, Object, Pod, Ref, Service, ServiceExport
from clustermesh.sources.pods import pod_ips, translate_pod
from clustermesh.sources.rules import ALL_PORTS
from clustermesh.sources.services import ServiceParts, translate_service
from clustermesh.sources.snapshot import Change, Snapshot
from clustermesh.wire.keys import check_name

_MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
_OF_REMOTE_BACKENDS: Final = "endpointslice-mesh-controller.cilium.io"
_PROXY: Final = "service.kubernetes.io/service-proxy-name"
_DIGITS: Final = 14  # of a time to the second
ZONE: Final = "topology.kubernetes.io/zone"
NAMESPACE_GLOBAL: Final = "clustermesh.cilium.io/global"
EXPORT: Final = "ServiceExport"


class Objects(Protocol):
    """The objects there are; a mapping is one."""

    def get(self, ref: Ref, /) -> Object | None: ...


class _Dirty:
    """What has to be translated again."""

    def __init__(self) -> None:
        self.services: dict[Ref, int] = {}
        self.endpoints: dict[Ref, None] = {}  # in their order, in which pods of one kind are neighbours
        self.identities: set[Ref] = set()
        self.exports: set[Ref] = set()

    def add_services(self, refs: Iterable[Ref], observed: int) -> None:
        for ref in refs:
            self.services[ref] = max(observed, self.services.get(ref, 0))


def translate(cluster: Cluster, objects: Mapping[Ref, Object], *, in_mesh: bool = True) -> tuple[Snapshot, list[Fault]]:
    """The whole of `objects` at once."""
    translator = Translator(cluster, objects, in_mesh=in_mesh)
    translator.apply(dict.fromkeys(objects, 0))
    return translator.snapshot, list(translator.faults())


class Translator:
    """Follows a table of objects: `apply` what changed in it, then read `snapshot`.

    A service without EndpointSlices has the pods that its selector holds for as backends, where `selects`: in a
    folder. Where a controller makes slices, what has none has no backends. A namespace that does not say whether it is
    in the mesh is where `in_mesh` says so; of one that is not, no service is global and no pod is told of. A node port
    is one of Kubernetes' usual range in a folder; elsewhere an API server has judged it by its own.
    """

    def __init__(self, cluster: Cluster, objects: Objects, *, selects: bool = True, in_mesh: bool = True) -> None:
        self.snapshot = Snapshot(services={}, nodes={}, endpoints={}, identities={}, exports={})
        self._cluster, self._objects, self._in_mesh = cluster, objects, in_mesh
        self._seen: dict[Ref, Object] = {}
        self._index, self._node_ports = Index(selects=selects), USUAL_NODE_PORTS if selects else ALL_PORTS
        self._nodes = NodeTable(cluster)
        self._claims = Claims(self.snapshot.endpoints, self._rank)
        self._faults: dict[Ref, Faults] = {}
        self._unnamed: dict[Ref, Fault] = {}

    def apply(self, changed: Mapping[Ref, int]) -> Change:
        """Take in that the objects named by `changed` are now as the table says, or gone from it.

        `changed` holds when each change was observed, Unix time in nanoseconds.
        """
        (whole,) = self.portions(changed, sys.maxsize)
        return whole

    def portions(self, changed: Mapping[Ref, int], most: int) -> Iterator[Change]:
        """As `apply`, with `most` of each kind at a time, for whoever has other things to do in between."""
        dirty = _Dirty()
        for number, (ref, observed) in enumerate(changed.items(), start=1):
            self._take_in(ref, observed, dirty)
            if not number % most:
                yield Change(more=True)
        nodes = self._redo_nodes(dirty, max(changed.values(), default=0))
        services, identities, exports = list(dirty.services), list(dirty.identities), list(dirty.exports)
        endpoints = sorted(dirty.endpoints, key=self._seen.__contains__)  # those that are gone first
        number = max(1, *map(len, (services, identities, endpoints, exports)))
        for begin in range(0, number, most):
            some = slice(begin, begin + most)
            yield Change(
                {(r.namespace, r.name): dirty.services[r] for r in services[some] if self._redo_service(r)},
                frozenset() if begin else nodes,
                frozenset(ip for ref in endpoints[some] for ip in self._redo_endpoints(ref)),
                frozenset(int(ref.name) for ref in identities[some] if self._redo_identity(ref)),
                frozenset((r.namespace, r.name) for r in exports[some] if self._redo_export(r)),
                begin + most < number,
            )

    def _take_in(self, ref: Ref, observed: int, dirty: _Dirty) -> None:
        self._unnamed.pop(ref, None)
        before, after = self._seen.get(ref), self._objects.get(ref)
        if before != after:
            after = self._heeded(ref, after)
            self._touch(ref, before, after, observed, dirty)
            self._take(ref, before, after)
            self._touch(ref, after, before, observed, dirty)

    def _heeded(self, ref: Ref, value: Object | None) -> Object | None:
        """`value`, unless it is another's to act on, or has a name that none of ours could have."""
        if value is None or _is_anothers(value):
            return None
        try:
            for name in filter(None, (ref.namespace, ref.name)):
                check_name(name, "metadata.name")
        except Invalid as e:
            self._unnamed[ref] = Fault(ref, str(e))
            return None
        return value

    def faults(self) -> Iterator[Fault]:
        """What is left out of the snapshot, and why, by the object it is about."""
        for ref in sorted(self._faults):
            yield from self._faults[ref]
        yield from self._unnamed.values()
        yield from self._nodes.faults()
        for ip, owner, others in self._claims.contested():
            sentence = f"status.podIP: {text(ip)!r}: must not be the address of {owner} too"
            yield from (Fault(ref, sentence) for ref in others if not self._seen[ref].metadata.deletion_timestamp)

    def _take(self, ref: Ref, before: Object | None, after: Object | None) -> None:
        if before is not None:
            self._index.remove(ref, before)
            del self._seen[ref]
        if after is not None:
            self._seen[ref] = after
            self._index.add(ref, after)
        if ref.kind in ("Node", "CiliumNode"):
            self._nodes.put(ref, cast(Node | CiliumNode | None, after))

    def _touch(self, ref: Ref, value: Object | None, other: Object | None, observed: int, dirty: _Dirty) -> None:
        """Mark whatever depends on `value` as it stands in the index now; `other` is what it is on the other side of
        the change."""
        if value is None:
            return
        if isinstance(value, Service):
            dirty.add_services([ref], observed)
            if (export := ref._replace(kind=EXPORT)) in self._seen:
                dirty.exports.add(export)
        elif isinstance(value, ServiceExport):
            dirty.exports.add(ref)
        elif isinstance(value, EndpointSlice):
            service = Ref("Service", ref.namespace, value.metadata.labels.get(SERVICE_NAME, ""))
            dirty.add_services([service], observed)
        elif isinstance(value, Pod):
            dirty.endpoints[ref] = None
            dirty.add_services(self._index.services_selecting(ref.namespace, value.metadata.labels), observed)
            if has_host_ports(value):
                dirty.add_services([host_ports_ref(ref)], observed)
            if has_marks(value):
                dirty.add_services(self._served_by(ref.namespace, set(pod_ips(value))), observed)
        elif isinstance(value, (CiliumEndpoint, CiliumEndpointSlice)):
            dirty.endpoints[ref] = None
        elif isinstance(value, CiliumIdentity):
            dirty.identities.add(ref)
        elif isinstance(value, Namespace):
            self._touch_namespace(ref, value, cast(Namespace | None, other), observed, dirty)

    def _touch_namespace(
        self, ref: Ref, value: Namespace, other: Namespace | None, observed: int, dirty: _Dirty
    ) -> None:
        """Whether it takes part concerns all in it, its labels the identities of its pods."""
        switched = self.takes_part(value) != self.takes_part(other)
        if switched:
            dirty.add_services(self._index.services_in(ref.name), observed)
            dirty.identities.update(self._index.identities_in(ref.name))
            dirty.exports.update(self._index.exports_in(ref.name))
        if switched or value.metadata.labels != (other.metadata.labels if other else {}):
            dirty.endpoints.update(dict.fromkeys(self._index.endpoints_in(ref.name)))

    def _served_by(self, namespace: str, ips: Set[Address]) -> Iterator[Ref]:
        """The services that have any of these for a backend."""
        for ref in self._index.services_in(namespace):
            service = self.snapshot.services.get((ref.namespace, ref.name))
            if service is not None and not ips.isdisjoint(service.service.backends):
                yield ref

    def _redo_nodes(self, dirty: _Dirty, observed: int) -> frozenset[str]:
        nodes, changed = self.snapshot.nodes, set()
        for name, after in self._nodes.flush().items():
            before = nodes.pop(name, None)
            if after is not None:
                nodes[name] = after
            if before == after:
                continue
            changed.add(name)
            if (before.underlay if before else None) != (after.underlay if after else None):
                dirty.endpoints.update(dict.fromkeys(self._index.pods_on(name)))
            if _zone(before) != _zone(after):
                for ref in self._index.pods_on(name):
                    labels = self._seen[ref].metadata.labels
                    dirty.add_services(self._index.services_selecting(ref.namespace, labels), observed)
        return frozenset(changed)

    def _redo_service(self, ref: Ref) -> bool:
        name, faults = (ref.namespace, ref.name), Faults()
        pod = pod_ref(ref) if ref.kind == HOST_PORTS else ref
        found, after = self._seen.get(pod), None
        if isinstance(found, Service):
            after = translate_service(self._cluster, self._parts(ref, found), faults)
        elif isinstance(found, Pod):
            after = translate_host_ports(self._cluster, pod, found, faults)
        before = self.snapshot.services.pop(name, None)
        if after is not None:
            self.snapshot.services[name] = after
        self._keep_faults(ref, faults)
        return before != after

    def _parts(self, ref: Ref, service: Service) -> ServiceParts:
        slices = self._index.slices_of(ref.namespace, ref.name)
        pods = [] if slices else self._index.pods_selected(ref.namespace, service.spec.selector)
        chosen = {r: cast(Pod, self._seen[r]) for r in pods}
        nodes = {pod.spec.node_name for pod in chosen.values()} if service.spec.traffic_distribution else ()
        return ServiceParts(
            ref=ref,
            service=service,
            slices={r: cast(EndpointSlice, self._seen[r]) for r in slices},
            pods=chosen,
            in_mesh=self.takes_part(self._namespace(ref.namespace)),
            marks=self._index.marks_in(ref.namespace),
            zones={name: _zone(self.snapshot.nodes.get(name)) for name in nodes},
            node_ports=self._node_ports,
        )

    def _redo_identity(self, ref: Ref) -> bool:
        faults, found, after = Faults(), self._seen.get(ref), None
        if isinstance(found, CiliumIdentity) and self.takes_part(self._namespace(identity_namespace(found))):
            after = translate_identity(self._cluster, ref, found, faults)
        self._keep_faults(ref, faults)
        if not (ref.name.isascii() and ref.name.isdigit() and str(int(ref.name)) == ref.name):
            return False  # no number at all, or another object's, spelled in another way
        before = self.snapshot.identities.pop(int(ref.name), None)
        if after is not None:
            self.snapshot.identities[after.id] = after
        return before != after

    def _redo_export(self, ref: Ref) -> bool:
        name, faults, after = (ref.namespace, ref.name), Faults(), None
        export, service = self._seen.get(ref), self._seen.get(ref._replace(kind="Service"))
        takes_part = self.takes_part(self._namespace(ref.namespace))
        if isinstance(export, ServiceExport) and isinstance(service, Service) and takes_part:
            after = translate_export(self._cluster, ref, export, service, faults)
        before = self.snapshot.exports.pop(name, None)
        if after is not None:
            self.snapshot.exports[name] = after
        self._keep_faults(ref, faults)
        return before != after

    def _redo_endpoints(self, ref: Ref) -> Iterator[Address]:
        """Translate a pod again, or what stands for some; the addresses that say something else now."""
        faults, value = Faults(), self._seen.get(ref)
        found = self._claimed(ref, value, faults)
        if isinstance(value, Pod) and has_marks(value):
            read_mark(value.metadata.annotations, ref, faults)
        yield from self._claims.put(ref, found)
        self._keep_faults(ref, faults)

    def _claimed(self, ref: Ref, value: Object | None, faults: Faults) -> Mapping[Address, Claim]:
        namespace = self._namespace(value.namespace if isinstance(value, CiliumEndpointSlice) else ref.namespace)
        if not self.takes_part(namespace):
            return {}
        if isinstance(value, Pod):
            node = self.snapshot.nodes.get(value.spec.node_name)
            endpoints = translate_pod(ref, value, namespace, node.underlay if node else None, faults)
            return {endpoint.ip: endpoint for endpoint in endpoints}
        if isinstance(value, CiliumEndpoint):
            return translate_endpoint(self._cluster, ref, value, faults)
        if isinstance(value, CiliumEndpointSlice):
            return translate_slice(self._cluster, ref, value, faults)
        return {}

    def _rank(self, ref: Ref) -> Any:
        """Cilium knows better than a Pod's status; who is on its way out gives way; an address that is used again is
        the newer one's. Of two without a time, as in a folder, the first by name has it. What goes in the same
        change is not in question."""
        if (value := self._seen.get(ref)) is None:
            return True, False, False, 0, ref
        created = "".join(filter(str.isdecimal, value.metadata.creation_timestamp))[:_DIGITS]
        return False, isinstance(value, Pod), bool(value.metadata.deletion_timestamp), -int(created or 0), ref

    def takes_part(self, namespace: Namespace | None) -> bool:
        """Whether it is in the mesh; of one that is not known nobody has said so."""
        said = None if namespace is None else namespace.metadata.annotations.get(NAMESPACE_GLOBAL)
        return self._in_mesh if said is None else said.lower() == "true"

    def _namespace(self, name: str) -> Namespace | None:
        return cast(Namespace | None, self._seen.get(Ref("Namespace", "", name)))

    def _keep_faults(self, ref: Ref, faults: Faults) -> None:
        self._faults.pop(ref, None)
        if faults:
            self._faults[ref] = faults


def _zone(node: model.Node | None) -> str:
    return (node.labels or {}).get(ZONE, "") if node is not None else ""


def _is_anothers(value: Object) -> bool:
    """Slices that Cilium makes of other clusters' backends, and Services that another proxy serves."""
    if isinstance(value, EndpointSlice):
        return value.metadata.labels.get(_MANAGED_BY) == _OF_REMOTE_BACKENDS
    return isinstance(value, Service) and _PROXY in value.metadata.labels
