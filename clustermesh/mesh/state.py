"""What this cluster knows of itself and of every other: a fold over events, in any order and any number of times. Pure.

A writer (the reader of one cluster) puts objects in and takes them out; the planner hears by `on_dirty` that there is
something to look at again, and takes it: `take_nodes`, `take_addresses`, `take_services`. Nodes are checked against
`Claims`: one whose pod CIDRs or address belong to another cluster is refused, and so are endpoints and backends at
such addresses when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from ipaddress import IPv4Network
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from clustermesh.address import Address, Prefix, is_ipv4, prefix_text, single, text
from clustermesh.errors import Invalid
from clustermesh.mesh.claims import Claims, KeyClaims, find_fault, is_nobodys
from clustermesh.model import Endpoint, Identity, LocalService, Node, Service
from clustermesh.wire import RESOURCES
from clustermesh.wire.numbering import REMOTE_NODE, is_reserved


class View(Struct, kw_only=True):
    """One cluster as last heard of. Tables are keyed as their etcd keys end: node name, (namespace, name), id, address.

    `refused` maps what was refused ("nodes/w1") to the sentence why; it is shown in status and counted.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    endpoints: dict[Address | Prefix, Endpoint] = field(default_factory=dict)
    services: dict[tuple[str, str], Service] = field(default_factory=dict)
    local_services: dict[tuple[str, str], LocalService] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def table(self, kind: str) -> dict[Any, Any]:
        """The table named `kind`: nodes, identities, endpoints, services or local_services."""
        table: dict[Any, Any] = getattr(self, kind)
        return table


KINDS = tuple(each.name for each in RESOURCES.values() if (each.of_peers or each.of_own) and not each.optional)


class _Wanted(NamedTuple):
    """What a node takes for itself."""

    cidrs: tuple[str, ...]
    key: str


_NOTHING = _Wanted((), "")
_FEW = 16
MOST_REFUSED = 10_000  # named for each cluster; a peer full of garbage must not fill this node's memory


