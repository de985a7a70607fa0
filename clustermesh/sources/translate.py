"""Objects -> Snapshot: what this cluster has to say, in the mesh's own vocabulary. Pure.

`translate` does it from nothing. `Translator` keeps the last answer and redoes only what a change touches; a test holds
the two equal after any history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from msgspec import Struct

from clustermesh import model
from clustermesh.address import Address, text
from clustermesh.model import Cluster, LocalService
from clustermesh.sources.faults import Fault, Faults
from clustermesh.sources.index import SERVICE_NAME, Index
from clustermesh.sources.nodes import translate_nodes
from clustermesh.sources.objects import EndpointSlice, Namespace, Node, Object, Pod, Ref, Service
from clustermesh.sources.pods import PodEndpoint, translate_pod
from clustermesh.sources.services import ServiceParts, translate_service

Name = tuple[str, str]
"""Namespace and name of a service."""


class Snapshot(Struct):
    """What a cluster has: services by (namespace, name), nodes by name, pods by their addresses."""

    services: dict[Name, LocalService] = {}
    nodes: dict[str, model.Node] = {}
    endpoints: dict[Address, PodEndpoint] = {}


class Change(Struct, frozen=True):
    """Which entries of a Snapshot came, went or changed; services with the time their newest cause was observed."""

    services: Mapping[Name, int] = {}
    nodes: frozenset[str] = frozenset()
    endpoints: frozenset[Address] = frozenset()

    def __or__(self, later: Change) -> Change:
        """Both, as one."""
        services = {**self.services, **later.services}
        return Change(services, self.nodes | later.nodes, self.endpoints | later.endpoints)


class _Dirty:
    """What has to be translated again."""

    def __init__(self) -> None:
        self.services: dict[Ref, int] = {}
        self.pods: set[Ref] = set()
        self.nodes = False

    def add_services(self, refs: Iterable[Ref], observed: int) -> None:
        for ref in refs:
            self.services[ref] = max(observed, self.services.get(ref, 0))


def translate(cluster: Cluster, objects: Mapping[Ref, Object]) -> tuple[Snapshot, list[Fault]]:
    """The whole of `objects` at once."""
    translator = Translator(cluster, objects)
    translator.apply(dict.fromkeys(objects, 0))
    return translator.snapshot, list(translator.faults())


class Translator:
    """Follows a table of objects: `apply` what changed in it, then read `snapshot`."""

    def __init__(self, cluster: Cluster, objects: Mapping[Ref, Object]) -> None:
        self.snapshot = Snapshot()
        self._cluster, self._objects = cluster, objects
        self._seen: dict[Ref, Object] = {}
        self._index = Index()
        self._nodes: dict[Ref, Node] = {}
        self._faults: dict[Ref, Faults] = {}
        self._node_faults = Faults()
        self._claims: dict[Address, dict[Ref, PodEndpoint]] = {}
        self._contested: set[Address] = set()
        self._addresses: dict[Ref, tuple[Address, ...]] = {}

    def apply(self, changed: Mapping[Ref, int]) -> Change:
        """Take in that the objects named by `changed` are now as the table says, or gone from it.

        `changed` holds when each change was observed, Unix time in nanoseconds.
        """
        dirty = _Dirty()
        for ref in sorted(changed):
            self._touch(ref, self._seen.get(ref), changed[ref], dirty)
            self._take(ref)
            self._touch(ref, self._seen.get(ref), changed[ref], dirty)
        nodes = self._redo_nodes(dirty) if dirty.nodes else frozenset()
        services = {(r.namespace, r.name): seen for r, seen in dirty.services.items() if self._redo_service(r)}
        endpoints = frozenset(ip for ref in sorted(dirty.pods) for ip in self._redo_pod(ref))
        return Change(services, nodes, endpoints)

    def faults(self) -> Iterator[Fault]:
        """What is left out of the snapshot, and why, by the object it is about."""
        for ref in sorted(self._faults):
            yield from self._faults[ref]
        yield from self._node_faults
        for ip in sorted(self._contested):
            first, *others = sorted(self._claims[ip])
            yield from (
                Fault(ref, f"status.podIP: {text(ip)!r}: must not be the address of {first} too") for ref in others
            )

    def _take(self, ref: Ref) -> None:
        old, new = self._seen.pop(ref, None), self._objects.get(ref)
        if old is not None:
            self._index.remove(ref, old)
            self._nodes.pop(ref, None)
        if new is not None:
            self._seen[ref] = new
            self._index.add(ref, new)
            if isinstance(new, Node):
                self._nodes[ref] = new

    def _touch(self, ref: Ref, value: Object | None, observed: int, dirty: _Dirty) -> None:
        """Mark whatever depends on `value` as it stands in the index now."""
        if isinstance(value, Service):
            dirty.add_services([ref], observed)
        elif isinstance(value, EndpointSlice):
            service = Ref("Service", ref.namespace, value.metadata.labels.get(SERVICE_NAME, ""))
            dirty.add_services([service], observed)
        elif isinstance(value, Pod):
            dirty.pods.add(ref)
            dirty.add_services(self._index.services_selecting(ref.namespace, value.metadata.labels), observed)
        elif isinstance(value, Node):
            dirty.nodes = True
        elif isinstance(value, Namespace):
            dirty.add_services(self._index.services_in(ref.name), observed)
            dirty.pods.update(self._index.pods_in(ref.name))

    def _redo_nodes(self, dirty: _Dirty) -> frozenset[str]:
        before, self._node_faults = self.snapshot.nodes, Faults()
        after = translate_nodes(self._cluster, self._nodes, self._node_faults)
        self.snapshot.nodes = after
        changed = frozenset(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        for name in changed:
            dirty.pods.update(self._index.pods_on(name))
        return changed

    def _redo_service(self, ref: Ref) -> bool:
        name, faults = (ref.namespace, ref.name), Faults()
        service, after = self._seen.get(ref), None
        if isinstance(service, Service):
            after = translate_service(self._cluster, self._parts(ref, service), faults)
        before = self.snapshot.services.pop(name, None)
        if after is not None:
            self.snapshot.services[name] = after
        self._keep_faults(ref, faults)
        return before != after

    def _parts(self, ref: Ref, service: Service) -> ServiceParts:
        slices = self._index.slices_of(ref.namespace, ref.name)
        pods = [] if slices else self._index.pods_selected(ref.namespace, service.spec.selector)
        return ServiceParts(
            ref=ref,
            service=service,
            slices={r: cast(EndpointSlice, self._seen[r]) for r in slices},
            pods={r: cast(Pod, self._seen[r]) for r in pods},
            namespace=self._namespace(ref.namespace),
        )

    def _redo_pod(self, ref: Ref) -> Iterator[Address]:
        """Translate a pod again; the addresses that say something else now."""
        faults, pod, found = Faults(), self._seen.get(ref), {}
        if isinstance(pod, Pod):
            node = self.snapshot.nodes.get(pod.spec.node_name)
            host_ip = node.underlay if node else None
            endpoints = translate_pod(ref, pod, self._namespace(ref.namespace), host_ip, faults)
            found = {endpoint.ip: endpoint for endpoint in endpoints}
        before = self._addresses.pop(ref, ())
        if found:
            self._addresses[ref] = tuple(found)
        for ip in dict.fromkeys([*before, *found]):
            if self._claim(ip, ref, found.get(ip)):
                yield ip
        self._keep_faults(ref, faults)

    def _claim(self, ip: Address, ref: Ref, endpoint: PodEndpoint | None) -> bool:
        """Two pods with one address, as when an address is used again: the first by name has it, the next one after."""
        claims = self._claims.setdefault(ip, {})
        claims.pop(ref, None)
        if endpoint is not None:
            claims[ref] = endpoint
        (self._contested.add if len(claims) > 1 else self._contested.discard)(ip)
        before, after = self.snapshot.endpoints.pop(ip, None), claims[min(claims)] if claims else None
        if after is None:
            del self._claims[ip]
        else:
            self.snapshot.endpoints[ip] = after
        return before != after

    def _namespace(self, name: str) -> Namespace | None:
        return cast(Namespace | None, self._seen.get(Ref("Namespace", "", name)))

    def _keep_faults(self, ref: Ref, faults: Faults) -> None:
        self._faults.pop(ref, None)
        if faults:
            self._faults[ref] = faults
