"""Which Nodes stand: the one place where prefixes, addresses and WireGuard keys are given to nodes. Pure.

A Node is admitted with all it wants or refused with one reason. Whoever stands keeps what it has, against everyone and
against the own cluster too, and also where it wants something else that it cannot have. A refused Node is remembered
beside what stood in its way, and decided on again when that is gone; so one change costs what it touches, not all there
is. Thousands may wait for one thing: a change decides on as many as a turn has room for, and `go_on` on the others;
until then each is what it was. The own cluster's nodes wait for no turn. No peer's node stands before the own cluster
is known: the first word about our prefixes is not a peer's. What an agent before this one has kept stood beside its
services: while that is restored no service is in a Node's way.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Set
from typing import Final, NamedTuple

from clustermesh.address import Address, Prefix, masked, nobodys, prefix_text, single, text
from clustermesh.mesh.address_index import AddressBook
from clustermesh.mesh.authority import Authority, Ground, Place, judge_address, judge_prefix
from clustermesh.mesh.claims import Claim, Claims, Holder
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.model import Node


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


class Verdict(NamedTuple):
    """`holder` was decided on: it is refused, or it stands, or it is gone. `moved` changed hands by that. One that is
    refused and stood before stands as it did."""

    holder: Holder
    refusal: Refusal | None
    moved: frozenset[Prefix]


class _Objection(NamedTuple):
    """`blocker` is what has to go, or to change, before it is worth asking again."""

    refusal: Refusal
    blocker: Hashable


class _Room(NamedTuple):
    """For one more pod CIDR of a cluster."""

    cluster: str


_NOTHING: Final = Wanted((), (), "", Node(cluster="", cluster_id=0, name=""))
_NOBODY: Final = Holder("", "")
_NEVER: Final = object()  # in the way until the node itself, or what its cluster may say, is another
_TOO_LONG: Final = object()  # as that, and nothing of the node was looked at
_OWN: Final = object()  # that the own cluster is not known yet
_TURN: Final = 128  # prefixes and addresses that are looked at in one turn, or one node's
_NAMEABLE: Final = frozenset({Reason.NOT_ALLOWED, Reason.LOCAL})  # what an operator may allow all the same
_NOT_YET: Final = Refusal(Reason.WAITING, "waits until this cluster's own nodes are known")


def wanted_by(node: Node) -> Wanted:
    """Pod CIDRs; internal addresses, where pods in the host's network are, and where its tunnels end; the key."""
    internal = [address.ip for address in node.addresses if address.type == "InternalIP"]
    ends = [] if node.underlay is None else [node.underlay]
    addresses = tuple(dict.fromkeys(internal + ends))
    return Wanted(tuple(dict.fromkeys(node.pod_cidrs)), addresses, node.wireguard_public_key, node)