class MeshState:
    """Every cluster's view, the own one included under its own name."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.views: dict[str, View] = {own: View()}
        self.withheld: set[str] = set()  # clusters whose services are known and not used yet
        self._order = [own]  # the own cluster first: it wins every tie
        self._holders: dict[str, dict[Any, tuple[str, ...]]] = {"endpoints": {}, "services": {}}  # name -> clusters
        self._claims, self._keys = Claims(), KeyClaims()
        self._claimants: dict[tuple[str, str], set[str]] = {}  # (cluster, CIDR or key) -> the nodes that claim it
        self._moved: set[str] = set()  # CIDRs and keys that were claimed or withdrawn
        self._admitted: dict[tuple[str, str], _Wanted] = {}  # by (cluster, node)
        self.on_dirty: list[Callable[[], None]] = []  # called when there is something to take
        self._dirty_nodes: set[tuple[str, str]] = set()
        self._dirty_addresses: set[Address | Prefix] = set()
        self._dirty_services: set[tuple[str, str]] = set()

    def put(self, cluster: str, kind: str, name: Any, value: Any) -> None:
        """Take in that `cluster` has `value` at `name`. What it replaces is forgotten; equal values change nothing."""
        table = self._view(cluster).table(kind)
        if table.get(name) == value:
            return
        if name not in table:
            self._hold(cluster, kind, name)
        table[name] = value
        self._touch(cluster, kind, name)

    def remove(self, cluster: str, kind: str, name: Any) -> None:
        """Take in that `cluster` has nothing at `name`. Absent is fine."""
        view = self.views.get(cluster)
        if view is not None and view.table(kind).pop(name, None) is not None:
            self._let_go(cluster, kind, name)
            self._touch(cluster, kind, name)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        """Forget everything of `cluster` (disconnected or evicted), or only what is of `kinds`."""
        if kinds == KINDS:
            self.withheld.discard(cluster)
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

    def release(self, cluster: str) -> None:
        """Use the services of a cluster that was withheld."""
        self.withheld.discard(cluster)
        if view := self.views.get(cluster):
            self._dirty_services.update(view.services)
            self._wake()

    def refuse(self, cluster: str, what: str, why: str) -> None:
        refused = self._view(cluster).refused
        if what in refused or len(refused) < MOST_REFUSED:
            refused[what] = why

    def accept(self, cluster: str, what: str) -> None:
        if view := self.views.get(cluster):
            view.refused.pop(what, None)

    def take_nodes(self) -> set[tuple[str, str]]:
        """The nodes, by (cluster, name), that changed, came, went, were admitted or refused since the last call."""
        self._settle_claims()
        taken, self._dirty_nodes = self._dirty_nodes, set()
        return taken

    def take_addresses(self) -> set[Address | Prefix]:
        """The addresses whose endpoint may be another since the last call."""
        self._settle_claims()
        taken, self._dirty_addresses = self._dirty_addresses, set()
        return taken

    def take_services(self) -> set[tuple[str, str]]:
        """The services that may have other frontends or backends since the last call."""
        self._settle_claims()
        taken, self._dirty_services = self._dirty_services, set()
        return taken

    def node(self, cluster: str, name: str) -> Node | None:
        """The node if it is admitted."""
        return self.views[cluster].nodes[name] if (cluster, name) in self._admitted else None

    def admitted_nodes(self) -> Iterator[Node]:
        """Every node of every cluster that claims nothing of another cluster's, own cluster first."""
        for cluster in self._order:
            for name, node in sorted(self.views[cluster].nodes.items()):
                if (cluster, name) in self._admitted:
                    yield node

    def speaks_for(self, cluster: str, address: Address) -> bool:
        """Whether `cluster` may say something about the IPv4 `address`: nobody else claims it, or it is nobody's."""
        if cluster != self.own and is_nobodys(text(address)):
            return False
        return self._claims.owner(text(address)) in (None, cluster)

    def endpoint(self, address: Address) -> Endpoint | None:
        """Who is at `address`, from the one cluster that may say so; the rest is refused and shown."""
        found: Endpoint | None = None
        what = f"endpoints/{text(address)}"
        for cluster in self._holders["endpoints"].get(address, ()):
            endpoint = self.views[cluster].endpoints[address]
            if found is not None or not self.speaks_for(cluster, address):
                self.refuse(cluster, what, f"{text(address)} belongs to another cluster, or to none")
            elif cluster != self.own and is_reserved(endpoint.identity) and endpoint.identity != REMOTE_NODE:
                self.refuse(
                    cluster, what, f"identity {endpoint.identity} is reserved: a peer may not give it to anyone"
                )
            else:
                self.accept(cluster, what)
                found = endpoint
        return found

    def remote_services(self, name: tuple[str, str]) -> list[Service]:
        """The service `name` as every other cluster in use has it, without backends that are not theirs to name."""
        return [
            self._trimmed(cluster, self.views[cluster].services[name])
            for cluster in self._holders["services"].get(name, ())
            if cluster != self.own and cluster not in self.withheld
        ]

    def _trimmed(self, cluster: str, service: Service) -> Service:
        what = f"services/{service.namespace}/{service.name}"
        kept = {ip: ports for ip, ports in service.backends.items() if not is_ipv4(ip) or self.speaks_for(cluster, ip)}
        if len(kept) == len(service.backends):
            self.accept(cluster, what)
            return service
        taken = [text(ip) for ip in sorted(set(service.backends) - set(kept))]
        self.refuse(cluster, what, f"backends {', '.join(taken[:5])}: address of another cluster, or of none")
        return replace(service, backends=kept)

    def _view(self, cluster: str) -> View:
        if cluster not in self.views:
            self.views[cluster] = View()
            self._order = [self.own, *sorted(name for name in self.views if name != self.own)]
        return self.views[cluster]

    def _hold(self, cluster: str, kind: str, name: Any) -> None:
        if (table := self._holders.get(kind)) is not None:
            holders = {cluster, *table.get(name, ())}
            table[name] = tuple(sorted(holders, key=lambda c: (c != self.own, c)))

    def _let_go(self, cluster: str, kind: str, name: Any) -> None:
        if kind == "endpoints":
            self.accept(cluster, f"endpoints/{_spelled(name)}")
        elif kind == "services":
            self.accept(cluster, f"services/{name[0]}/{name[1]}")
        if (table := self._holders.get(kind)) is not None:
            table[name] = tuple(holder for holder in table[name] if holder != cluster)
            if not table[name]:
                del table[name]

    def _touch(self, cluster: str, kind: str, name: Any) -> None:
        if kind == "nodes":
            self._dirty_nodes.add((cluster, name))
            self._reclaim(cluster, name)
        elif kind == "endpoints":
            self._dirty_addresses.add(name)
        elif kind in ("services", "local_services"):
            self._dirty_services.add(name)
        self._wake()

    def _wake(self) -> None:
        for callback in self.on_dirty:
            callback()

    def _reclaim(self, cluster: str, name: str) -> None:
        """Bring the claims of one node up to date."""
        node = self.views[cluster].nodes.get(name)
        wanted = None if node is None else _wanted_by(node)
        if wanted is not None and self._admitted.get((cluster, name)) == wanted:
            return
        self._dismiss(cluster, name)
        self.accept(cluster, f"nodes/{name}")
        if wanted is not None:
            self._admit(cluster, name, wanted)

    def _dismiss(self, cluster: str, name: str) -> None:
        for claims, claim in self._claims_of(self._admitted.pop((cluster, name), _NOTHING)):
            claims.withdraw(cluster, claim)
            claimants = self._claimants[cluster, claim]
            claimants.discard(name)
            if not claimants:
                del self._claimants[cluster, claim]
            self._moved.add(claim)

    def _admit(self, cluster: str, name: str, wanted: _Wanted) -> None:
        if cluster != self.own:
            if why := self._objection(cluster, wanted):
                self.refuse(cluster, f"nodes/{name}", why)
                return
        else:
            self._displace(wanted)
        for claims, claim in self._claims_of(wanted):
            claims.claim(cluster, claim)
            self._claimants.setdefault((cluster, claim), set()).add(name)
            self._moved.add(claim)
        self._admitted[cluster, name] = wanted

    def _objection(self, cluster: str, wanted: _Wanted) -> str:
        """Why another cluster may not have this, or ""."""
        for cidr in wanted.cidrs:
            if fault := find_fault(cidr):
                return str(Invalid("pod CIDR or address", cidr, fault))
        for claims, claim in self._claims_of(wanted):
            if clash := claims.conflict(cluster, claim):
                return _overlap(claim, *clash)
        return ""

    def _displace(self, wanted: _Wanted) -> None:
        """The own cluster has this: nodes of others that claim what overlaps it are refused."""
        for claims, claim in self._claims_of(wanted):
            while clash := claims.conflict(self.own, claim):
                owner, claimed = clash
                for name in list(self._claimants[owner, claimed]):
                    self._dismiss(owner, name)
                    self._dirty_nodes.add((owner, name))
                    self.refuse(owner, f"nodes/{name}", _overlap(claimed, self.own, claim))

    def _claims_of(self, wanted: _Wanted) -> Iterator[tuple[Claims | KeyClaims, str]]:
        for cidr in wanted.cidrs:
            yield self._claims, cidr
        if wanted.key:
            yield self._keys, wanted.key

    def _settle_claims(self) -> None:
        """After claims changed: a refused node may be admitted now, and what is at those addresses is looked at."""
        if not self._moved:
            return
        for cluster in self._order:
            for name, node in self.views[cluster].nodes.items():
                if (cluster, name) not in self._admitted:
                    self.accept(cluster, f"nodes/{name}")
                    self._admit(cluster, name, _wanted_by(node))
                    self._dirty_nodes.add((cluster, name))
            self._dirty_services.update(self.views[cluster].services)
        moved, self._moved = [claim for claim in self._moved if "." in claim], set()
        self._dirty_addresses.update(_addresses_in(moved, self._holders["endpoints"]))


