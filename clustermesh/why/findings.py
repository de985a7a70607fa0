"""What a person is told of one part of a subject, and what several kinds of parts have in common. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from clustermesh.why.facts import ClusterFacts, Facts, NodeFacts

GLOBAL: Final = "service.cilium.io/global"
ALL_REFUSED: Final = "all that is refused is in `clustermesh node refused`"
MAP_DIFF: Final = "it is tried again by itself; what is missing is in `clustermesh node map diff`"
GARBLED: Final = "have it corrected there: which release writes it?"


class Finding(NamedTuple):
    """`of` is a part of the subject; `why` a sentence, also where it is used; `remedy` "" where there is none to do."""

    of: str
    used: bool
    why: str
    remedy: str = ""


Reason = tuple[str, str]
"""Why, and what to do."""


def not_taken_in(of: str, garbled: Mapping[str, str], dropped: Mapping[str, str]) -> Iterator[Finding]:
    for cluster, why in garbled.items():
        yield Finding(f"{of} of {cluster}", False, f"cannot be understood: {why}", GARBLED)
    for cluster, why in dropped.items():
        raise_it = "raise clustermesh-limits in its peer file, or have it say less"
        yield Finding(f"{of} of {cluster}", False, f"there is no room for it: {cluster} {why}", raise_it)


def cluster_of(facts: Facts, name: str) -> ClusterFacts:
    return next((each for each in facts.clusters if each.name == name), ClusterFacts(name=name))


def stale_note(cluster: ClusterFacts) -> str:
    if cluster.state != "stale":
        return ""
    return f" (as last heard: {cluster.name} is stale{f': {cluster.error}' if cluster.error else ''})"


def explain_foreign(cluster: str, nodes: Iterable[NodeFacts], standing: NodeFacts | None) -> Reason:
    """Why an address is not `cluster`'s."""
    for node in nodes:
        remedy = "correct it there, or name the prefix with `connect --allow-prefix`, as the reason says"
        return f"{node.shown}, whose it would be, is refused: {node.refused}", f"{remedy}; {ALL_REFUSED}"
    if standing is not None:
        return f"the address is {standing.shown}'s", "one of the two clusters needs another pod CIDR"
    return (
        f"no Node of {cluster} has that address, or a pod CIDR around it",
        f"does {cluster} publish the Node it runs on?",
    )
