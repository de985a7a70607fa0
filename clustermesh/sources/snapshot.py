"""What a cluster has to say, in the mesh's own vocabulary, and which of it changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct

from clustermesh import model
from clustermesh.address import Address
from clustermesh.model import Identity, LocalService, ServiceExport
from clustermesh.sources.pods import PodEndpoint

T = TypeVar("T")

Name = tuple[str, str]
"""Namespace and name of a service."""


class Snapshot(Struct):
    """What a cluster has: services by (namespace, name), nodes by name, endpoints by address, identities by number, and
    what it exports by the MCS API by (namespace, name).

    A PodEndpoint has labels, for which the API server allots a number; a model.Endpoint has one of `identities`, which
    Cilium's own operator has allotted.
    """

    services: dict[Name, LocalService] = {}
    nodes: dict[str, model.Node] = {}
    endpoints: dict[Address, PodEndpoint | model.Endpoint] = {}
    identities: dict[int, Identity] = {}
    exports: dict[Name, ServiceExport] = {}


class Change(Struct, frozen=True):
    """Which entries of a Snapshot came, went or changed; services with the time their newest cause was observed.

    A large one is told in portions: `more` of it follows, but for the last.
    """

    services: Mapping[Name, int] = {}
    nodes: frozenset[str] = frozenset()
    endpoints: frozenset[Address] = frozenset()
    identities: frozenset[int] = frozenset()
    exports: frozenset[Name] = frozenset()
    more: bool = False


class Backlog:
    """What was told and is not acted on yet; however long nobody acts, an entry is in it once.

    What was told first is acted on first: pods of one kind are told one after the other, and share what is made of
    their labels.
    """

    def __init__(self) -> None:
        self._services = OrderedDict[Name, int]()
        self._nodes: set[str] = set()
        self._endpoints = OrderedDict[Address, None]()
        self._identities: set[int] = set()
        self._exports: set[Name] = set()
        self._more = False

    def __bool__(self) -> bool:
        return bool(self._services or self._nodes or self._endpoints or self._identities or self._exports)

    def add(self, change: Change) -> None:
        self._services.update(change.services)
        self._nodes |= change.nodes
        self._endpoints.update(dict.fromkeys(change.endpoints))
        self._identities |= change.identities
        self._exports |= change.exports
        self._more = change.more

    def add_all(self, snapshot: Snapshot, now: int) -> None:
        """Everything there is is to be acted on anew; what came and went since it was told is so, too."""
        for name in snapshot.services:
            self._services.setdefault(name, now)
        self._nodes.update(snapshot.nodes)
        self._endpoints.update(dict.fromkeys(snapshot.endpoints))
        self._identities.update(snapshot.identities)
        self._exports.update(snapshot.exports)

    def take(self, most: int) -> Change:
        """The next portion: all nodes, and of everything else `most`."""
        services = [self._services.popitem(last=False) for _ in range(min(most, len(self._services)))]
        nodes, self._nodes = self._nodes, set()
        endpoints = frozenset(self._endpoints.popitem(last=False)[0] for _ in range(min(most, len(self._endpoints))))
        identities, exports = _some(self._identities, most), _some(self._exports, most)
        return Change(dict(services), frozenset(nodes), endpoints, identities, exports, bool(self) or self._more)


def _some(waiting: set[T], most: int) -> frozenset[T]:
    return frozenset(waiting.pop() for _ in range(min(most, len(waiting))))
