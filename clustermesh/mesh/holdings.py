"""What is held and by whom: the pod CIDRs, addresses and WireGuard keys of the nodes that stand, the cluster IPs of the
own services, the ground; and what of that is in the way of a Node. Pure.

Nothing is decided here: who is asked when, and who waits for what, is `clustermesh.mesh.admission`. What an agent
before this one has kept stood beside its services: while that is restored no service is in a Node's way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Set
from typing import Final, NamedTuple

from clustermesh.address import Address, Prefix, masked, nobodys, prefix_text, single, text
from clustermesh.mesh.address_index import AddressBook
from clustermesh.mesh.authority import ALL_PORTS, TOGETHER, Authority, Ground, Place, judge_address, judge_prefix
from clustermesh.mesh.claims import Claim, Claims, Holder
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.mesh.room import SharedRoom
from clustermesh.model import Node, Protocol


class Wanted(NamedTuple):
    """What `node` takes for itself: its pod CIDRs, its addresses, its WireGuard key ("" for none)."""

    prefixes: tuple[Prefix, ...]
    addresses: tuple[Address, ...]
    key: str
    node: Node

    @property
    def claims(self) -> tuple[Prefix, ...]:
        """All of it that is addresses."""
        return self.prefixes + tuple(single(address) for address in self.addresses)

    def is_as(self, other: Wanted | None) -> bool:
        """Whether the two want the same, whatever else has changed."""
        return other is not None and self[:3] == other[:3]


class Objection(NamedTuple):
    """`blocker` is what has to go, or to change, before it is worth asking again."""

    refusal: Refusal
    blocker: Hashable


class Share(NamedTuple):
    """What all nodes of a cluster ("": of all peers) have of one kind, as it is called in Wanted and in Limits."""

    cluster: str
    kind: str


NOTHING: Final = Wanted((), (), "", Node(cluster="", cluster_id=0, name=""))
NEVER: Final = object()  # in the way until the node itself, or what its cluster may say, is another
TOO_LONG: Final = object()  # as that, and nothing of the node was looked at
OWN: Final = object()  # that the own cluster is not known yet
_NOBODY: Final = Holder("", "")
SHARED: Final = {"prefixes": "pod CIDRs", "addresses": "addresses"}
OF_ALL: Final = Share("", "prefixes")
_NAMEABLE: Final = frozenset({Reason.NOT_ALLOWED, Reason.LOCAL})  # what an operator may allow all the same
_NOT_YET: Final = Refusal(Reason.WAITING, "waits until this cluster's own nodes are known")


def wanted_by(node: Node) -> Wanted:
    """Pod CIDRs; internal addresses, where pods in the host's network are, and where its tunnels end; the key."""
    internal = [address.ip for address in node.addresses if address.type == "InternalIP"]
    ends = [] if node.underlay is None else [node.underlay]
    addresses = tuple(dict.fromkeys(internal + ends))
    return Wanted(tuple(dict.fromkeys(node.pod_cidrs)), addresses, node.wireguard_public_key, node)


