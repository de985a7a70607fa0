"""Which Nodes stand: the one place where prefixes, addresses and WireGuard keys are given to nodes. Pure.

A Node is admitted with all it wants or refused with one reason. Whoever stands keeps what it has, against everyone and
against the own cluster too. A refused Node is remembered beside what stood in its way, and decided on again when that
is gone; so one change costs what it touches, not all there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Final, NamedTuple

from clustermesh.address import Address, Prefix, contains, prefix_text, single, text
from clustermesh.mesh.address_index import AddressBook
from clustermesh.mesh.authority import Authority, Ground, judge_address, judge_prefix
from clustermesh.mesh.claims import Claim, Claims, Holder
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.model import Node


class Wanted(NamedTuple):
    """What a node takes for itself: its pod CIDRs, its addresses, its WireGuard key ("" for none)."""

    prefixes: tuple[Prefix, ...]
    addresses: tuple[Address, ...]
    key: str

    @property
    def claims(self) -> tuple[Prefix, ...]:
        """All of it that is addresses."""
        return self.prefixes + tuple(single(address) for address in self.addresses)


class Verdict(NamedTuple):
    """`holder` was decided on: it is refused, or it stands, or it is gone. `moved` changed hands by that."""

    holder: Holder
    refusal: Refusal | None
    moved: frozenset[Prefix]


class _Objection(NamedTuple):
    """`blocker` is what has to go, or to change, before it is worth asking again."""

    refusal: Refusal
    blocker: Hashable


_NOTHING: Final = Wanted((), (), "")
_GROUND: Final = object()  # the ground, or what the operator allowed


def wanted_by(node: Node) -> Wanted:
    """Pod CIDRs; internal addresses, where pods in the host's network are, and where its tunnels end; the key."""
    internal = [address.ip for address in node.addresses if address.type == "InternalIP"]
    ends = [] if node.underlay is None else [node.underlay]
    return Wanted(
        tuple(dict.fromkeys(node.pod_cidrs)), tuple(dict.fromkeys(internal + ends)), node.wireguard_public_key
    )


