"""The status of a ClusterMeshPeer: what became of it, and what the cluster's agents see of the other cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from clustermesh.declared.peers import Condition, Declared
from clustermesh.declared.plan import Refusal
from clustermesh.errors import Invalid
from clustermesh.mesh.session import State
from clustermesh.wire.agent_report import AgentReport
from clustermesh.wire.timestamp import format_time, parse_time

SILENCE: Final = 300.0
"""Seconds after which an agent of which nothing is heard counts as not connected: one is replaced in less."""
SELDOM: Final = 60.0
"""Seconds between two writes of a status in which only counts and sentences are others."""
_MOST: Final = 1000
"""Characters of a message; the API takes 32768."""
_NAMED: Final = 3
"""Nodes that a message names."""
_COUNTED: Final = ("services", "endpoints", "refused")


class Sight(Struct):
    """What all agents together see of a cluster: nodes that report of it, are connected, know all of it, and the most
    that any of them has of it."""

    nodes: int = 0
    connected: int = 0
    synced: int = 0
    services: int = 0
    endpoints: int = 0
    refused: int = 0
    error: str = ""


def look(sights: dict[str, Sight], report: AgentReport) -> None:
    """Add what one agent reports."""
    for row in report.clusters:
        sight = sights.setdefault(row.name, Sight())
        sight.nodes += 1
        sight.connected += row.state in (State.SYNCING, State.FRESH)
        sight.synced += row.state == State.FRESH
        sight.error = sight.error or row.error
        for name in _COUNTED:
            setattr(sight, name, max(getattr(sight, name), getattr(row, name)))


class Agents(Struct, frozen=True):
    """How many Nodes have one, and of which nothing has been heard for SILENCE seconds. Behind a mirror they see its
    copies alone: `behind` is what it says of clusters that it does not follow now."""

    nodes: int = 0
    lost: tuple[str, ...] = ()
    behind: Mapping[str, str] = {}


def status_of(
    declared: Declared, refusal: Refusal | None, sight: Sight | None, agents: Agents, now: float
) -> dict[str, Any]:
    """What the status is to be at `now`, Unix seconds; a condition that stays has the time that it had."""
    before = {each.type: each for each in _conditions(declared.status)}
    told = [_refused(refusal, sight), *_reached(declared, refusal, sight, agents)]
    seen = sight or Sight()
    return {
        "observedGeneration": declared.generation,
        "nodes": {"reporting": seen.nodes, "connected": seen.connected, "synced": seen.synced},
        **{name: getattr(seen, name) for name in _COUNTED},
        "conditions": [_dated(each, before.get(each.type), declared.generation, now) for each in told],
    }


def is_due(before: Mapping[str, Any], after: Mapping[str, Any], since: float) -> bool:
    """Whether `after` is to be written in the place of `before`, `since` seconds after the last write."""
    if before == after:
        return False
    return since >= SELDOM or _outline(before) != _outline(after)


def _outline(status: Mapping[str, Any]) -> object:
    """What is told at once."""
    told = {each.type: (each.status, each.reason, each.observed_generation) for each in _conditions(status)}
    return told, status.get("observedGeneration")


def _refused(refusal: Refusal | None, sight: Sight | None) -> Condition:
    if refusal is not None:
        return Condition("Refused", "True", refusal.reason, refusal.sentence)
    if sight is not None and sight.refused:
        said = f"{sight.refused} of its entries are refused: `clustermesh status` and the agents' logs say which"
        return Condition("Refused", "True", "EntriesRefused", said)
    return Condition("Refused", "False", "Accepted", "nothing is refused")


def _reached(declared: Declared, refusal: Refusal | None, sight: Sight | None, agents: Agents) -> Iterable[Condition]:
    kinds = ("Connected", "Synced")
    if declared.paused:
        return [Condition(kind, "False", "Paused", "spec.paused is true") for kind in kinds]
    found = _seen(kinds, refusal, sight, agents)
    if refusal is None and (why := agents.behind.get(declared.name)):
        return [Condition(kind, "False", f"Not{kind}", f"KVStoreMesh has it as {why}") for kind in kinds]
    return found


def _seen(kinds: Sequence[str], refusal: Refusal | None, sight: Sight | None, agents: Agents) -> Iterable[Condition]:
    """By agents."""
    if sight is None and (refusal is not None or len(agents.lost) < agents.nodes or not agents.nodes):
        if refusal is not None:
            return [Condition(kind, "False", "Refused", refusal.sentence) for kind in kinds]
        said = "no agent has reported of it yet: the kubelet brings it to the pods within about a minute"
        if not agents.nodes:
            said = "no agent reports here yet, and Cilium's never do: `cilium clustermesh status` tells of those"
        return [Condition(kind, "Unknown", "NotReported", said) for kind in kinds]
    seen = sight or Sight()
    numbers = zip(kinds, (seen.connected, seen.synced), strict=True)
    return [_by_nodes(kind, number, seen, agents) for kind, number in numbers]


def _by_nodes(kind: str, number: int, sight: Sight, agents: Agents) -> Condition:
    """False is what an agent says, or has long not: of a node that has just gone silent nobody knows."""
    said, silent = f"{number} of {agents.nodes} nodes", agents.nodes - sight.nodes - len(agents.lost)
    waits = f"{silent} of them do not report of it: `clustermesh status` says which" if silent > 0 else ""
    if number < sight.nodes or agents.lost:
        told = filter(None, (said, sight.error, _lost(agents.lost), waits))
        return Condition(kind, "False", f"Not{kind}", "; ".join(told))
    if silent > 0:
        return Condition(kind, "Unknown", "NotReported", f"{said}; {waits}")
    return Condition(kind, "True", f"All{kind}", said)


def _lost(nodes: Sequence[str]) -> str:
    if not nodes:
        return ""
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return (
        f"no agent has reported on {', '.join(nodes[:_NAMED])}{more} for {SILENCE / 60:g} minutes: see its pod "
        "(`kubectl get pods -o wide -l k8s-app=clustermesh-agent`), or delete a Node that does not come back"
    )


def _dated(condition: Condition, before: Condition | None, generation: int, now: float) -> dict[str, Any]:
    stays = before is not None and before.status == condition.status and _is_time(before.last_transition_time)
    since = before.last_transition_time if before is not None and stays else format_time(int(now))
    whole = structs.replace(
        condition, message=condition.message[:_MOST], last_transition_time=since, observed_generation=generation
    )
    return dict(msgspec.to_builtins(whole))


def _is_time(text: str) -> bool:
    try:
        parse_time(text)
    except Invalid:
        return False
    return True


def _conditions(status: Mapping[str, Any]) -> list[Condition]:
    """Those that can be read: what somebody else wrote there is written anew."""
    try:
        return msgspec.convert(status.get("conditions") or [], list[Condition])
    except msgspec.ValidationError:
        return []