class Admission:
    """The nodes of all clusters. Every change returns the verdicts it led to, those of other nodes included."""

    def __init__(self, own: str, turn: int = _TURN) -> None:
        self.claims = Claims()
        self.ground = Ground()
        self.standing: dict[Holder, Wanted] = {}
        self.restoring = False
        self.own, self._own_is_known = own, False
        self._turn = turn
        self._authorities: dict[str, Authority] = {}
        self._keys: dict[str, Holder] = {}
        self._prefixes: Counter[str] = Counter()  # how many stand or are refused after a look at them, by cluster
        self._refused: dict[Holder, tuple[Wanted, Hashable]] = {}  # and by what
        self._blocked: dict[tuple[Hashable, bool], dict[Holder, None]] = {}  # by what stands in the way, and if own
        self._freed: dict[Hashable, set[Holder]] = {}  # what is offered to those who wait for it, and who was asked
        self._anew: dict[Holder, None] = {}  # to be judged by what their cluster may say now
        self._services: AddressBook[tuple[str, str]] = AddressBook()  # cluster IPs of the own cluster
        self._homeless: AddressBook[Holder] = (
            AddressBook()
        )  # addresses of refused own nodes: they are there all the same

    def authority(self, cluster: str) -> Authority:
        """What `cluster` may say; the least where nobody said."""
        return self._authorities.get(cluster) or Authority(name=cluster)

    def put(self, holder: Holder, node: Node | None) -> list[Verdict]:
        """`node` is what `holder` is now; None for gone."""
        if node is None:
            return self._decide(holder, None)
        wanted, (refused, blocker) = wanted_by(node), self._refused.get(holder, (None, None))
        if wanted.is_as(refused):
            self._refused[holder] = wanted, blocker
        elif refused is None and wanted.is_as(self.standing.get(holder)):
            self.standing[holder] = wanted
        else:
            return self._decide(holder, wanted)
        return []

    def admit_peers(self) -> list[Verdict]:
        """The own cluster is known. Calling it twice is calling it once."""
        self._own_is_known = True
        return self._retry([_OWN])

    def authorize(self, authority: Authority) -> list[Verdict]:
        """All nodes of a cluster are judged anew."""
        if self._authorities.get(authority.name) == authority:
            return []
        self._authorities[authority.name] = authority
        known = {**self.standing, **self._refused}
        behind = self.is_behind
        self._anew |= {holder: None for holder in known if holder.cluster == authority.name}
        return [] if behind else self.go_on()

    def stand_on(self, ground: Ground) -> list[Verdict]:
        """Decide on those that were refused for a place that is no more. Those that stand keep what they have."""
        gone = self.ground.places - ground.places
        self.ground = ground
        return self._retry(sorted(gone))

    @property
    def is_behind(self) -> bool:
        """Whether nodes are left to decide on."""
        return bool(self._anew or self._freed)

    def go_on(self) -> list[Verdict]:
        """One turn of what is left to decide."""
        verdicts, left = list[Verdict](), self._turn
        while left > 0 and self.is_behind:
            left -= self._judge_anew(verdicts) if self._anew else self._offer(verdicts)
        return verdicts

    def lives_at(self, address: Address) -> str:
        """What is at `address` that this machine has to reach itself, whatever service is said to be there; or ""."""
        alone = single(address)
        for place in self.ground.is_at(address):
            if place.lifeline and place.cluster in ("", self.own):  # another's etcd is where that cluster says it is
                return place.what
        if clash := nobodys(alone):
            return f"an address in {prefix_text(clash)}, which is no cluster's"
        claim = self.claims.around(alone)
        if claim is not None and claim.prefix == alone:
            return str(claim.holder)
        return next((str(holder) for _, holder in self._homeless.inside(alone)), "")

    def services_in(self, prefix: Prefix) -> list[tuple[str, str]]:
        """The own services whose cluster IPs lie in `prefix`."""
        return [service for _, service in self._services.inside(prefix)]

    @property
    def served(self) -> Set[Address]:
        """The cluster IPs of all own services."""
        return self._services.addresses

    def serve(self, address: Address, service: tuple[str, str]) -> None:
        """An own service is at the cluster IP `address`: a node that comes later may not take it."""
        self._services.add(address, service)

    def unserve(self, address: Address, service: tuple[str, str]) -> list[Verdict]:
        """Absent is fine."""
        self._services.discard(address, service)
        return self._retry([address])

    def _decide(self, holder: Holder, wanted: Wanted | None) -> list[Verdict]:
        """What a node has is not judged again."""
        verdicts = list[Verdict]()
        return verdicts + self._retry(self._settle(holder, wanted, verdicts))

    def _retry(self, blockers: Iterable[Hashable]) -> list[Verdict]:
        """Small matters at once."""
        verdicts, behind = list[Verdict](), self.is_behind
        self._free(blockers, verdicts)
        return verdicts if behind else verdicts + self.go_on()

    def _free(self, blockers: Iterable[Hashable], verdicts: list[Verdict]) -> None:
        """The own cluster is asked at once: nobody comes between."""
        freed = deque(blockers)
        while freed:
            blocker, tried = freed.popleft(), set[Holder]()
            while (holder := self._next_waiting(blocker, True, tried)) is not None:
                tried.add(holder)
                freed.extend(self._settle(holder, self._refused[holder][0], verdicts))
            if (blocker, False) in self._blocked:
                self._freed[blocker] = set()

    def _offer(self, verdicts: list[Verdict]) -> int:
        """What was freed first to the next who waits for it, until somebody has it; returns what that cost."""
        blocker, tried = next(iter(self._freed.items()))
        if (holder := self._next_waiting(blocker, False, tried)) is None:
            del self._freed[blocker]
            return 1
        tried.add(holder)
        wanted, _ = self._refused[holder]
        self._free(self._settle(holder, wanted, verdicts), verdicts)
        return 1 + len(wanted.claims)

    def _judge_anew(self, verdicts: list[Verdict]) -> int:
        holder = next(iter(self._anew))
        del self._anew[holder]
        wanted, _ = self._refused.get(holder) or (self.standing.get(holder), None)
        if wanted is None:
            return 1  # it has gone
        self._free(self._settle(holder, wanted, verdicts, anew=True), verdicts)
        return 1 + len(wanted.claims)

    def _next_waiting(self, blocker: Hashable, is_own: bool, tried: Set[Holder]) -> Holder | None:
        """In the order in which they were refused: who is refused again is last. None where the blocker is there."""
        first = next(iter(self._blocked.get((blocker, is_own), ())), None)
        return None if first is None or first in tried or self._is_taken(blocker) else first

    def _is_taken(self, blocker: Hashable) -> bool:
        if isinstance(blocker, Prefix):
            clash = self.claims.conflict(_NOBODY, blocker)
            return clash is not None and clash.prefix == blocker
        if isinstance(blocker, Place):
            return blocker in self.ground.places
        if isinstance(blocker, _Room):
            return self._prefixes[blocker.cluster] >= self.authority(blocker.cluster).limits.prefixes
        return blocker in self._keys

    def _settle(
        self, holder: Holder, wanted: Wanted | None, verdicts: list[Verdict], *, anew: bool = False
    ) -> list[Hashable]:
        """Decide on one; returns what is free now."""
        counted = self._prefixes[holder.cluster]
        before, left = self._dismiss(holder)
        homeless: tuple[Address, ...] = ()
        kept = _NOTHING if anew else before
        objection = None if wanted is None else self._object(holder, wanted, kept)
        if wanted is None or objection is None:
            after = wanted or _NOTHING
        else:
            homeless = self._refuse(holder, wanted, objection.blocker)
            after = _NOTHING if anew and self._object(holder, before, _NOTHING) else before
        self._enter(holder, after)
        moved = frozenset({*before.claims, *map(single, left)} ^ {*after.claims, *map(single, homeless)})
        verdicts.append(Verdict(holder, objection and objection.refusal, moved))
        freed: list[Hashable] = [*({*before.claims, before.key, *left} - {*after.claims, after.key, ""})]
        return [*freed, _Room(holder.cluster)] if self._prefixes[holder.cluster] < counted else freed

    def _dismiss(self, holder: Holder) -> tuple[Wanted, tuple[Address, ...]]:
        """What it had, and where it was though it was refused."""
        wanted, blocker = self._refused.pop(holder, (_NOTHING, None))
        place = blocker, holder.cluster == self.own
        if (blocked := self._blocked.get(place)) is not None:
            del blocked[holder]
            if not blocked:
                del self._blocked[place]
        for address in wanted.addresses:
            self._homeless.discard(address, holder)
        had = self.standing.pop(holder, _NOTHING)
        for prefix in had.claims:
            self.claims.withdraw(holder, prefix)
        self._prefixes[holder.cluster] -= len(had.prefixes) + _count(wanted, blocker)
        self._keys.pop(had.key, None)
        return had, wanted.addresses if holder.cluster == self.own else ()

    def _refuse(self, holder: Holder, wanted: Wanted, blocker: Hashable) -> tuple[Address, ...]:
        """Where it is all the same."""
        self._refused[holder] = wanted, blocker
        self._blocked.setdefault((blocker, holder.cluster == self.own), {})[holder] = None
        self._prefixes[holder.cluster] += _count(wanted, blocker)
        homeless = wanted.addresses if holder.cluster == self.own else ()
        for address in homeless:
            self._homeless.add(address, holder)
        return homeless

    def _enter(self, holder: Holder, wanted: Wanted) -> None:
        if wanted is _NOTHING:
            return
        self.standing[holder] = wanted
        self._prefixes[holder.cluster] += len(wanted.prefixes)
        for prefix in wanted.claims:
            self.claims.claim(holder, prefix)
        if wanted.key:
            self._keys[wanted.key] = holder

    def _object(self, holder: Holder, wanted: Wanted, kept: Wanted) -> _Objection | None:
        authority = None if holder.cluster == self.own else self.authority(holder.cluster)
        if authority is not None and (found := self._object_to_coming(holder, authority, wanted)):
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

    def _object_to_coming(self, holder: Holder, authority: Authority, wanted: Wanted) -> _Objection | None:
        """Before anything is compared: whether it is time for a peer's node, and whether there is room for it."""
        if not self._own_is_known:
            return _Objection(_NOT_YET, _OWN)
        limits = authority.limits
        if len(wanted.claims) > limits.node_prefixes:
            why = f"has {len(wanted.claims)} pod CIDRs and addresses, and the limit is {limits.node_prefixes}"
            return _Objection(Refusal(Reason.LIMIT, why), _TOO_LONG)
        if self._prefixes[holder.cluster] + len(wanted.prefixes) > limits.prefixes:
            why = f"is one too many: the pod CIDRs of its cluster would be more than {limits.prefixes}"
            return _Objection(Refusal(Reason.LIMIT, why), _Room(holder.cluster))
        return None

    def _object_to_address(self, holder: Holder, authority: Authority | None, address: Address) -> _Objection | None:
        shown = f"node address {text(address)}"
        if refusal := judge_address(authority, address, self.ground):
            places = (place for place in self.ground.is_at(address) if place.cluster != holder.cluster)
            return _Objection(refusal, next(places, _NEVER) if refusal.reason is Reason.LOCAL else _NEVER)
        if found := _taken(shown, single(address), self.claims.conflict(holder, single(address))):
            return found
        if authority is None:
            return None
        return self._object_to_homeless(shown, single(address)) or self._object_to_service(shown, single(address))

    def _object_to_prefix(self, holder: Holder, authority: Authority | None, prefix: Prefix) -> _Objection | None:
        shown = f"pod CIDR {prefix_text(prefix)}"
        refusal = judge_prefix(authority, prefix, self.ground)
        objection = refusal and _Objection(refusal, self._place_in(prefix, refusal.reason) or _NEVER)
        if objection and refusal and refusal.reason not in _NAMEABLE:
            return objection
        if found := _taken(shown, prefix, self.claims.conflict(holder, prefix)):  # then naming it would be no remedy
            return found
        if objection:
            return objection
        if authority is None:
            return None
        if found := self._object_to_homeless(shown, prefix):
            return found
        return None if authority.allows(prefix) else self._object_to_service(shown, prefix)

    def _place_in(self, prefix: Prefix, reason: Reason) -> Place | None:
        """The place that `prefix` was refused for."""
        if reason is Reason.CUTS_OFF:
            return self.ground.cut_off_by(prefix)
        return self.ground.at(prefix) if reason is Reason.LOCAL else None

    def _object_to_homeless(self, shown: str, prefix: Prefix) -> _Objection | None:
        for address, holder in self._homeless.inside(prefix):
            return _Objection(Refusal(Reason.CUTS_OFF, f"{shown} {_is_at(prefix, address)} {holder} is"), address)
        return None

    def _object_to_service(self, shown: str, prefix: Prefix) -> _Objection | None:
        for address, service in () if self.restoring else self._services.inside(prefix):
            why = f"{shown} {_is_at(prefix, address)} the service {'/'.join(service)} of this cluster is"
            return _Objection(Refusal(Reason.LOCAL, why), address)
        return None

    def _object_to_key(self, key: str) -> _Objection | None:
        """The first node to have a key is the one who made it: another cannot use it, but could cut its tunnels."""
        if key not in self._keys:
            return None
        return _Objection(Refusal(Reason.TAKEN, f"WireGuard key {key} is {self._keys[key]}'s"), key)