class Admission:
    """The nodes of all clusters. Every change returns the verdicts it led to, those of other nodes included."""

    def __init__(self, own: str) -> None:
        self.claims = Claims()
        self.ground = Ground()
        self.standing: dict[Holder, Wanted] = {}
        self._own = own
        self._authorities: dict[str, Authority] = {}
        self._keys: dict[str, Holder] = {}
        self._refused: dict[Holder, tuple[Wanted, Hashable]] = {}  # and by what
        self._blocked: dict[Hashable, dict[Holder, None]] = {}  # the same, by what stands in the way
        self._services: AddressBook[Hashable] = AddressBook()  # cluster IPs of the own cluster

    def authority(self, cluster: str) -> Authority:
        """What `cluster` may say; the least where nobody said."""
        return self._authorities.get(cluster) or Authority(name=cluster)

    def put(self, holder: Holder, node: Node | None) -> list[Verdict]:
        """`node` is what `holder` is now; None for gone."""
        wanted = None if node is None else wanted_by(node)
        if wanted is not None and wanted in (self.standing.get(holder), self._refused.get(holder, (None,))[0]):
            return []
        return self._decide({holder: wanted})

    def authorize(self, authority: Authority) -> list[Verdict]:
        """All nodes of a cluster are judged anew."""
        if self._authorities.get(authority.name) == authority:
            return []
        self._authorities[authority.name] = authority
        known = {**self.standing, **{holder: wanted for holder, (wanted, _) in self._refused.items()}}
        return self._decide({holder: wanted for holder, wanted in known.items() if holder.cluster == authority.name})

    def stand_on(self, ground: Ground) -> tuple[list[Verdict], set[Holder]]:
        """Decide on those the old ground refused. Those that stand keep what they have; the second result are the
        standing whose routes may have to go, or may come back."""
        moved = {place.prefix for place in ground.places ^ self.ground.places if place.lifeline}
        self.ground = ground
        verdicts = self._retry([_GROUND])
        return verdicts, {holder for each in moved if (holder := self.claims.owner(each.address)) is not None}

    def serve(self, address: Address, service: Hashable) -> None:
        """An own service is at the cluster IP `address`: a node that comes later may not take it."""
        self._services.add(address, service)

    def unserve(self, address: Address, service: Hashable) -> list[Verdict]:
        """Absent is fine."""
        self._services.discard(address, service)
        return self._retry([address])

    def _retry(self, blockers: Iterable[Hashable]) -> list[Verdict]:
        return self._decide({holder: self._refused[holder][0] for holder in self._waiting_for(blockers)})

    def _waiting_for(self, blockers: Iterable[Hashable]) -> list[Holder]:
        """The own cluster first, then in the order in which they were refused."""
        found = [holder for blocker in blockers for holder in self._blocked.get(blocker, ())]
        return sorted(dict.fromkeys(found), key=lambda holder: holder.cluster != self._own)

    def _decide(self, asked: Mapping[Holder, Wanted | None]) -> list[Verdict]:
        verdicts, queue = list[Verdict](), deque(asked.items())
        while queue:
            holder, wanted = queue.popleft()
            before = self._dismiss(holder)
            objection = None if wanted is None else self._object(holder, wanted)
            after = self._enter(holder, wanted, objection)
            moved = frozenset({*before.claims} ^ {*after.claims})
            verdicts.append(Verdict(holder, objection and objection.refusal, moved))
            freed = {*before.claims, before.key} - {*after.claims, after.key, ""}
            queue.extend((other, self._refused[other][0]) for other in self._waiting_for(freed))
        return verdicts

    def _dismiss(self, holder: Holder) -> Wanted:
        """What it had."""
        _, blocker = self._refused.pop(holder, (None, None))
        if (blocked := self._blocked.get(blocker)) is not None:
            del blocked[holder]
            if not blocked:
                del self._blocked[blocker]
        had = self.standing.pop(holder, _NOTHING)
        for prefix in had.claims:
            self.claims.withdraw(holder, prefix)
        self._keys.pop(had.key, None)
        return had

    def _enter(self, holder: Holder, wanted: Wanted | None, objection: _Objection | None) -> Wanted:
        """What it has."""
        if wanted is None:
            return _NOTHING
        if objection is not None:
            self._refused[holder] = wanted, objection.blocker
            self._blocked.setdefault(objection.blocker, {})[holder] = None
            return _NOTHING
        self.standing[holder] = wanted
        for prefix in wanted.claims:
            self.claims.claim(holder, prefix)
        if wanted.key:
            self._keys[wanted.key] = holder
        return wanted

    def _object(self, holder: Holder, wanted: Wanted) -> _Objection | None:
        authority = None if holder.cluster == self._own else self.authority(holder.cluster)
        if authority is not None and len(wanted.claims) > authority.limits.node_prefixes:
            why = f"has {len(wanted.claims)} pod CIDRs and addresses, and the limit is {authority.limits.node_prefixes}"
            return _Objection(Refusal(Reason.LIMIT, why), _GROUND)
        for address in wanted.addresses:
            if found := self._object_to_address(holder, authority, address, wanted.prefixes):
                return found
        for prefix in wanted.prefixes:
            if found := self._object_to_prefix(holder, authority, prefix):
                return found
        return self._object_to_key(wanted.key)

    def _object_to_address(
        self, holder: Holder, authority: Authority | None, address: Address, own_prefixes: tuple[Prefix, ...]
    ) -> _Objection | None:
        shown = f"node address {text(address)}"
        for prefix in own_prefixes:
            if contains(prefix, address):
                why = f"pod CIDR {prefix_text(prefix)} holds its own {shown}, which nobody could reach any more"
                return _Objection(Refusal(Reason.CUTS_OFF, why), _GROUND)
        if refusal := judge_address(authority, address, self.ground):
            return _Objection(refusal, _GROUND)
        return _taken(shown, single(address), self.claims.conflict(holder, single(address)))

    def _object_to_prefix(self, holder: Holder, authority: Authority | None, prefix: Prefix) -> _Objection | None:
        shown = f"pod CIDR {prefix_text(prefix)}"
        if refusal := judge_prefix(authority, prefix, self.ground):
            return _Objection(refusal, _GROUND)
        if found := _taken(shown, prefix, self.claims.conflict(holder, prefix)):
            return found
        if authority is None or authority.allows(prefix):
            return None
        for address, service in self._services.inside(prefix):
            name = "/".join(service) if isinstance(service, tuple) else service
            why = f"{shown} holds {text(address)}, where the service {name} of this cluster is"
            return _Objection(Refusal(Reason.LOCAL, why), address)
        return None

    def _object_to_key(self, key: str) -> _Objection | None:
        """The first node to have a key is the one who made it: another cannot use it, but could cut its tunnels."""
        if key not in self._keys:
            return None
        return _Objection(Refusal(Reason.TAKEN, f"WireGuard key {key} is {self._keys[key]}'s"), key)


def _taken(shown: str, prefix: Prefix, clash: Claim | None) -> _Objection | None:
    if clash is None:
        return None
    if clash.prefix == prefix:
        return _Objection(Refusal(Reason.TAKEN, f"{shown} is {clash.holder}'s"), clash.prefix)
    why = f"{shown} overlaps {prefix_text(clash.prefix)} of {clash.holder}"
    return _Objection(Refusal(Reason.TAKEN, why), clash.prefix)
