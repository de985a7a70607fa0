"""What this cluster knows of itself and of every other: a fold over events, in any order and any number of times. Pure.

A writer (the reader of one cluster) puts objects in and takes them out. Whether an entry is used is decided then, and
decided again where a fact it rests on changes; reading asks nothing and changes nothing.

    take_nodes, take_addresses, take_services   what to plan again; `on_dirty` is called when there is something
    judge                                             one turn of what had to wait: nodes, and what rests on them
    rule                                              decides on one address or service, as whoever has taken it does
    admitted_nodes, node, endpoint, remote_services   what is used
    refusals                                          what is not, and why
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final

from msgspec.structs import replace

from clustermesh.address import BITS, Address, Prefix, single
from clustermesh.mesh.address_index import outermost
from clustermesh.mesh.admission import Admission, Verdict
from clustermesh.mesh.authority import TOGETHER, Authority, Ground
from clustermesh.mesh.claims import Holder
from clustermesh.mesh.doubts import TURN, Doubts
from clustermesh.mesh.holdings import SHARED, Share
from clustermesh.mesh.refusals import Reason, Refusal, Refusals
from clustermesh.mesh.rulings import Rulings
from clustermesh.mesh.view import KINDS, ServiceName, View
from clustermesh.model import Endpoint, LocalService, Node, Service
from clustermesh.wire.local import from_shared
from clustermesh.wire.numbering import REMOTE_NODE


class MeshState:
    """Every cluster's view, the own one included under its own name."""

    def __init__(self, own: str, turn: int = TURN, together: Mapping[str, int] = TOGETHER) -> None:
        self.own = own
        self.views: dict[str, View] = {}
        self.withheld: set[str] = set()  # clusters whose services are known and not used yet
        self.on_dirty: list[Callable[[], None]] = []
        self.watched: dict[Address, set[ServiceName]] = {}  # services that are dirty with the endpoint at an address
        self.on_verdict: list[Callable[[str], None]] = []  # told of each cluster of whose nodes something was decided
        self._rulings: dict[str, Rulings] = {}
        self._order: list[str] = []  # the own cluster first
        self._admission = Admission(own, together=together)
        self.holdings = self._admission.holdings
        self._doubts = Doubts(turn)
        # Whose entries at an address, or of a name, are to be decided on again: addresses of theirs changed hands.
        self._unruled: dict[Address | ServiceName, tuple[str, ...]] = {}
        self._dirty_nodes: set[tuple[str, str]] = set()
        self._dirty_addresses: set[Address] = set()
        self._dirty_services: set[ServiceName] = set()
        self._view(own)

    def put(self, cluster: str, kind: str, name: Any, value: Any) -> None:
        """Take in that `cluster` has `value` at `name`. What it replaces is forgotten, also where there is
        no room for all of it; equal values change nothing."""
        table = (self.views.get(cluster) or self._view(cluster)).table(kind)
        before = table.get(name)
        taken = self._take(cluster, kind, name, before, value)
        if taken is None or taken == before:
            return
        table[name] = taken
        self._changed(cluster, kind, name, before, taken)

    def remove(self, cluster: str, kind: str, name: Any) -> None:
        """Take in that `cluster` has nothing at `name`. Absent is fine."""
        view = self.views.get(cluster)
        if view is None:
            return
        before = view.table(kind).pop(name, None)
        self._take(cluster, kind, name, before, None)
        if before is not None:
            self._changed(cluster, kind, name, before, None)

    def drain(self, cluster: str, kinds: Sequence[str] = KINDS) -> None:
        """Forget everything of `cluster` (disconnected or evicted), or only what is of `kinds`. What that leads to
        follows in turns."""
        if cluster not in self.views:
            self.withheld.discard(cluster)
        elif kinds == KINDS:
            self._drop(cluster)
        else:
            for kind in kinds:
                self._drop_table(cluster, kind)
            self._wake()

    def _drop_table(self, cluster: str, kind: str) -> None:
        view, rulings = self.views[cluster], self._rulings[cluster]
        if cluster != self.own and kind in {"endpoints", "services"}:
            table = view.table(kind)
            setattr(view, kind, {})
            rulings.forget(kind)
            self._doubt([(object(), "", _emptied(table))])
            return
        for name in list(view.table(kind)):
            self.remove(cluster, kind, name)
        rulings.room.clear(kind)

    def _drop(self, cluster: str) -> None:
        """Nothing is decided on for each of hundreds of thousands that go with all they could rest on."""
        view = self.views.pop(cluster)
        self._rulings.pop(cluster).room.leave()
        self._order.remove(cluster)
        self.withheld.discard(cluster)
        for name in view.own_names() if cluster == self.own else ():
            self._own_service_changed(name, view.own_service(name), None)
        self._doubt((object(), "", _emptied(table)) for table in (view.endpoints, view.services))
        self._settle(self._admission.drop(cluster))
        if cluster == self.own:
            self._view(cluster)
            while self.judge():  # the own cluster waits for no turn
                pass
        self._wake()

    def release(self, cluster: str) -> None:
        """Use the services of a cluster that was withheld."""
        self.withheld.discard(cluster)
        if view := self.views.get(cluster):
            self._dirty_services.update(view.services)
            self._wake()

    def authorize(self, authority: Authority) -> None:
        """What a peer may say from now on, drained or not; all it said is judged by it."""
        cluster = authority.name
        before = self.holdings.authority(cluster)
        self._settle(self._admission.authorize(authority))
        if (rulings := self._rulings.get(cluster)) is not None and before != authority:
            rulings.room.change_limits()
            if before.identities != authority.identities:
                self._doubt([((rulings, "endpoints"), cluster, rulings.all_of("endpoints"))])
            if before.limits.service_backends != authority.limits.service_backends:
                self._doubt([((rulings, "services"), cluster, rulings.all_of("services"))])
        self._wake()

    def admit_peers(self) -> None:
        """The own cluster's first whole list is in, or was restored: until then no peer's node stands."""
        self._settle(self._admission.admit_peers())
        self._wake()

    def set_restoring(self, restoring: bool) -> None:
        """Whether what is put in from now on was kept by an agent before this one: what stood stands, in any order."""
        self._admission.set_restoring(restoring)

    def stand_on(self, ground: Ground) -> None:
        """The places of `ground` are what this machine lives by from now on."""
        moved = {place.prefix for place in ground.places ^ self.holdings.ground.places if place.lifeline}
        self._settle(self._admission.stand_on(ground))
        for prefix in moved:  # who stands there keeps what it has, but not its routes, or gets them back
            if (holder := self.holdings.claims.owner(prefix.address)) is not None:
                self._dirty_nodes.add(holder)
            self._dirty_services.update(self.holdings.services_in(prefix))
        self._wake()

    def judge(self) -> bool:
        """Decide on some of the nodes that are left to decide on, and find out some of what rests on those that were;
        whether there is more. Until then each is what it was."""
        if self.is_behind:
            self._doubt_some()
            self._settle(self._admission.go_on())
            self._wake()
        return self.is_behind

    @property
    def is_behind(self) -> bool:
        """Whether there is something to `judge`."""
        return self._admission.is_behind or bool(self._doubts)

    def refuse(self, cluster: str, what: str, why: str) -> None:
        """A key of `cluster` that holds nothing usable."""
        self._view(cluster)
        self._rulings[cluster].refusals.set("keys", what, Refusal(Reason.GARBLED, why))

    def accept(self, cluster: str, what: str) -> None:
        """Undo `refuse`."""
        if rulings := self._rulings.get(cluster):
            rulings.refusals.set("keys", what, None)

    def count_unnamed(self, cluster: str, kind: str, number: int) -> None:
        """So many keys of a table hold nothing usable beside those that `refuse` was told of."""
        self._view(cluster)
        self._rulings[cluster].refusals.count_unnamed(kind, number)

    def listed(self, cluster: str, kind: str, *, whole: bool = True) -> None:
        """All of a table that is `short` is about to be put, or was."""
        if not whole and (rulings := self._rulings.get(cluster)):
            rulings.room.begin_list(kind)

    def refusals(self, cluster: str) -> Refusals:
        """What of `cluster` is not used, and why."""
        rulings = self._rulings.get(cluster)
        return Refusals() if rulings is None else rulings.refusals

    def limits_used(self, cluster: str) -> dict[str, tuple[int, int]]:
        """What `cluster` may fill here: how much of each limit it uses, and the limit."""
        limits, view = self.holdings.authority(cluster).limits, self.views.get(cluster, View())
        used: dict[str, tuple[int, int]] = {kind: (len(view.table(kind)), most) for kind, most in limits.keys.items()}
        rulings = self._rulings.get(cluster)
        used["backends"] = (0 if rulings is None else rulings.room.backends, limits.backends)
        shares = self.holdings.shares(cluster)
        return used | {kind: (shares[Share(cluster, kind)], getattr(limits, kind)) for kind in SHARED}

    def limits_used_together(self) -> dict[str, tuple[int, int]]:
        """What all peers may fill here, as `limits_used`: the rest is the own cluster's."""
        together = self.holdings.together
        return {what: (together.used[what], most) for what, most in together.most.items()}

    def names(self, cluster: str, kind: str) -> Set[Any]:
        """The names in a table of `cluster`. Of the kind "refused" those that `refuse` was told of, "unnamed" the
        tables of which more is, "short" those that miss what there is room for by now, "dropped" those of which
        something found none."""
        view = self.views.get(cluster)
        if view is None:
            return set()
        rulings = self._rulings[cluster]
        match kind:
            case "refused":
                return rulings.refusals.of("keys").keys()
            case "unnamed":
                return rulings.refusals.unnamed.keys()
            case "short":
                return rulings.room.short
            case "dropped":
                return rulings.room.kinds_dropped
        held, dropped = view.table(kind), rulings.room.dropped(kind)
        return ChainMap(held, dropped).keys() if dropped else held.keys()  # asked at each event: nothing is copied

    def good_view(self, cluster: str) -> View:
        """What is worth keeping on disk: a Node that is refused now must not stand first after a restart."""
        view, refused, standing = self.views[cluster], self.refusals(cluster).of("nodes"), self.holdings.standing
        good = {
            name: node if known is None else known.node
            for name, node in view.nodes.items()
            if (known := standing.get(Holder(cluster, name))) is not None or refused[name].reason is Reason.WAITING
        }
        return replace(view, nodes=good)

    @property
    def has_nodes(self) -> bool:
        """Whether `take_nodes` gives any."""
        return bool(self._dirty_nodes)

    @property
    def has_addresses(self) -> bool:
        """Whether `take_addresses` gives any."""
        return bool(self._dirty_addresses)

    def take_nodes(self) -> set[tuple[str, str]]:
        """The nodes, by (cluster, name), that changed, came, went, were admitted or refused since the last call."""
        taken, self._dirty_nodes = self._dirty_nodes, set()
        return taken

    def take_addresses(self) -> set[Address]:
        """The addresses whose endpoint may be another since the last call. `rule` each before asking for it."""
        taken, self._dirty_addresses = self._dirty_addresses, set()
        return taken

    def rule(self, name: Address | ServiceName) -> Sequence[str]:
        """Decide on the endpoints at an address, or the services of a name, some of whose addresses changed hands.

        One node may have a hundred thousand of them, so whoever takes what is dirty has it decided on in turns.

        The clusters whose entries were decided on.
        """
        clusters = self._unruled.get(name, ())
        for cluster in clusters:
            if (rulings := self._rulings.get(cluster)) is not None:
                rulings.rule(name)
        self._unruled.pop(name, None)  # last: what raises is decided on when it is asked again
        return clusters

    def take_services(self) -> set[ServiceName]:
        """The services that may have other frontends or backends since the last call. `rule` as addresses."""
        taken, self._dirty_services = self._dirty_services, set()
        return taken

    def admitted_nodes(self) -> Iterator[Node]:
        """Every node that stands, own cluster first."""
        standing = self.holdings.standing
        for holder in sorted(standing, key=lambda holder: (holder.cluster != self.own, holder)):
            yield standing[holder].node

    def node(self, cluster: str, name: str) -> Node | None:
        """The node if it stands: as it stands, where something it wants by now is refused."""
        standing = self.holdings.standing.get(Holder(cluster, name))
        return None if standing is None else standing.node

    def endpoint(self, address: Address) -> Endpoint | None:
        """Who is at `address`, from the one cluster that may say so."""
        holder = self.holdings.claims.owner(address)
        rulings = self._rulings.get(self.own if holder is None else holder.cluster)
        return None if rulings is None else rulings.endpoint(address)

    def pod(self, address: Address, cluster_id: int) -> Endpoint | None:
        """Who is at `address`, of a node of the cluster with this id. None for a pod in its node's network: what is
        known is that the node is there."""
        holder = self.holdings.claims.owner(address)
        self.rule(address)
        endpoint = None if holder is None else self.endpoint(address)
        if holder is None or endpoint is None or endpoint.identity == REMOTE_NODE or endpoint.host_ip == address:
            return None
        return endpoint if self.holdings.standing[holder].node.cluster_id == cluster_id else None

    def services_at(self, address: Address) -> set[ServiceName]:
        """The own services that are called at `address`, and all that a peer has a backend of there."""
        place = single(address)
        of_peers = (name for rulings in self._rulings.values() for name in rulings.services_in(place))
        return {*self.holdings.services_in(place), *of_peers}

    def service(self, cluster: str, name: ServiceName) -> Service:
        """The service `name` that `cluster` has, without backends that are not its to name."""
        return self._rulings[cluster].service(name)

    def own_service(self, name: ServiceName) -> LocalService | None:
        """The service `name` of the own cluster."""
        return self.views[self.own].own_service(name)

    def remote_services(self, name: ServiceName) -> list[Service]:
        """The service `name` as every other cluster in use has it, without backends that are not theirs to name."""
        return [
            self.service(cluster, name)
            for cluster in self._order
            if cluster != self.own and cluster not in self.withheld and name in self.views[cluster].services
        ]

    def _view(self, cluster: str) -> View:
        view = self.views.get(cluster)
        if view is None:
            view = self.views[cluster] = View()
            self._rulings[cluster] = Rulings(cluster, view, self.holdings)
            self._order = [self.own, *sorted(name for name in self.views if name != self.own)]
        return view

    def _take(self, cluster: str, kind: str, name: Any, before: Any, value: Any) -> Any:
        """As much of `value` as there is room for, None for nothing."""
        if cluster == self.own:
            return value
        limits = self.holdings.authority(cluster).limits
        return self._rulings[cluster].room.take(kind, name, before, value, limits)

    def _changed(self, cluster: str, kind: str, name: Any, before: Any, value: Any) -> None:
        if (on_change := _ON_CHANGE.get(kind)) is not None:
            on_change(self, cluster, name, before, value)
        self._wake()

    def _wake(self) -> None:
        for callback in self.on_dirty:
            callback()

    def _node_changed(self, cluster: str, name: str, _before: Node | None, node: Node | None) -> None:
        self._dirty_nodes.add((cluster, name))
        self._settle(self._admission.put(Holder(cluster, name), node))

    def _endpoint_changed(self, cluster: str, name: Address | Prefix, before: Any, value: Endpoint | None) -> None:
        if not isinstance(name, Prefix):  # CIDRs come with their nodes
            self._rulings[cluster].take_endpoint(name, before, value)
            self._dirty_addresses.add(name)
            if name in self.watched:
                self._dirty_services |= self.watched[name]

    def _service_changed(self, cluster: str, name: ServiceName, before: Service | None, value: Service | None) -> None:
        if cluster == self.own:
            if name not in self.views[cluster].local_services:
                self._own_service_changed(name, from_shared(before), from_shared(value))
            return
        self._rulings[cluster].take_service(name, before, value)
        self._dirty_services.add(name)

    def _local_service_changed(
        self, cluster: str, name: ServiceName, before: LocalService | None, value: LocalService | None
    ) -> None:
        told = from_shared(self._view(cluster).services.get(name))
        self._own_service_changed(name, before or told, value or told)

    def _own_service_changed(self, name: ServiceName, before: LocalService | None, value: LocalService | None) -> None:
        had, has = (set() if each is None else each.service.frontends.keys() for each in (before, value))
        for address in had - has:
            self._settle(self._admission.unserve(address, name))
        for address in has - had:
            self.holdings.serve(address, name)
        for address in had ^ has:  # no peer's backend is where a service of ours is
            if (holder := self.holdings.claims.owner(address)) is not None and holder.cluster != self.own:
                self._moved(holder.cluster, [single(address)])
        self._dirty_services.add(name)

    def _settle(self, verdicts: Iterable[Verdict]) -> None:
        """What was decided about nodes reaches everything that rests on them."""
        moved = dict[str, set[Prefix]]()
        for verdict in verdicts:
            self._tell(verdict)
            for cluster in {verdict.holder.cluster, self.own}:
                moved.setdefault(cluster, set()).update(verdict.moved)
        for cluster, prefixes in moved.items():
            self._moved(cluster, prefixes)

    def _tell(self, verdict: Verdict) -> None:
        holder, refusal, moved = verdict
        if rulings := self._rulings.get(holder.cluster):
            rulings.refusals.set("nodes", holder.node, refusal)
        self._dirty_nodes.add((holder.cluster, holder.node))
        for callback in self.on_verdict:
            callback(holder.cluster)
        for prefix in moved:
            if prefix.length == BITS:  # a node is there now, or was
                self._dirty_services.update(self.holdings.services_in(prefix))

    def _moved(self, cluster: str, prefixes: Iterable[Prefix]) -> None:
        """They are another's now: what `cluster` has there is decided on again."""
        if (rulings := self._rulings.get(cluster)) is not None:
            places = outermost(prefixes)
            self._doubt(((rulings, prefix), cluster, rulings.concerned(prefix)) for prefix in places)

    def _doubt(self, doubts: Iterable[tuple[Hashable, str, Iterator[Address | ServiceName]]]) -> None:
        """What a cluster has somewhere is to be planned, and decided on again. Small matters at once."""
        behind = bool(self._doubts)
        for place, cluster, names in doubts:
            self._doubts.add(place, cluster, names)
        if not behind:
            self._doubt_some()

    def _doubt_some(self) -> None:
        watched: Mapping[Any, set[ServiceName]] = self.watched
        for cluster, names in self._doubts.go_on():
            for name in names:
                dirty: set[Any] = self._dirty_services if isinstance(name, tuple) else self._dirty_addresses
                dirty.add(name)
                if name in watched:
                    self._dirty_services |= watched[name]
                if cluster and cluster not in (waiting := self._unruled.get(name, ())):
                    self._unruled[name] = (*waiting, cluster)


def _emptied(table: dict[Any, Any]) -> Iterator[Address | ServiceName]:
    """The names in a table that nobody uses any more, each with what it was: freed at once, they would be a hold."""
    while table:
        name, _ = table.popitem()
        if not isinstance(name, Prefix):
            yield name


_ON_CHANGE: Final[Mapping[str, Callable[[MeshState, str, Any, Any, Any], None]]] = {
    "nodes": MeshState._node_changed,
    "endpoints": MeshState._endpoint_changed,
    "services": MeshState._service_changed,
    "local_services": MeshState._local_service_changed,
}
