"""Which objects belong together, so that one changed object costs only what depends on it. Pure lookups, no rules.

A selector is filed under one of its labels: a pod is matched only against selectors filed under a label it has, and a
selector only against the pods that have its rarest label.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from clustermesh.address import Address
from clustermesh.sources.cilium import identity_namespace
from clustermesh.sources.cilium_objects import CiliumEndpoint, CiliumEndpointSlice, CiliumIdentity
from clustermesh.sources.details import Marks, has_marks
from clustermesh.sources.objects import EndpointSlice, Object, Pod, Ref, Service, ServiceExport
from clustermesh.sources.pods import pod_ips

SERVICE_NAME: Final = "kubernetes.io/service-name"

_NO_MARKS: Final[Marks] = {}

K = TypeVar("K", bound=Hashable)


class _Groups(Generic[K]):
    """Refs by key; the order in a group is that of arrival and means nothing."""

    def __init__(self) -> None:
        self._refs: dict[K, dict[Ref, None]] = {}

    def add(self, key: K, ref: Ref) -> None:
        self._refs.setdefault(key, {})[ref] = None

    def discard(self, key: K, ref: Ref) -> None:
        group = self._refs.get(key, {})
        group.pop(ref, None)
        if not group:
            self._refs.pop(key, None)

    def get(self, key: K) -> Mapping[Ref, None]:
        return self._refs.get(key, {})


class Index:
    """The objects added so far. `add` and `remove` take an object exactly as it was given before.

    Unless it `selects`, no selector is matched with any pod, and none costs anything.
    """

    def __init__(self, *, selects: bool = True) -> None:
        self._selects = selects
        self._slices: _Groups[tuple[str, str]] = _Groups()
        self._services: _Groups[str] = _Groups()
        self._selectors: _Groups[tuple[str, str, str]] = _Groups()
        self._endpoints: _Groups[str] = _Groups()
        self._identities: _Groups[str] = _Groups()
        self._exports: _Groups[str] = _Groups()
        self._pods_by_node: _Groups[str] = _Groups()
        self._pods_by_label: _Groups[tuple[str, str, str]] = _Groups()
        self._selector_of: dict[Ref, Mapping[str, str]] = {}
        self._labels_of: dict[Ref, Mapping[str, str]] = {}
        self._marks: dict[str, dict[Address, dict[Ref, Mapping[str, str]]]] = {}

    def add(self, ref: Ref, value: Object) -> None:
        if self._selects:
            if isinstance(value, Service) and value.spec.selector:
                self._selector_of[ref] = value.spec.selector
            elif isinstance(value, Pod):
                self._labels_of[ref] = value.metadata.labels
        if isinstance(value, Pod) and has_marks(value):
            for ip in pod_ips(value):
                of_namespace = self._marks.setdefault(ref.namespace, {})
                of_namespace.setdefault(ip, {})[ref] = value.metadata.annotations
        for group, key in self._places(ref, value):
            group.add(key, ref)

    def remove(self, ref: Ref, value: Object) -> None:
        self._selector_of.pop(ref, None)
        self._labels_of.pop(ref, None)
        if isinstance(value, Pod) and has_marks(value):
            for ip in pod_ips(value):
                self._unmark(ref, ip)
        for group, key in self._places(ref, value):
            group.discard(key, ref)

    def _unmark(self, ref: Ref, ip: Address) -> None:
        of_namespace = self._marks.get(ref.namespace, {})
        of_namespace.get(ip, {}).pop(ref, None)
        if not of_namespace.get(ip):
            of_namespace.pop(ip, None)
        if not of_namespace:
            self._marks.pop(ref.namespace, None)

    def _places(self, ref: Ref, value: Object) -> list[tuple[_Groups[Any], Hashable]]:
        places: list[tuple[_Groups[Any], Hashable]] = []
        match value:
            case EndpointSlice():
                places.append((self._slices, (ref.namespace, value.metadata.labels.get(SERVICE_NAME, ""))))
            case Service():
                places.append((self._services, ref.namespace))
                places += self._selector_places(ref, value)
            case Pod():
                places += [(self._endpoints, ref.namespace), (self._pods_by_node, value.spec.node_name)]
                places += self._label_places(ref, value)
            case ServiceExport():
                places.append((self._exports, ref.namespace))
            case CiliumEndpoint():
                places.append((self._endpoints, ref.namespace))
            case CiliumEndpointSlice():
                places.append((self._endpoints, value.namespace))
            case CiliumIdentity():
                places.append((self._identities, identity_namespace(value)))
        return places

    def _selector_places(self, ref: Ref, value: Service) -> list[tuple[_Groups[Any], Hashable]]:
        if not (self._selects and value.spec.selector):
            return []
        return [(self._selectors, (ref.namespace, *min(value.spec.selector.items())))]

    def _label_places(self, ref: Ref, value: Pod) -> list[tuple[_Groups[Any], Hashable]]:
        if not self._selects:
            return []
        return [(self._pods_by_label, (ref.namespace, *label)) for label in value.metadata.labels.items()]

    def slices_of(self, namespace: str, service: str) -> list[Ref]:
        """The EndpointSlices of a service, by name."""
        return sorted(self._slices.get((namespace, service)))

    def services_in(self, namespace: str) -> Iterable[Ref]:
        return self._services.get(namespace)

    def endpoints_in(self, namespace: str) -> Iterable[Ref]:
        """Pods, and what Cilium has for them."""
        return self._endpoints.get(namespace)

    def identities_in(self, namespace: str) -> Iterable[Ref]:
        return self._identities.get(namespace)

    def exports_in(self, namespace: str) -> Iterable[Ref]:
        return self._exports.get(namespace)

    def marks_in(self, namespace: str) -> Marks:
        """The annotations of the Pods that say something of themselves as backends."""
        return self._marks.get(namespace, _NO_MARKS)

    def pods_on(self, node: str) -> Iterable[Ref]:
        return self._pods_by_node.get(node)

    def pods_selected(self, namespace: str, selector: Mapping[str, str]) -> list[Ref]:
        """The pods that have every label of a selector, by name; none for an empty selector."""
        if not selector:
            return []
        rarest = min((self._pods_by_label.get((namespace, *label)) for label in selector.items()), key=len)
        return sorted(ref for ref in rarest if selector.items() <= self._labels_of[ref].items())

    def services_selecting(self, namespace: str, labels: Mapping[str, str]) -> Iterator[Ref]:
        """The services whose selector holds for a pod with `labels`."""
        if not self._selects:
            return
        for label in labels.items():
            for ref in self._selectors.get((namespace, *label)):
                if self._selector_of[ref].items() <= labels.items():
                    yield ref
