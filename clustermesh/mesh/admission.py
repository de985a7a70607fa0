"""Which Nodes stand: the one place where prefixes, addresses and WireGuard keys are given to nodes. Pure.

A Node is admitted with all it wants or refused with one reason. Whoever stands keeps what it has, against everyone and
against the own cluster too, and also where it wants something else that it cannot have. A refused Node is remembered
beside what stood in its way, and decided on again when that is gone; so one change costs what it touches, not all there
is. Thousands may wait for one thing, or go with their cluster: a change decides on as many as a turn has room for, and
`go_on` on the others; until then each is what it was. The own cluster's nodes wait for no turn. No peer's node stands
before the own cluster is known: the first word about our prefixes is not a peer's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Final, NamedTuple

from clustermesh.address import Address, Prefix, single
from clustermesh.mesh.authority import TOGETHER, Authority, Ground
from clustermesh.mesh.claims import Holder
from clustermesh.mesh.holdings import NEVER, NOTHING, OWN, Holdings, Objection, Wanted, wanted_by
from clustermesh.mesh.refusals import Reason, Refusal
from clustermesh.model import Node

_log = logging.getLogger(__name__)

_TURN: Final = 128  # prefixes and addresses that are looked at in one turn, or one node's


class Verdict(NamedTuple):
    """`holder` was decided on: it is refused, or it stands, or it is gone. `moved` changed hands by that. One that is
    refused and stood before stands as it did."""

    holder: Holder
    refusal: Refusal | None
    moved: frozenset[Prefix]


class Admission:
    """The nodes of all clusters. Every change returns the verdicts it led to, those of other nodes included."""

    def __init__(self, own: str, turn: int = _TURN, together: Mapping[str, int] = TOGETHER) -> None:
        self.holdings = Holdings(own, together)
        self._turn = turn
        self._refused: dict[Holder, tuple[Wanted, Hashable]] = {}  # and by what
        self._blocked: dict[tuple[Hashable, bool], dict[Holder, None]] = {}  # by what stands in the way, and if own
        self._freed: dict[Hashable, set[Holder]] = {}  # what is offered to those who wait for it, and who was asked
        self._anew: dict[Holder, bool] = {}  # to be judged by what their cluster may say now; or dropped, where True

    def put(self, holder: Holder, node: Node | None) -> list[Verdict]:
        """`node` is what `holder` is now; None for gone."""
        if node is None:
            return self._decide(holder, None)
        dropped = list[Verdict]()
        if self._anew.get(holder):
            del self._anew[holder]
            dropped = self._decide(holder, None)
        wanted, (refused, blocker) = wanted_by(node), self._refused.get(holder, (None, None))
        if wanted.is_as(refused):
            self._refused[holder] = wanted, blocker
        elif refused is None and wanted.is_as(self.holdings.standing.get(holder)):
            self.holdings.standing[holder] = wanted
        else:
            self.holdings.restored.discard(holder)
            return dropped + self._decide(holder, wanted)
        return []

    def admit_peers(self) -> list[Verdict]:
        """The own cluster is known. Calling it twice is calling it once."""
        self.holdings.own_is_known = True
        return self._retry([OWN])

    def authorize(self, authority: Authority) -> list[Verdict]:
        """All nodes of a cluster are judged anew."""
        if self.holdings.authorities.get(authority.name) == authority:
            return []
        self.holdings.authorities[authority.name] = authority
        behind = self.is_behind
        for holder in self._known(authority.name):
            self._anew.setdefault(holder, False)
        return [] if behind else self.go_on()

    def drop(self, cluster: str) -> list[Verdict]:
        """All nodes of a cluster are gone. Nothing that frees is offered before the last of them is."""
        behind = self.is_behind
        self._anew |= dict.fromkeys(self._known(cluster), True)
        return [] if behind else self.go_on()

    def _known(self, cluster: str) -> list[Holder]:
        """The refused first: dropped, none of them is to stand for a moment."""
        return [holder for holder in {**self._refused, **self.holdings.standing} if holder.cluster == cluster]

    def set_restoring(self, restoring: bool) -> None:
        """What was put while it was so, and is left to decide on, is decided on as it would have been then."""
        self.holdings.restoring = restoring
        self.holdings.restored = {*self._refused, *self._anew} if self.is_behind and not restoring else set()

    def stand_on(self, ground: Ground) -> list[Verdict]:
        """Decide on those that were refused for a place that is no more. Those that stand keep what they have."""
        gone = self.holdings.ground.places - ground.places
        self.holdings.ground = ground
        return self._retry(sorted(gone))

    def unserve(self, address: Address, service: tuple[str, str]) -> list[Verdict]:
        """An own service is no more at a cluster IP. Absent is fine."""
        self.holdings.unserve(address, service)
        return self._retry([address])

    @property
    def is_behind(self) -> bool:
        """Whether nodes are left to decide on."""
        return bool(self._anew or self._freed)

    def go_on(self) -> list[Verdict]:
        """One turn of what is left to decide."""
        verdicts, left = list[Verdict](), self._turn
        while left > 0 and self.is_behind:
            left -= self._judge_anew(verdicts) if self._anew else self._offer(verdicts)
        if not self.is_behind:
            self.holdings.restored.clear()
        return verdicts

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
        holder, dropped = next(iter(self._anew.items()))
        del self._anew[holder]
        wanted, _ = self._refused.get(holder) or (self.holdings.standing.get(holder), None)
        if wanted is None:
            return 1  # it has gone
        self._free(self._settle(holder, None if dropped else wanted, verdicts, anew=True), verdicts)
        return 1 + len(wanted.claims)

    def _next_waiting(self, blocker: Hashable, is_own: bool, tried: Set[Holder]) -> Holder | None:
        """In the order in which they were refused: who is refused again is last. None where the blocker is there."""
        first = next(iter(self._blocked.get((blocker, is_own), ())), None)
        return None if first is None or first in tried or self.holdings.is_taken(blocker) else first

    def _settle(
        self, holder: Holder, wanted: Wanted | None, verdicts: list[Verdict], *, anew: bool = False
    ) -> list[Hashable]:
        """Decide on one; returns what is free now."""
        holdings = self.holdings
        shares = holdings.shares(holder.cluster)
        left = self._accept(holder)
        before = holdings.leave(holder)
        homeless: tuple[Address, ...] = ()
        kept = NOTHING if anew else before
        objection = None if wanted is None else self._object(holder, wanted, kept)
        if wanted is None or objection is None:
            after = wanted or NOTHING
        else:
            homeless = self._refuse(holder, wanted, objection.blocker)
            after = NOTHING if anew and self._object(holder, before, NOTHING) else before
        holdings.enter(holder, after)
        moved = frozenset({*before.claims, *map(single, left)} ^ {*after.claims, *map(single, homeless)})
        verdicts.append(Verdict(holder, objection and objection.refusal, moved))
        freed: list[Hashable] = [*({*before.claims, before.key, *left} - {*after.claims, after.key, ""})]
        has = holdings.shares(holder.cluster)
        return freed + [share for share, had in shares.items() if has[share] < had]

    def _object(self, holder: Holder, wanted: Wanted, kept: Wanted) -> Objection | None:
        """A bug of ours that a node has found is that node's problem: it may be asked for in anybody's turn."""
        try:
            return self.holdings.object(holder, wanted, kept)
        except Exception as e:
            _log.exception("%s cannot be decided on", holder)
            return Objection(Refusal(Reason.GARBLED, f"cannot be decided on, see the log: {e!r}"), NEVER)

    def _refuse(self, holder: Holder, wanted: Wanted, blocker: Hashable) -> tuple[Address, ...]:
        """Where it is all the same."""
        self._refused[holder] = wanted, blocker
        self._blocked.setdefault((blocker, holder.cluster == self.holdings.own), {})[holder] = None
        return self.holdings.refuse(holder, wanted, blocker)

    def _accept(self, holder: Holder) -> tuple[Address, ...]:
        """Undo `_refuse`; returns as that."""
        if holder not in self._refused:
            return ()
        wanted, blocker = self._refused.pop(holder)
        place = blocker, holder.cluster == self.holdings.own
        del self._blocked[place][holder]
        if not self._blocked[place]:
            del self._blocked[place]
        return self.holdings.accept(holder, wanted, blocker)
