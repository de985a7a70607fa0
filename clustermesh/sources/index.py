"""Which objects belong together, so that one changed object costs only what depends on it. Pure lookups, no rules.

A selector is filed under one of its labels: a pod is matched only against selectors filed under a label it has, and a
selector only against the pods that have its rarest label.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from clustermesh.sources.objects import EndpointSlice, Object, Pod, Ref, Service

SERVICE_NAME: Final = "kubernetes.io/service-name"

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
    """The objects added so far. `add` and `remove` take an object exactly as it was given before."""

    def __init__(self) -> None:
        self._slices: _Groups[tuple[str, str]] = _Groups()
        self._services: _Groups[str] = _Groups()
        self._selectors: _Groups[tuple[str, str, str]] = _Groups()
        self._pods_by_namespace: _Groups[str] = _Groups()
        self._pods_by_node: _Groups[str] = _Groups()
        self._pods_by_label: _Groups[tuple[str, str, str]] = _Groups()
        self._selector_of: dict[Ref, Mapping[str, str]] = {}
        self._labels_of: dict[Ref, Mapping[str, str]] = {}

    def add(self, ref: Ref, value: Object) -> None:
        if isinstance(value, Service) and value.spec.selector:
            self._selector_of[ref] = value.spec.selector
        if isinstance(value, Pod):
            self._labels_of[ref] = value.metadata.labels
        for group, key in self._places(ref, value):
            group.add(key, ref)

    def remove(self, ref: Ref, value: Object) -> None:
        self._selector_of.pop(ref, None)
        self._labels_of.pop(ref, None)
        for group, key in self._places(ref, value):
            group.discard(key, ref)

    def _places(self, ref: Ref, value: Object) -> Iterator[tuple[_Groups[Hashable], Hashable]]:
        places: list[tuple[object, Hashable]] = []
        if isinstance(value, EndpointSlice):
            places.append((self._slices, (ref.namespace, value.metadata.labels.get(SERVICE_NAME, ""))))
        elif isinstance(value, Service):
            places.append((self._services, ref.namespace))
            if value.spec.selector:
                places.append((self._selectors, (ref.namespace, *min(value.spec.selector.items()))))
        elif isinstance(value, Pod):
            places += [(self._pods_by_namespace, ref.namespace), (self._pods_by_node, value.spec.node_name)]
            places += [(self._pods_by_label, (ref.namespace, *label)) for label in value.metadata.labels.items()]
        yield from places  # type: ignore[misc]  # each group with a key of its own type

    def slices_of(self, namespace: str, service: str) -> list[Ref]:
        """The EndpointSlices of a service, by name."""
        return sorted(self._slices.get((namespace, service)))

    def services_in(self, namespace: str) -> Iterable[Ref]:
        return self._services.get(namespace)

    def pods_in(self, namespace: str) -> Iterable[Ref]:
        return self._pods_by_namespace.get(namespace)

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
        for label in labels.items():
            for ref in self._selectors.get((namespace, *label)):
                if self._selector_of[ref].items() <= labels.items():
                    yield ref
