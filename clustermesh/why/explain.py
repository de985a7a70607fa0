"""From facts to what a person is told: each part of the subject is used or not, why, and what to do. Pure.

What is used may have a reason to be looked at all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clustermesh.why.backends import Case, of_backend
from clustermesh.why.facts import (
    AddressCase,
    ClusterFacts,
    EndpointFacts,
    Facts,
    FrontendFacts,
    Hop,
    IdentityFacts,
    NodeFacts,
    ServiceCase,
)
from clustermesh.why.findings import (
    ALL_REFUSED,
    GARBLED,
    GLOBAL,
    MAP_DIFF,
    Finding,
    cluster_of,
    explain_foreign,
    not_taken_in,
    stale_note,
)
from clustermesh.why.subject import OfAddress, OfService, Subject


class Answer(NamedTuple):
    """`hops` are in the order in which something travels."""

    subject: str
    used: bool
    says: str
    hops: tuple[Hop, ...]
    findings: tuple[Finding, ...]


def explain(subject: Subject, facts: Facts) -> Answer:
    """What there is to say of `subject`."""
    if isinstance(subject, OfService):
        findings = [each for case in facts.services for each in _of_service(facts, case)]
    elif isinstance(subject, OfAddress):
        findings = list(_of_address(facts, facts.address)) if facts.address else []
    else:
        findings = [each for identity in facts.identities for each in _of_identity(facts, identity)]
    findings += _of_clusters(facts)
    used = any(each.used for each in findings)
    return Answer(str(subject), used, _headline(subject, facts, used, findings), facts.hops, tuple(findings))


def _headline(subject: Subject, facts: Facts, used: bool, findings: Iterable[Finding]) -> str:
    where = f"on node {facts.node}" if facts.node else "by an agent that began now (none was asked)"
    if used:
        return f"{subject} is used {where}"
    first = next((each.why for each in findings), "")
    return f"{subject} is not used {where}{f': {first}' if first else ': nobody says anything of it'}"


def _of_clusters(facts: Facts) -> Iterator[Finding]:
    """What is no part of the subject, and may be why there is none."""
    if facts.waiting:
        yield Finding(
            f"agent of node {facts.node}", False, f"is not ready: {facts.waiting}", "see `clustermesh node status`"
        )
    for cluster in facts.clusters:
        if cluster.state and cluster.state not in ("fresh", "stale"):
            why = f"is {cluster.state}{f': {cluster.error}' if cluster.error else ''}: what it has is not known here"
            yield Finding(f"cluster {cluster.name}", False, why, _troubleshoot(cluster, facts))


def _troubleshoot(cluster: ClusterFacts, facts: Facts) -> str:
    own = cluster.name == facts.own
    return "see `clustermesh status`" if own else f"see `clustermesh troubleshoot {cluster.name}`"


# -- services ----------------------------------------------------------------------------------------------------------


def _of_service(facts: Facts, case: ServiceCase) -> Iterator[Finding]:
    yield from not_taken_in(f"Service {case.shown}", case.garbled, case.dropped)
    local = next((each for each in case.said if each.cluster == facts.own), None)
    if local is None:
        others = ", ".join(each.cluster for each in case.said)
        if others:
            why = f"cluster {facts.own} has no Service {case.shown}: those of {others} have nowhere to be called"
            yield Finding(
                f"Service {case.shown}", False, why, f'make a Service {case.shown} there, with {GLOBAL}: "true"'
            )
        elif not case.garbled and not case.dropped:
            yield Finding(f"Service {case.shown}", False, "no cluster has it", "is the name right? NAMESPACE/NAME")
    if case.problem:
        yield Finding(f"Service {case.shown}", False, case.problem, "it is planned again by itself, please report it")
    yield from (_of_frontend(case, frontend) for frontend in case.frontends)
    for said in case.said:
        one = Case(facts, case, said, local, cluster_of(facts, said.cluster))
        yield from (of_backend(one, backend) for backend in said.backends)
        if not said.backends:
            why = f"cluster {said.cluster} has no ready backend of it{stale_note(one.cluster)}"
            yield Finding(
                f"Service {case.shown} of {said.cluster}",
                False,
                why,
                "are its Pods ready, and does its selector match them?",
            )


def _of_frontend(case: ServiceCase, at: FrontendFacts) -> Finding:
    of = f"frontend {at.at}"
    if at.left_out:
        why = f"is left out: {at.left_out} is there, and has to be reached itself"
        return Finding(of, False, why, "give the service another address")
    if at.rivals and at.rivals[0] != case.shown:
        others = ", ".join(each for each in at.rivals if each != case.shown)
        return Finding(
            of, False, f"is claimed by {others}, too, and {at.rivals[0]} is served", "give one of them another address"
        )
    if not at.wanted:
        return Finding(of, False, "nobody answers there: calls are refused", "the lines below say why for each backend")
    if at.kernel is not None and (missing := sorted({*at.wanted} - {*at.kernel})):
        why = f"the kernel lacks {', '.join(missing)}{f': {at.error}' if at.error else ''}"
        return Finding(of, bool(at.kernel), why, MAP_DIFF)
    return Finding(of, True, f"{len(at.wanted)} backends answer")


# -- addresses ---------------------------------------------------------------------------------------------------------


def _of_address(facts: Facts, case: AddressCase) -> Iterator[Finding]:
    yield from not_taken_in(f"endpoint {case.address}", case.garbled, case.dropped)
    if case.lifeline:
        why = f"{case.lifeline} is there, which this node has to reach: no route or service may cover it"
        yield Finding(f"address {case.address}", False, why, "give whatever should be there another address")
    yield from (_of_endpoint(facts, case, endpoint) for endpoint in case.endpoints)
    for node in case.at:
        yield _of_node(node, f"{node.shown} at {case.address}")
    for node in case.around:
        yield _of_node(node, f"{node.shown}, in whose pod CIDR {case.address} is")
    if case.attached and not case.endpoints:
        why = "it runs here, and its API server has not said its identity yet: it counts as `init`"
        yield Finding(
            f"pod {case.attached}",
            case.kernel is not None,
            why,
            "is the Pod's status written, and does the API server run?",
        )
    for service in case.services:
        for each in _of_service(facts, service):
            if each.of.split(" of ")[0] in (f"backend {case.address}",) or _is_frontend(each.of, case.address):
                yield each._replace(of=f"{each.of}, Service {service.shown}")
    if not (
        case.endpoints or case.at or case.around or case.services or case.lifeline or case.attached or case.garbled
    ):
        why = "no cluster has a pod, a node, a pod CIDR or a service there"
        yield Finding(f"address {case.address}", False, why, "is its cluster connected? see `clustermesh status`")


def _is_frontend(of: str, address: str) -> bool:
    return of.startswith("frontend ") and of.removeprefix("frontend ").rpartition(":")[0] == address


def _of_endpoint(facts: Facts, case: AddressCase, endpoint: EndpointFacts) -> Finding:
    who = f"pod {endpoint.pod}" if endpoint.pod else "endpoint"
    of = f"{who} at {case.address} of {endpoint.cluster}"
    cluster = cluster_of(facts, endpoint.cluster)
    if endpoint.refused:
        why, remedy = f"is refused: it {endpoint.refused}", ALL_REFUSED
        if "(not-held)" in endpoint.refused:
            why, remedy = explain_foreign(endpoint.cluster, endpoint.nodes, endpoint.standing)
        return Finding(of, False, why, remedy)
    if endpoint.standing is not None and endpoint.standing.tunnel:
        return Finding(of, False, f"there is no way to {endpoint.standing.shown}: it {endpoint.standing.tunnel}")
    held = case.kernel is not None and case.kernel.identity == endpoint.identity
    if case.asked_kernel and not held:
        found = "nothing" if case.kernel is None else f"identity {case.kernel.identity} of {case.kernel.prefix}"
        return Finding(of, False, f"the ipcache has {found} there instead of identity {endpoint.identity}", MAP_DIFF)
    labels = f" ({', '.join(endpoint.labels)})" if endpoint.labels else ", whose labels are not known yet"
    return Finding(of, True, f"has identity {endpoint.identity}{labels}{stale_note(cluster)}")


def _of_node(node: NodeFacts, of: str) -> Finding:
    if node.refused:
        return Finding(of, False, f"is refused: {node.refused}", ALL_REFUSED)
    if node.tunnel:
        return Finding(of, False, f"has no tunnel: it {node.tunnel}", "see `clustermesh node encrypt status`")
    if node.handshake == 0:
        return Finding(of, False, "WireGuard has never shaken hands with it", "is UDP 51871 open between the nodes?")
    return Finding(of, True, "stands")


# -- identities --------------------------------------------------------------------------------------------------------


def _of_identity(facts: Facts, identity: IdentityFacts) -> Iterator[Finding]:
    of = f"identity {identity.number}"
    labels = ", ".join(identity.labels)
    if identity.refused:
        yield Finding(of, False, f"is refused: {identity.refused}", GARBLED)
    elif identity.reserved:
        yield Finding(of, True, f"is reserved ({labels or 'no label'}) and means the same in every cluster")
    elif not identity.clusters:
        owner = identity.owner or "no connected cluster"
        yield Finding(
            of, False, f"{owner}, whose range it is in, has no such identity", "is that cluster connected, and fresh?"
        )
    elif not identity.endpoints:
        yield Finding(
            of, False, f"is {labels} of {', '.join(identity.clusters)}, and no address has it", "do its Pods run?"
        )
    else:
        yield _of_identity_in_use(of, labels, identity)


def _of_identity_in_use(of: str, labels: str, identity: IdentityFacts) -> Finding:
    said = f"is {labels} of {', '.join(identity.clusters)}; {identity.endpoints} addresses have it"
    if identity.kernel is None or identity.kernel:
        return Finding(of, True, said)
    why = f"{said}, and the ipcache gives it to none of {', '.join(identity.addresses)}"
    return Finding(of, False, why, "see `clustermesh why` for one of them")
