"""Who of a service's backends answers a call, and who only goes on with the calls it has. Pure.

    backends that can            of the port's name and protocol, of the frontend's family
      -> those the policy lets   all, or with a policy Local those of this cluster on this node
      -> those affinity prefers  the own cluster's, the others', or all
      -> those that hints prefer of the ready ones, where every one of them has hints and one has ours
      -> or the terminating ones that serve, where none is ready

The first three are Cilium's rules (global services), the last two kube-proxy's (KEP-2433, KEP-3015, KEP-1669). Whoever
drops out on the way rests: no more than without policies and hints, and no connection ends because one was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from clustermesh.address import Address
from clustermesh.model import USUAL_WEIGHT, Affinity, BackendState, Node


class Here(Struct, frozen=True, gc=False):
    """This node, as far as services ask for it. `addresses` are where its node ports are called from outside."""

    name: str = ""
    zone: str = ""
    addresses: tuple[Address, ...] = ()


NOWHERE: Final = Here()
_ZONE: Final = "topology.kubernetes.io/zone"


def here_of(name: str, node: Node | None) -> Here:
    """The node `name`, of which its cluster says `node`."""
    if node is None:
        return Here(name)
    addresses = [each.ip for each in node.addresses if each.type in ("InternalIP", "ExternalIP")]
    return Here(name, (node.labels or {}).get(_ZONE, ""), tuple(dict.fromkeys(addresses)))


class Candidate(NamedTuple):
    """A backend that could answer. One that is `draining` is given to nobody, whatever else there is."""

    cluster_id: int
    address: Address
    port: int
    state: BackendState = BackendState.ACTIVE
    weight: int = USUAL_WEIGHT
    node: str = ""
    for_zones: tuple[str, ...] = ()
    for_nodes: tuple[str, ...] = ()
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        return self.state is BackendState.ACTIVE

    @property
    def is_leaving(self) -> bool:
        """It serves, while it terminates."""
        return self.state is BackendState.TERMINATING and not self.draining


class Answer(NamedTuple):
    """Those that are given, and all others that are not gone."""

    given: Sequence[Candidate] = ()
    resting: Sequence[Candidate] = ()


def answer(
    own: Sequence[Candidate], others: Sequence[Candidate], affinity: Affinity, here: Here, *, only_here: bool = False
) -> Answer:
    """Of the own cluster's candidates and those of other clusters. `only_here` is a policy Local."""
    everyone = [*own, *others]
    if only_here:
        own, others = [each for each in own if each.node and each.node == here.name], ()
    listed = _preferred(own, others, affinity)
    ready = [each for each in listed if each.is_ready]
    given = _hinted(ready, here) if not only_here else ready
    given = given or [each for each in listed if each.is_leaving]
    chosen = {id(each) for each in given}
    return Answer(given, [each for each in everyone if id(each) not in chosen])


def _preferred(own: Sequence[Candidate], others: Sequence[Candidate], affinity: Affinity) -> Sequence[Candidate]:
    """Healthy is who is ready, or leaving. Those preferred are not enough where none of them is ready."""
    match affinity:
        case Affinity.LOCAL:
            falls_back = not any(each.is_ready for each in own) and _any_healthy(others)
            return [*own, *others] if falls_back else own
        case Affinity.REMOTE:
            falls_back = not any(each.is_ready for each in others) and _any_healthy(own)
            return [*others, *own] if falls_back else others
        case _:
            return [*own, *others]


def _any_healthy(those: Sequence[Candidate]) -> bool:
    return any(each.is_ready or each.is_leaving for each in those)


def _hinted(ready: Sequence[Candidate], here: Here) -> Sequence[Candidate]:
    """Those for this node, else those for this zone, else all."""
    hints: Sequence[tuple[str, Callable[[Candidate], tuple[str, ...]]]] = (
        (here.name, lambda each: each.for_nodes),
        (here.zone, lambda each: each.for_zones),
    )
    for wanted, hinted in hints:
        if wanted and all(map(hinted, ready)) and (found := [each for each in ready if wanted in hinted(each)]):
            return found
    return ready
