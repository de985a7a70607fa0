"""What this cluster knows of itself and of every other: a fold over events, in any order and any number of times. Pure.

A writer (the reader of one cluster) puts objects in and takes them out. Whether an entry is used is decided then, and
decided again where a fact it rests on changes; reading asks nothing and changes nothing.

    take_nodes, take_addresses, take_services   what to plan again; `on_dirty` is called when there is something
    admitted_nodes, node, endpoint, remote_services   what is used
    refusals                                          what is not, and why
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from clustermesh.address import BITS, Address, Prefix, single, text
from clustermesh.mesh.address_index import AddressBook, AddressIndex
from clustermesh.mesh.admission import Admission, Verdict
from clustermesh.mesh.authority import Authority, Ground
from clustermesh.mesh.claims import Holder
from clustermesh.mesh.refusals import MOST_NAMED, Reason, Refusal, Refusals
from clustermesh.model import Endpoint, Identity, LocalService, Node, Port, Service
from clustermesh.wire import RESOURCES
from clustermesh.wire.numbering import REMOTE_NODE

ServiceName = tuple[str, str]


class View(Struct, kw_only=True):
    """One cluster as last heard of. Tables are keyed as etcd's keys end: node name, (namespace, name), id, address."""

    nodes: dict[str, Node] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    endpoints: dict[Address | Prefix, Endpoint] = field(default_factory=dict)
    services: dict[ServiceName, Service] = field(default_factory=dict)
    local_services: dict[ServiceName, LocalService] = field(default_factory=dict)

    def table(self, kind: str) -> dict[Any, Any]:
        """The table named `kind`: nodes, identities, endpoints, services or local_services."""
        table: dict[Any, Any] = getattr(self, kind)
        return table


KINDS = tuple(each.name for each in RESOURCES.values() if (each.of_peers or each.of_own) and not each.optional)


class _Rulings:
    """What was decided about one cluster's entries, and what finds those that a moved prefix concerns."""

    def __init__(self, view: View) -> None:
        self.refusals = Refusals()
        self.kept: dict[str, Node] = {}  # nodes that stand as they were, since what they are now is refused
        self.trimmed: dict[ServiceName, Service] = {}  # without the backends that are not its to name
        self.endpoints = AddressIndex(view.endpoints)
        self.backends: AddressBook[ServiceName] = AddressBook()
        self.dropped: dict[str, set[Any]] = {}  # what there was no room for, by kind


_SHOWN: Final = 5
_MORE: Final = object()  # dropped without a name: there are too many
_FOREIGN: Final = Refusal(Reason.NOT_HELD, "is no address of a node of its cluster, nor in a pod CIDR of one")
_NO_POD: Final = Refusal(
    Reason.NOT_HELD, "is the address of a node: only the node itself, or what shares its network, can be there"
)


