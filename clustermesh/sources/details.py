"""What there is to say of single backends: their state and weight, where they are, who should prefer them. Pure.

States and weights are annotations of a Pod, or of the Service for its backends by address, which count more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from clustermesh.address import Address
from clustermesh.errors import Invalid
from clustermesh.model import MAX_WEIGHT, USUAL_WEIGHT, BackendDetail, BackendState
from clustermesh.sources.faults import Faults
from clustermesh.sources.objects import Hint, Hints, Pod, Ref
from clustermesh.sources.outside import PREFER_SAME_NODE
from clustermesh.sources.pods import has_ended
from clustermesh.sources.rules import parse_ip

STATE: Final = "clustermesh.io/backend-state"
WEIGHT: Final = "clustermesh.io/backend-weight"
MARKS: Final = (STATE, WEIGHT)
_STATES: Final = {
    "active": BackendState.ACTIVE,
    "quarantined": BackendState.QUARANTINED,
    "maintenance": BackendState.MAINTENANCE,
}

Annotations = Mapping[str, str]
Marks = Mapping[Address, Mapping[Ref, Annotations]]
"""The annotations of Pods that have such ones, by the addresses of the Pods. Of several the first by name counts."""


class Mark(Struct, frozen=True, gc=False):
    """What annotations say of a backend; None for nothing."""

    state: BackendState | None = None
    weight: int | None = None


_NO_MARK: Final = Mark()


class Details:
    """Those of one service. `nodes`: whether it asks where its backends are; `distribution` is its
    trafficDistribution."""

    def __init__(self, distribution: str, *, nodes: bool, pods: Marks, own: Mapping[Address, Mark]) -> None:
        self._distribution, self._nodes = distribution, nodes or distribution == PREFER_SAME_NODE
        self._pods, self._own = pods, own
        self._unasked = not (self._distribution or self._nodes or pods or own)

    def of(self, ip: Address, state: BackendState, node: str, zone: str, hints: Hints) -> BackendDetail | None:
        """None where there is nothing to say. Where no hints are given they are what Kubernetes' controllers would make
        of the distribution."""
        if self._unasked and not (state or hints.for_zones or hints.for_nodes):
            return None
        for_zones, for_nodes = _names(hints.for_zones), _names(hints.for_nodes)
        if self._distribution and not for_zones and zone:
            for_zones = (zone,)
        if self._distribution == PREFER_SAME_NODE and not for_nodes and node:
            for_nodes = (node,)
        mark = self._mark(ip)
        weight = USUAL_WEIGHT if mark.weight is None else mark.weight
        if mark.state is not None and mark.state is not BackendState.ACTIVE:
            state = mark.state
        if not weight:
            state, weight = BackendState.MAINTENANCE, USUAL_WEIGHT
        found = _detail(state, weight, node if self._nodes else "", for_zones, for_nodes)
        return None if found == _NOTHING else found

    def _mark(self, ip: Address) -> Mark:
        own, pods = self._own.get(ip, _NO_MARK), self._pods.get(ip)
        if not pods:
            return own
        pod = read_mark(pods[min(pods)], min(pods), Faults())  # the pod's own translation says what is wrong
        return Mark(
            pod.state if own.state is None else own.state,
            pod.weight if own.weight is None else own.weight,
        )


def _names(hints: tuple[Hint, ...]) -> tuple[str, ...]:
    return tuple([hint.name for hint in hints])


_NOTHING: Final = BackendDetail()


@lru_cache(1 << 14)
def _detail(
    state: BackendState, weight: int, node: str, for_zones: tuple[str, ...], for_nodes: tuple[str, ...]
) -> BackendDetail:
    """Backends on one node have the same: one object for all."""
    return BackendDetail(state=state, weight=weight, node=node, for_zones=for_zones, for_nodes=for_nodes)


def has_marks(pod: Pod) -> bool:
    """Whether its annotations say anything of it as a backend."""
    annotations = pod.metadata.annotations
    return bool(annotations) and any(name in annotations for name in MARKS) and not has_ended(pod)


def read_mark(annotations: Annotations, ref: Ref, faults: Faults) -> Mark:
    """What a Pod says of itself."""
    state, weight = annotations.get(STATE), annotations.get(WEIGHT)
    return Mark(
        None if state is None else faults.check(ref, _parse_state, f"metadata.annotations[{STATE}]", state),
        None if weight is None else faults.check(ref, _parse_weight, f"metadata.annotations[{WEIGHT}]", weight),
    )


def read_marks(annotations: Annotations, ref: Ref, faults: Faults) -> Mapping[Address, Mark]:
    """What a Service says of its backends: `address=value`, separated by commas."""
    if not any(name in annotations for name in MARKS):
        return {}
    states = _by_address(annotations, STATE, ref, faults)
    weights = _by_address(annotations, WEIGHT, ref, faults)
    found: dict[Address, Mark] = {}
    for ip in states.keys() | weights.keys():
        said = {name: table[ip] for name, table in ((STATE, states), (WEIGHT, weights)) if ip in table}
        found[ip] = read_mark(said, ref, faults)
    return found


def _by_address(annotations: Annotations, name: str, ref: Ref, faults: Faults) -> dict[Address, str]:
    found: dict[Address, str] = {}
    field = f"metadata.annotations[{name}]"
    for item in filter(None, map(str.strip, annotations.get(name, "").split(","))):
        spelled, sign, value = item.partition("=")
        if not sign:
            faults.note(ref, Invalid(field, item, "must be an address, '=' and a value, as 10.1.0.5=0"))
        elif ip := faults.check(ref, parse_ip, field, spelled.strip()):
            found[ip] = value.strip()
    return found


def _parse_state(field: str, text: str) -> BackendState:
    if text not in _STATES:
        raise Invalid(field, text, f"must be one of {', '.join(_STATES)}; taken as active")
    return _STATES[text]


def _parse_weight(field: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_WEIGHT):
        raise Invalid(field, text, f"must be 0 to {MAX_WEIGHT}; taken as {USUAL_WEIGHT}")
    return int(text)