class Holdings:
    """Who holds what. `standing` are the nodes that stand, with what they do."""

    def __init__(self, own: str, together: Mapping[str, int] = TOGETHER) -> None:
        self.own, self.own_is_known = own, False
        self.together = SharedRoom(together)
        self.restoring = False
        self.restored: set[Holder] = set()  # those that were put while it was so, and are not decided on yet
        self.ground = Ground()
        self.claims = Claims()
        self.standing: dict[Holder, Wanted] = {}
        self.authorities: dict[str, Authority] = {}
        self._keys: dict[str, Holder] = {}
        # By cluster and kind: of the nodes that stand, or are refused after a look at them.
        self._shares: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._services: AddressBook[tuple[str, str]] = AddressBook()  # cluster IPs of the own cluster
        # Addresses of refused own nodes: they are there all the same.
        self._homeless: AddressBook[Holder] = AddressBook()

    def authority(self, cluster: str) -> Authority:
        """What `cluster` may say; where nobody said, it has no identities to give."""
        return self.authorities.get(cluster) or Authority(name=cluster, identities=range(0))

    # -- what is told --------------------------------------------------------------------------------------------------

    def enter(self, holder: Holder, wanted: Wanted) -> None:
        """It stands with all it wants."""
        if wanted is NOTHING:
            return
        self.standing[holder] = wanted
        self._share(holder.cluster, wanted, 1)
        self._fill(holder, wanted, 1)
        for prefix in wanted.claims:
            self.claims.claim(holder, prefix)
        if wanted.key:
            self._keys[wanted.key] = holder

    def leave(self, holder: Holder) -> Wanted:
        """Undo `enter`; returns what it stood with."""
        had = self.standing.pop(holder, NOTHING)
        if had is not NOTHING:
            self._share(holder.cluster, had, -1)
            self._fill(holder, had, -1)
            for prefix in had.claims:
                self.claims.withdraw(holder, prefix)
            self._keys.pop(had.key, None)
        return had

    def refuse(self, holder: Holder, wanted: Wanted, blocker: Hashable) -> tuple[Address, ...]:
        """It is refused for `blocker`; returns where it is all the same."""
        if _was_looked_at(blocker):
            self._share(holder.cluster, wanted, 1)
        homeless = wanted.addresses if holder.cluster == self.own else ()
        for address in homeless:
            self._homeless.add(address, holder)
        return homeless

    def accept(self, holder: Holder, wanted: Wanted, blocker: Hashable) -> tuple[Address, ...]:
        """Undo `refuse`; returns as that."""
        if _was_looked_at(blocker):
            self._share(holder.cluster, wanted, -1)
        homeless = wanted.addresses if holder.cluster == self.own else ()
        for address in homeless:
            self._homeless.discard(address, holder)
        return homeless

    def serve(self, address: Address, service: tuple[str, str]) -> None:
        """An own service is at the cluster IP `address`: a node that comes later may not take it."""
        self._services.add(address, service)

    def unserve(self, address: Address, service: tuple[str, str]) -> None:
        """Absent is fine."""
        self._services.discard(address, service)

    def _share(self, cluster: str, wanted: Wanted, sign: int) -> None:
        shares = self._shares[cluster]
        shares["prefixes"] += sign * len(wanted.prefixes)
        shares["addresses"] += sign * len(wanted.addresses)

    def _fill(self, holder: Holder, wanted: Wanted, sign: int) -> None:
        """What stands of peers is in the kernel's map."""
        if holder.cluster != self.own:
            self.together.use(OF_ALL.kind, sign * len(wanted.prefixes))

    # -- what is asked -------------------------------------------------------------------------------------------------

    @property
    def served(self) -> Set[Address]:
        """The cluster IPs of all own services."""
        return self._services.addresses

    def services_in(self, prefix: Prefix) -> list[tuple[str, str]]:
        """The own services whose cluster IPs lie in `prefix`."""
        return [service for _, service in self._services.inside(prefix)]

    def lives_at(self, address: Address) -> str:
        """What is at `address` that this machine has to reach itself, whatever service is said to be there; or ""."""
        alone = single(address)
        for place in self.ground.is_at(address):
            if place.lifeline and place.cluster in ("", self.own):  # another's etcd is where that cluster says it is
                return place.what
        if clash := nobodys(alone):
            return f"an address in {prefix_text(clash)}, which is no cluster's"
        claim = self.claims.around(alone)
        if claim is not None and address in self.standing[claim.holder].addresses:
            return str(claim.holder)
        return next(map(str, self._homeless.at(address)), "")

    def lives_at_port(self, address: Address, protocol: Protocol, port: int) -> str:
        """As `lives_at` of a service that says it is reached at an address which others may have, too: the rest of what
        is there stays where it is."""
        for place in self.ground.is_at(address):
            is_called = place.ports == ALL_PORTS or (protocol is Protocol.TCP and port in place.ports)
            if place.lifeline and place.cluster in ("", self.own) and is_called:
                return place.what
        clash = nobodys(single(address))
        return f"an address in {prefix_text(clash)}, which is no cluster's" if clash else ""

    def shares(self, cluster: str) -> dict[Share, int]:
        """How many pod CIDRs and addresses the nodes of a cluster have, and those of all peers: there are limits."""
        shares = self._shares[cluster]
        return {Share(cluster, kind): shares[kind] for kind in SHARED} | {
            OF_ALL: self.together.used.get(OF_ALL.kind, 0)
        }

    def is_taken(self, blocker: Hashable) -> bool:
        """Whether `blocker` is in the way still."""
        if isinstance(blocker, Prefix):
            clash = self.claims.conflict(_NOBODY, blocker)
            return clash is not None and clash.prefix == blocker
        if isinstance(blocker, Place):
            return blocker in self.ground.places
        if blocker == OF_ALL:
            return not self.together.has_room(OF_ALL.kind, 1)
        if isinstance(blocker, Share):
            most: int = getattr(self.authority(blocker.cluster).limits, blocker.kind)
            return self._shares[blocker.cluster][blocker.kind] >= most
        return blocker in self._keys

    def object(self, holder: Holder, wanted: Wanted, kept: Wanted) -> Objection | None:
        """Why it cannot have what it wants, None where it can. What it `kept` is not judged again."""
        authority = None if holder.cluster == self.own else self.authority(holder.cluster)
        if authority is not None and (found := self._object_to_coming(authority, wanted)):
            return found
        if found := _object_to_itself(wanted):
            return found
        for address in wanted.addresses:
            if address not in kept.addresses and (found := self._object_to_address(holder, authority, address)):
                return found
        for prefix in wanted.prefixes:
            if prefix not in kept.prefixes and (found := self._object_to_prefix(holder, authority, prefix)):
                return found
        return self._object_to_key(wanted.key)

    def _object_to_coming(self, authority: Authority, wanted: Wanted) -> Objection | None:
        """Before anything is compared: whether it is time for a peer's node, and whether there is room for it."""
        if not self.own_is_known:
            return Objection(_NOT_YET, OWN)
        limits, shares = authority.limits, self._shares[authority.name]
        if (number := len(wanted.prefixes) + len(wanted.addresses)) > limits.node_prefixes:
            why = f"has {number} pod CIDRs and addresses, and the limit is {limits.node_prefixes}"
            return Objection(Refusal(Reason.LIMIT, why), TOO_LONG)
        for kind, called in SHARED.items():
            if shares[kind] + len(getattr(wanted, kind)) > (most := getattr(limits, kind)):
                why = f"is one too many: the {called} of its cluster would be more than {most}"
                return Objection(Refusal(Reason.LIMIT, why), Share(authority.name, kind))
        if not self.together.has_room(OF_ALL.kind, len(wanted.prefixes)):
            why = f"is one too many: the {SHARED[OF_ALL.kind]} of all peers would be more than"
            return Objection(Refusal(Reason.FULL, f"{why} {self.together.most[OF_ALL.kind]}"), OF_ALL)
        return None

    def _object_to_address(self, holder: Holder, authority: Authority | None, address: Address) -> Objection | None:
        shown = f"node address {text(address)}"
        if refusal := judge_address(authority, address, self.ground):
            places = (place for place in self.ground.is_at(address) if place.cluster != holder.cluster)
            return Objection(refusal, next(places, NEVER) if refusal.reason is Reason.LOCAL else NEVER)
        if found := _taken(shown, single(address), self.claims.conflict(holder, single(address))):
            return found
        if authority is None:
            return None
        return self._object_to_homeless(shown, single(address)) or self._object_to_service(
            holder, shown, single(address)
        )

    def _object_to_prefix(self, holder: Holder, authority: Authority | None, prefix: Prefix) -> Objection | None:
        shown = f"pod CIDR {prefix_text(prefix)}"
        refusal = judge_prefix(authority, prefix, self.ground)
        objection = refusal and Objection(refusal, self._place_in(prefix, refusal.reason) or NEVER)
        if objection and objection.refusal.reason not in _NAMEABLE:
            return objection
        if found := _taken(shown, prefix, self.claims.conflict(holder, prefix)):  # then naming it would be no remedy
            return found
        if objection or authority is None:
            return objection
        if found := self._object_to_homeless(shown, prefix):
            return found
        return None if authority.allows(prefix) else self._object_to_service(holder, shown, prefix)

    def _place_in(self, prefix: Prefix, reason: Reason) -> Place | None:
        """The place that `prefix` was refused for."""
        if reason is Reason.CUTS_OFF:
            return self.ground.cut_off_by(prefix)
        return self.ground.at(prefix) if reason is Reason.LOCAL else None

    def _object_to_homeless(self, shown: str, prefix: Prefix) -> Objection | None:
        for address, holder in self._homeless.inside(prefix):
            return Objection(Refusal(Reason.CUTS_OFF, f"{shown} {_is_at(prefix, address)} {holder} is"), address)
        return None

    def _object_to_service(self, holder: Holder, shown: str, prefix: Prefix) -> Objection | None:
        if self.restoring or holder in self.restored:
            return None
        for address, service in self._services.inside(prefix):
            why = f"{shown} {_is_at(prefix, address)} the service {'/'.join(service)} of this cluster is"
            return Objection(Refusal(Reason.LOCAL, why), address)
        return None

    def _object_to_key(self, key: str) -> Objection | None:
        """The first node to have a key is the one who made it: another cannot use it, but could cut its tunnels."""
        if key not in self._keys:
            return None
        return Objection(Refusal(Reason.TAKEN, f"WireGuard key {key} is {self._keys[key]}'s"), key)


