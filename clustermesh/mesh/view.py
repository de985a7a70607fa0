"""One cluster as last heard of: what its tables hold, whether it is used or not."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from msgspec import Struct, field

from clustermesh.address import Address, Prefix
from clustermesh.model import Endpoint, Identity, LocalService, Node, Service
from clustermesh.wire import RESOURCES
from clustermesh.wire.local import from_shared

ServiceName = tuple[str, str]

KINDS = tuple(each.name for each in RESOURCES.values() if (each.of_peers or each.of_own) and not each.optional)


class View(Struct, kw_only=True):
    """Tables are keyed as etcd's keys end: node name, (namespace, name), id, address."""

    nodes: dict[str, Node] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    endpoints: dict[Address | Prefix, Endpoint] = field(default_factory=dict)
    services: dict[ServiceName, Service] = field(default_factory=dict)
    local_services: dict[ServiceName, LocalService] = field(default_factory=dict)

    def table(self, kind: str) -> dict[Any, Any]:
        """The table named `kind`: nodes, identities, endpoints, services or local_services."""
        table: dict[Any, Any] = getattr(self, kind)
        return table

    def own_names(self) -> Set[ServiceName]:
        """The services of the own cluster: those told to all, and those told to its agents alone."""
        return self.services.keys() | self.local_services.keys()

    def own_service(self, name: ServiceName) -> LocalService | None:
        """One of them: as agents alone are told, else as all are."""
        return self.local_services.get(name) or from_shared(self.services.get(name))