def _overlap(claim: str, owner: str, other: str) -> str:
    if claim == other:
        return str(Invalid("pod CIDR, address or key", claim, f"is one of cluster {owner}"))
    return str(Invalid("pod CIDR or address", claim, f"overlaps {other} of cluster {owner}"))


def _wanted_by(node: Node) -> _Wanted:
    address = node.address("InternalIP", "ExternalIP", ipv4=True)
    wanted = node.pod_cidrs + (() if address is None else (single(address),))
    return _Wanted(
        tuple(prefix_text(p) for p in dict.fromkeys(wanted) if is_ipv4(p.address)), node.wireguard_public_key
    )


def _spelled(place: Address | Prefix) -> str:
    return prefix_text(place) if isinstance(place, Prefix) else text(place)


def _addresses_in(cidrs: Sequence[str], addresses: Collection[Address | Prefix]) -> Iterator[Address | Prefix]:
    """Those of `addresses` that may lie in one of `cidrs`; many CIDRs are not worth comparing with."""
    if len(cidrs) > _FEW:
        yield from addresses
        return
    ranges = [(int(n.network_address), int(n.broadcast_address)) for n in map(IPv4Network, cidrs)]
    for address in addresses:
        if isinstance(address, Prefix) or not is_ipv4(address):
            continue
        number = int.from_bytes(address[12:], "big")
        if any(first <= number <= last for first, last in ranges):
            yield address