def _count(wanted: Wanted, blocker: Hashable) -> int:
    """How many pod CIDRs of a refused node take room: where that was refused for its size, they do not."""
    return 0 if blocker in (_OWN, _TOO_LONG) or isinstance(blocker, _Room) else len(wanted.prefixes)


def _taken(shown: str, prefix: Prefix, clash: Claim | None) -> _Objection | None:
    if clash is None:
        return None
    if clash.prefix == prefix:
        return _Objection(Refusal(Reason.TAKEN, f"{shown} is {clash.holder}'s"), clash.prefix)
    why = f"{shown} overlaps {prefix_text(clash.prefix)} of {clash.holder}"
    return _Objection(Refusal(Reason.TAKEN, why), clash.prefix)


def _is_at(prefix: Prefix, address: Address) -> str:
    return "is where" if prefix == single(address) else f"holds {text(address)}, where"


def _object_to_itself(wanted: Wanted) -> _Objection | None:
    prefixes = {*wanted.prefixes}
    for length in {prefix.length for prefix in prefixes}:
        for address in wanted.addresses:
            if (prefix := Prefix(masked(address, length), length)) in prefixes:
                shown = f"pod CIDR {prefix_text(prefix)} holds its own node address {text(address)}"
                return _Objection(Refusal(Reason.CUTS_OFF, f"{shown}, which nobody could reach any more"), _NEVER)
    return None