def _was_looked_at(blocker: Hashable) -> bool:
    """Whether a node that was refused for this takes room: where it was for its size, it does not."""
    return blocker not in (OWN, TOO_LONG) and not isinstance(blocker, Share)


def _taken(shown: str, prefix: Prefix, clash: Claim | None) -> Objection | None:
    if clash is None:
        return None
    if clash.prefix == prefix:
        return Objection(Refusal(Reason.TAKEN, f"{shown} is {clash.holder}'s"), clash.prefix)
    why = f"{shown} overlaps {prefix_text(clash.prefix)} of {clash.holder}"
    return Objection(Refusal(Reason.TAKEN, why), clash.prefix)


def _is_at(prefix: Prefix, address: Address) -> str:
    return "is where" if prefix == single(address) else f"holds {text(address)}, where"


def _object_to_itself(wanted: Wanted) -> Objection | None:
    prefixes = {*wanted.prefixes}
    for length in {prefix.length for prefix in prefixes}:
        for address in wanted.addresses:
            if (prefix := Prefix(masked(address, length), length)) in prefixes:
                shown = f"pod CIDR {prefix_text(prefix)} holds its own node address {text(address)}"
                return Objection(Refusal(Reason.CUTS_OFF, f"{shown}, which nobody could reach any more"), NEVER)
    return None
