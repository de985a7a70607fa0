"""What this cluster knows of itself and of every other: a fold over events, in any order and any number of times. Pure.

A writer (the reader of one cluster) puts objects in and takes them out; the planner asks `take_dirty` what to look at
again. Nodes are checked against `Claims`: one whose pod CIDRs or address belong to another cluster is refused, and so
are endpoints and backends at such addresses when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from clustermesh.errors import Invalid
from clustermesh.mesh.claims import Claims
from clustermesh.model import Endpoint, Identity, LocalService, Node, Service


class View(Struct, kw_only=True):
    """One cluster as last heard of. Tables are keyed as their etcd keys end: node name, (namespace, name), id, address.

    `refused` maps what was refused ("nodes/w1") to the sentence why; it is shown in status and counted.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    services: dict[tuple[str, str], Service] = field(default_factory=dict)
    local_services: dict[tuple[str, str], LocalService] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def table(self, kind: str) -> dict[Any, Any]:
        """The table named `kind`: nodes, identities, endpoints, services or local_services."""
        table: dict[Any, Any] = getattr(self, kind)
        return table


KINDS = ("nodes", "identities", "endpoints", "services", "local_services")


class Dirty(Struct):
    """What to plan again since the last time it was asked."""

    nodes: bool = False
    endpoints: set[str] = field(default_factory=set)
    services: set[tuple[str, str]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return self.nodes or bool(self.endpoints) or bool(self.services)


class MeshState:
    """Every cluster's view, the own one included under its own name."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.views: dict[str, View] = {own: View()}
        self._order = [own]  # the own cluster first: it wins every tie
        self._claims = Claims()
        self._claims_changed = False
        self._admitted: dict[tuple[str, str], tuple[str, ...]] = {}  # (cluster, node) -> the CIDRs it claimed
        self._dirty = Dirty()

    def put(self, cluster: str, kind: str, name: Any, value: Any) -> None:
        """Take in that `cluster` has `value` at `name`. What it replaces is forgotten; equal values change nothing."""
        table = self._view(cluster).table(kind)
        if table.get(name) == value:
            return
        table[name] = value
        self._touch(cluster, kind, name)

    def remove(self, cluster: str, kind: str, name: Any) -> None:
        """Take in that `cluster` has nothing at `name`. Absent is fine."""
        view = self.views.get(cluster)
        if view is not None and view.table(kind).pop(name, None) is not None:
            self._touch(cluster, kind, name)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        """Forget everything of `cluster` (disconnected or evicted), or only what is of `kinds`."""
        view = self.views.get(cluster)
        if view is None:
            return
        for kind in kinds:
            for name in list(view.table(kind)):
                self.remove(cluster, kind, name)
        if kinds != KINDS:
            return
        view.refused.clear()
        if cluster != self.own:
            del self.views[cluster]
            self._order.remove(cluster)

    def refuse(self, cluster: str, what: str, why: str) -> None:
        self._view(cluster).refused[what] = why

    def accept(self, cluster: str, what: str) -> None:
        if view := self.views.get(cluster):
            view.refused.pop(what, None)

    def take_dirty(self) -> Dirty:
        """What changed since the last call."""
        if self._claims_changed:
            self._settle_claims()
        dirty, self._dirty = self._dirty, Dirty()
        return dirty

    def admitted_nodes(self) -> Iterator[Node]:
        """Every node of every cluster that claims nothing of another cluster's, own cluster first."""
        for cluster in self._order:
            for name, node in sorted(self.views[cluster].nodes.items()):
                if (cluster, name) in self._admitted:
                    yield node

    def speaks_for(self, cluster: str, address: str) -> bool:
        """Whether `cluster` may say something about the IPv4 `address`: nobody else claims it."""
        return self._claims.owner(address) in (None, cluster)

    def endpoint(self, address: str) -> Endpoint | None:
        """Who is at `address`, from the one cluster that may say so; the rest is refused and shown."""
        found: Endpoint | None = None
        for cluster in self._order:
            endpoint = self.views[cluster].endpoints.get(address)
            what = f"endpoints/{address}"
            if endpoint is None:
                self.accept(cluster, what)
            elif found is not None or not self.speaks_for(cluster, address):
                self.refuse(cluster, what, f"{address} belongs to another cluster")
            else:
                self.accept(cluster, what)
                found = endpoint
        return found

    def remote_services(self, name: tuple[str, str]) -> list[Service]:
        """The service `name` as every other cluster has it, without backends that are not theirs to name."""
        return [
            self._trimmed(cluster, view.services[name])
            for cluster, view in self.views.items()
            if cluster != self.own and name in view.services
        ]

    def _trimmed(self, cluster: str, service: Service) -> Service:
        what = f"services/{service.namespace}/{service.name}"
        kept = {ip: ports for ip, ports in service.backends.items() if ":" in ip or self.speaks_for(cluster, ip)}
        if len(kept) == len(service.backends):
            self.accept(cluster, what)
            return service
        taken = sorted(set(service.backends) - set(kept))
        self.refuse(cluster, what, f"backends {', '.join(taken[:5])}: address of another cluster")
        return replace(service, backends=kept)

    def _view(self, cluster: str) -> View:
        if cluster not in self.views:
            self.views[cluster] = View()
            self._order = [self.own, *sorted(name for name in self.views if name != self.own)]
        return self.views[cluster]

    def _touch(self, cluster: str, kind: str, name: Any) -> None:
        if kind == "nodes":
            self._dirty.nodes = True
            self._reclaim(cluster, name)
        elif kind == "endpoints":
            self._dirty.endpoints.add(name)
        elif kind in ("services", "local_services"):
            self._dirty.services.add(name)

    def _reclaim(self, cluster: str, name: str) -> None:
        """Bring the claims of one node up to date."""
        node = self.views[cluster].nodes.get(name)
        wanted = None if node is None else _claimed_by(node)
        if self._admitted.get((cluster, name)) == wanted:
            return
        self._claims_changed = True
        self._dismiss(cluster, name)
        self.accept(cluster, f"nodes/{name}")
        if wanted is not None:
            self._admit(cluster, name, wanted)

    def _dismiss(self, cluster: str, name: str) -> None:
        for cidr in self._admitted.pop((cluster, name), ()):
            self._claims.withdraw(cluster, cidr)

    def _admit(self, cluster: str, name: str, cidrs: tuple[str, ...]) -> None:
        for cidr in cidrs:
            while clash := self._claims.conflict(cluster, cidr):
                owner, other = clash
                if cluster != self.own:
                    self.refuse(cluster, f"nodes/{name}", _overlap(cidr, other, owner))
                    return
                self._displace(owner, other, cidr)
        for cidr in cidrs:
            self._claims.claim(cluster, cidr)
        self._admitted[cluster, name] = cidrs

    def _displace(self, owner: str, claimed: str, cidr: str) -> None:
        """The own cluster has `cidr`: whichever nodes of `owner` claim `claimed`, which overlaps it, are refused."""
        for (cluster, name), cidrs in list(self._admitted.items()):
            if cluster == owner and claimed in cidrs:
                self._dismiss(cluster, name)
                self.refuse(cluster, f"nodes/{name}", _overlap(claimed, cidr, self.own))

    def _settle_claims(self) -> None:
        """After claims changed: a refused node may be admitted now, and what is at any address is looked at again."""
        self._claims_changed = False
        for cluster in self._order:
            view = self.views[cluster]
            for name, node in view.nodes.items():
                if (cluster, name) not in self._admitted:
                    self.accept(cluster, f"nodes/{name}")
                    self._admit(cluster, name, _claimed_by(node))
            self._dirty.endpoints.update(view.endpoints)
            self._dirty.services.update(view.services)


def _overlap(cidr: str, other: str, owner: str) -> str:
    return str(Invalid("pod CIDR or address", cidr, f"overlaps {other} of cluster {owner}"))


def _claimed_by(node: Node) -> tuple[str, ...]:
    return node.ipv4_pod_cidrs + ((f"{node.ipv4}/32",) if node.ipv4 else ())