class MeshState:
    """Every cluster's view, the own one included under its own name."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.views: dict[str, View] = {}
        self.withheld: set[str] = set()  # clusters whose services are known and not used yet
        self.on_dirty: list[Callable[[], None]] = []
        self.on_verdict: list[Callable[[str], None]] = []  # told of each cluster of whose nodes something was decided
        self._rulings: dict[str, _Rulings] = {}
        self._order: list[str] = []  # the own cluster first
        self._holders: dict[ServiceName, tuple[str, ...]] = {}  # the clusters that have a service of that name
        self._admission = Admission(own)
        self._unruled: set[tuple[str, ServiceName]] = set()  # services with backends at addresses that changed hands
        self._unruled_endpoints: dict[Address, tuple[str, ...]] = {}  # the clusters that have one there
        self._dirty_nodes: set[tuple[str, str]] = set()
        self._dirty_addresses: set[Address] = set()
        self._dirty_services: set[ServiceName] = set()
        self._view(own)

    def put(self, cluster: str, kind: str, name: Any, value: Any) -> None:
        """Take in that `cluster` has `value` at `name`. What it replaces is forgotten; equal values change nothing."""
        table = self._view(cluster).table(kind)
        before = table.get(name)
        if before == value or (before is None and not self._has_room(cluster, kind, name, table)):
            return
        table[name] = value
        self._changed(cluster, kind, name, before, value)

    def remove(self, cluster: str, kind: str, name: Any) -> None:
        """Take in that `cluster` has nothing at `name`. Absent is fine."""
        view = self.views.get(cluster)
        if view is None:
            return
        self._no_longer_dropped(cluster, kind, name)
        if (before := view.table(kind).pop(name, None)) is not None:
            self._changed(cluster, kind, name, before, None)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        """Forget everything of `cluster` (disconnected or evicted), or only what is of `kinds`."""
        if kinds == KINDS:
            self.withheld.discard(cluster)
        view = self.views.get(cluster)
        if view is None:
            return
        for kind in reversed(kinds):  # nodes last: what rests on them need not be decided on once more
            names = list(view.table(kind))
            if kind == "nodes":  # the refused first: none of them is to stand for a moment
                names.sort(key=lambda name: Holder(cluster, name) in self._admission.standing)
            for name in names:
                self.remove(cluster, kind, name)
            self._rulings[cluster].dropped.pop(kind, None)
            self._rulings[cluster].refusals.set("tables", kind, None)
        if kinds != KINDS:
            return
        self._rulings[cluster].refusals = Refusals()
        if cluster != self.own:
            del self.views[cluster], self._rulings[cluster]
            self._order.remove(cluster)

    def release(self, cluster: str) -> None:
        """Use the services of a cluster that was withheld."""
        self.withheld.discard(cluster)
        if view := self.views.get(cluster):
            self._dirty_services.update(view.services)
            self._wake()

    def authorize(self, authority: Authority) -> None:
        """What a peer may say from now on, drained or not; all it said is judged by it."""
        cluster = authority.name
        before = self._admission.authority(cluster)
        self._settle(self._admission.authorize(authority))
        if cluster in self.views and before.identities != authority.identities:
            for name in self.views[cluster].endpoints:
                self._rule_endpoint(cluster, name)
            for number in self.views[cluster].identities:
                self._rule_identity(cluster, number)
        if cluster in self.views and before.limits != authority.limits:
            self._unruled.update((cluster, name) for name in self.views[cluster].services)
        self._wake()

    def admit_peers(self) -> None:
        """The own cluster's first whole list is in, or was restored: until then no peer's node stands."""
        self._settle(self._admission.admit_peers())
        self._wake()

    @property
    def restoring(self) -> bool:
        """What is put in now was kept by an agent before this one: what stood stands, in whatever order it comes."""
        return self._admission.restoring

    @restoring.setter
    def restoring(self, restoring: bool) -> None:
        self._admission.restoring = restoring

    @property
    def ground(self) -> Ground:
        """The places that no route may cover and no peer may take."""
        return self._admission.ground

    def stand_on(self, ground: Ground) -> None:
        """The places of `ground` are what this machine lives by from now on."""
        verdicts, shaken = self._admission.stand_on(ground)
        self._settle(verdicts)
        self._dirty_nodes.update((holder.cluster, holder.node) for holder in shaken)
        self._dirty_services.update(self.views[self.own].local_services)  # one may be where a lifeline is now, or was
        self._wake()

    def refuse(self, cluster: str, what: str, why: str) -> None:
        """A key of `cluster` that holds nothing usable."""
        self._view(cluster)
        refusals = self._rulings[cluster].refusals
        if what in refusals.of("keys") or len(refusals.of("keys")) < MOST_NAMED:
            refusals.set("keys", what, Refusal(Reason.GARBLED, why))

    def accept(self, cluster: str, what: str) -> None:
        """Undo `refuse`."""
        if rulings := self._rulings.get(cluster):
            rulings.refusals.set("keys", what, None)

    def refusals(self, cluster: str) -> Refusals:
        """What of `cluster` is not used, and why."""
        rulings = self._rulings.get(cluster)
        return Refusals() if rulings is None else rulings.refusals

    def names(self, cluster: str, kind: str) -> Set[Any]:
        """The names in a table of `cluster`; of the kind "refused" those that `refuse` was told of."""
        if kind == "refused":
            return self.refusals(cluster).of("keys").keys()
        view = self.views.get(cluster)
        if view is None:
            return set()
        dropped = self._rulings[cluster].dropped.get(kind)
        return view.table(kind).keys() | (dropped - {_MORE}) if dropped else view.table(kind).keys()

    def good_view(self, cluster: str) -> View:
        """What is worth keeping on disk: a Node that is refused now must not stand first after a restart."""
        view, refused = self.views[cluster], self.refusals(cluster).of("nodes")
        kept = self._rulings[cluster].kept
        good = {
            name: kept.get(name, node)
            for name, node in view.nodes.items()
            if name in kept or name not in refused or refused[name].reason is Reason.WAITING
        }
        return replace(view, nodes=good)

    def take_nodes(self) -> set[tuple[str, str]]:
        """The nodes, by (cluster, name), that changed, came, went, were admitted or refused since the last call."""
        taken, self._dirty_nodes = self._dirty_nodes, set()
        return taken

    def take_addresses(self) -> set[Address]:
        """The addresses whose endpoint may be another since the last call. `rule` each before asking for it."""
        taken, self._dirty_addresses = self._dirty_addresses, set()
        return taken

    def rule(self, address: Address) -> None:
        """Decide on the endpoints at `address` if it changed hands. Until then what was refused there is refused; one
        node may have a hundred thousand of them, so whoever takes addresses has them decided on in turns."""
        for cluster in self._unruled_endpoints.pop(address, ()):
            if cluster in self.views and address in self.views[cluster].endpoints:
                self._judge_anew(cluster, address)

    def take_services(self) -> set[ServiceName]:
        """The services that may have other frontends or backends since the last call."""
        unruled, self._unruled = self._unruled, set()
        for cluster, name in unruled:
            if cluster in self.views and self._rule_service(cluster, name):
                self._dirty_services.add(name)
        taken, self._dirty_services = self._dirty_services, set()
        return taken

    def admitted_nodes(self) -> Iterator[Node]:
        """Every node that stands, own cluster first."""
        for cluster in self._order:
            for name, node in sorted(self.views[cluster].nodes.items()):
                if Holder(cluster, name) in self._admission.standing:
                    yield self._rulings[cluster].kept.get(name, node)

    def node(self, cluster: str, name: str) -> Node | None:
        """The node if it stands."""
        if Holder(cluster, name) not in self._admission.standing:
            return None
        return self._rulings[cluster].kept.get(name) or self.views[cluster].nodes[name]

    def endpoint(self, address: Address) -> Endpoint | None:
        """Who is at `address`, from the one cluster that may say so."""
        holder = self._admission.claims.owner(address)
        cluster = self.own if holder is None else holder.cluster
        view = self.views.get(cluster)
        if view is None or address in self._rulings[cluster].refusals.of("endpoints"):
            return None
        return view.endpoints.get(address)

    def lives_at(self, address: Address) -> str:
        """What is at `address` that no service may take this machine's own way to, or ""."""
        return self._admission.lives_at(address)

    def remote_services(self, name: ServiceName) -> list[Service]:
        """The service `name` as every other cluster in use has it, without backends that are not theirs to name."""
        return [
            self._rulings[cluster].trimmed.get(name) or self.views[cluster].services[name]
            for cluster in self._holders.get(name, ())
            if cluster not in self.withheld
        ]

    def _view(self, cluster: str) -> View:
        view = self.views.get(cluster)
        if view is None:
            view = self.views[cluster] = View()
            self._rulings[cluster] = _Rulings(view)
            self._order = [self.own, *sorted(name for name in self.views if name != self.own)]
        return view

    def _has_room(self, cluster: str, kind: str, name: Any, table: Mapping[Any, Any]) -> bool:
        limit = self._admission.authority(cluster).limits.keys.get(kind)
        if cluster == self.own or limit is None or len(table) < limit:
            self._no_longer_dropped(cluster, kind, name)
            return True
        dropped = self._rulings[cluster].dropped.setdefault(kind, set())
        if name not in dropped:
            dropped.add(name if len(dropped) < MOST_NAMED else _MORE)
        why = f"has more than {limit} {kind}, which is the limit: those beyond are not used"
        self._rulings[cluster].refusals.set("tables", kind, Refusal(Reason.LIMIT, why))
        return False

    def _no_longer_dropped(self, cluster: str, kind: str, name: Any) -> None:
        """Room alone mends nothing: what was dropped is missing until its cluster says it again, or takes it out."""
        rulings = self._rulings[cluster]
        dropped = rulings.dropped.get(kind, set())
        if name in dropped:
            dropped.discard(name)
            if not dropped:
                rulings.refusals.set("tables", kind, None)

    def _changed(self, cluster: str, kind: str, name: Any, before: Any, value: Any) -> None:
        _ON_CHANGE[kind](self, cluster, name, before, value)
        self._wake()

    def _wake(self) -> None:
        for callback in self.on_dirty:
            callback()

    def _node_changed(self, cluster: str, name: str, before: Node | None, node: Node | None) -> None:
        self._dirty_nodes.add((cluster, name))
        if before is not None:
            self._rulings[cluster].kept.setdefault(name, before)
        self._settle(self._admission.put(Holder(cluster, name), node))
        self._forget_kept(cluster, name)

    def _forget_kept(self, cluster: str, name: str) -> None:
        """What stood before a change counts only as long as the change is refused."""
        rulings = self._rulings[cluster]
        if Holder(cluster, name) not in self._admission.standing or name not in rulings.refusals.of("nodes"):
            rulings.kept.pop(name, None)

    def _identity_changed(self, cluster: str, number: int, _before: Any, value: Identity | None) -> None:
        if value is None:
            self._rulings[cluster].refusals.set("identities", number, None)
        else:
            self._rule_identity(cluster, number)

    def _endpoint_changed(self, cluster: str, name: Address | Prefix, before: Any, value: Endpoint | None) -> None:
        if isinstance(name, Prefix):
            return  # CIDRs come with their nodes
        if before is None or value is None:
            self._rulings[cluster].endpoints.touch(name)
        if value is None:
            self._rulings[cluster].refusals.set("endpoints", name, None)
            self._dirty_addresses.add(name)
        else:
            self._rule_endpoint(cluster, name)

    def _service_changed(self, cluster: str, name: ServiceName, before: Service | None, value: Service | None) -> None:
        rulings = self._rulings[cluster]
        had, has = (set() if each is None else each.backends.keys() for each in (before, value))
        for address in had - has:
            rulings.backends.discard(address, name)
        for address in has - had:
            rulings.backends.add(address, name)
        self._dirty_services.add(name)
        if value is None:
            self._let_go(cluster, name)
            return
        if before is None:
            self._holders[name] = tuple(sorted({cluster, *self._holders.get(name, ())} - {self.own}))
        self._rule_service(cluster, name)

    def _let_go(self, cluster: str, name: ServiceName) -> None:
        self._rulings[cluster].trimmed.pop(name, None)
        self._rulings[cluster].refusals.set("services", name, None)
        left = tuple(holder for holder in self._holders.pop(name, ()) if holder != cluster)
        if left:
            self._holders[name] = left

    def _local_service_changed(
        self, cluster: str, name: ServiceName, before: LocalService | None, value: LocalService | None
    ) -> None:
        had, has = (set() if each is None else each.service.frontends.keys() for each in (before, value))
        for address in had - has:
            self._settle(self._admission.unserve(address, name))
        for address in has - had:
            self._admission.serve(address, name)
        for address in had ^ has:  # no peer's backend is where a service of ours is
            if (holder := self._admission.claims.owner(address)) is not None and holder.cluster != self.own:
                self._moved(holder.cluster, single(address))
        self._dirty_services.add(name)

    def _settle(self, verdicts: Iterable[Verdict]) -> None:
        """What was decided about nodes reaches everything that rests on them."""
        for holder, refusal, moved in verdicts:
            if rulings := self._rulings.get(holder.cluster):
                rulings.refusals.set("nodes", holder.node, refusal)
                self._forget_kept(*holder)
            self._dirty_nodes.add((holder.cluster, holder.node))
            for callback in self.on_verdict:
                callback(holder.cluster)
            for prefix in moved:
                if prefix.length == BITS:  # a node is there now, or was
                    self._dirty_services.update(self._admission.services_in(prefix))
                for cluster in {holder.cluster, self.own}:
                    self._moved(cluster, prefix)

    def _moved(self, cluster: str, prefix: Prefix) -> None:
        """`prefix` is another's now: what `cluster` has there is decided on again."""
        if (rulings := self._rulings.get(cluster)) is None:
            return
        for address in rulings.endpoints.inside(prefix):
            waiting = self._unruled_endpoints.get(address, ())
            if cluster not in waiting:
                self._unruled_endpoints[address] = (*waiting, cluster)
            self._dirty_addresses.add(address)
        if cluster != self.own:
            self._unruled.update((cluster, name) for _, name in rulings.backends.inside(prefix))

    def _rule_endpoint(self, cluster: str, name: Address | Prefix) -> None:
        if isinstance(name, Prefix):
            return
        self._judge_anew(cluster, name)
        self._dirty_addresses.add(name)

    def _judge_anew(self, cluster: str, address: Address) -> None:
        self._rulings[cluster].refusals.set("endpoints", address, self._judge_endpoint(cluster, address))

    def _judge_endpoint(self, cluster: str, address: Address) -> Refusal | None:
        holder = self._admission.claims.owner(address)
        if cluster == self.own:
            if holder is None or holder.cluster == self.own:
                return None
            return Refusal(Reason.TAKEN, f"is at an address of {holder}")
        if holder is None or holder.cluster != cluster:
            return _FOREIGN
        endpoint = self.views[cluster].endpoints[address]
        if endpoint.identity == REMOTE_NODE:
            return None
        if endpoint.host_ip != address and address in self._admission.standing[holder].addresses:
            return _NO_POD
        return self._judge_identity(cluster, endpoint.identity)

    def _rule_identity(self, cluster: str, number: int) -> None:
        self._rulings[cluster].refusals.set("identities", number, self._judge_identity(cluster, number))

    def _judge_identity(self, cluster: str, number: int) -> Refusal | None:
        allotted = self._admission.authority(cluster).identities
        if cluster == self.own or number in allotted:
            return None
        why = f"identity {number} is not from {allotted[0]} to {allotted[-1]}, the range of {cluster}"
        return Refusal(Reason.IDENTITY, why)

    def _rule_service(self, cluster: str, name: ServiceName) -> bool:
        """Decide which backends of a peer's service are used; True where that changed."""
        if cluster == self.own or (service := self.views[cluster].services.get(name)) is None:
            return False
        rulings = self._rulings[cluster]
        before = rulings.trimmed.get(name)
        kept, refusal = self._judge_backends(cluster, service)
        after = None if refusal is None else replace(service, backends=kept)
        if after is None:
            rulings.trimmed.pop(name, None)
        else:
            rulings.trimmed[name] = after
        rulings.refusals.set("services", name, refusal)
        return before != after

    def _judge_backends(
        self, cluster: str, service: Service
    ) -> tuple[Mapping[Address, Mapping[str, Port]], Refusal | None]:
        backends, limit = service.backends, self._admission.authority(cluster).limits.service_backends
        if len(backends) > limit:
            return {}, Refusal(Reason.LIMIT, f"has {len(backends)} backends, and the limit is {limit}")
        owner = self._admission.claims.owner
        held = {
            address: ports
            for address, ports in backends.items()
            if (holder := owner(address)) is not None
            and holder.cluster == cluster
            and not self._admission.services_in(single(address))
        }
        if len(held) < len(backends):
            foreign = [text(address) for address in sorted(backends.keys() - held.keys())[:_SHOWN]]
            why = f"{len(backends) - len(held)} of its backends are at no address of its cluster: {', '.join(foreign)}"
            return _without_port_zero(held), Refusal(Reason.NOT_HELD, why)
        kept = _without_port_zero(held)
        if kept is held:
            return held, None
        return kept, Refusal(Reason.PORT, "some of its backends are at port 0")


def _without_port_zero(backends: dict[Address, Mapping[str, Port]]) -> dict[Address, Mapping[str, Port]]:
    """`backends` itself where there is none."""
    if all(port.port for ports in backends.values() for port in ports.values()):
        return backends
    return {address: {name: port for name, port in ports.items() if port.port} for address, ports in backends.items()}


_ON_CHANGE: Final[Mapping[str, Callable[[MeshState, str, Any, Any, Any], None]]] = {
    "nodes": MeshState._node_changed,
    "identities": MeshState._identity_changed,
    "endpoints": MeshState._endpoint_changed,
    "services": MeshState._service_changed,
    "local_services": MeshState._local_service_changed,
}
