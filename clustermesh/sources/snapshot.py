"""What a cluster has to say, in the mesh's own vocabulary, and which of it changed."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from clustermesh import model
from clustermesh.address import Address
from clustermesh.model import Identity, LocalService
from clustermesh.sources.pods import PodEndpoint

Name = tuple[str, str]
"""Namespace and name of a service."""


class Snapshot(Struct):
    """What a cluster has: services by (namespace, name), nodes by name, endpoints by address, identities by number.

    A PodEndpoint has labels, for which the API server allots a number; a model.Endpoint has one of `identities`, which
    Cilium's own operator has allotted.
    """

    services: dict[Name, LocalService] = {}
    nodes: dict[str, model.Node] = {}
    endpoints: dict[Address, PodEndpoint | model.Endpoint] = {}
    identities: dict[int, Identity] = {}


class Change(Struct, frozen=True):
    """Which entries of a Snapshot came, went or changed; services with the time their newest cause was observed."""

    services: Mapping[Name, int] = {}
    nodes: frozenset[str] = frozenset()
    endpoints: frozenset[Address] = frozenset()
    identities: frozenset[int] = frozenset()

    def __or__(self, later: Change) -> Change:
        """Both, as one."""
        return Change(
            {**self.services, **later.services},
            self.nodes | later.nodes,
            self.endpoints | later.endpoints,
            self.identities | later.identities,
        )
