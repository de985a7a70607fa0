"""From facts to what a person is told: each part of the subject is used or not, why, and what to do. Pure.

A backend is judged by the first of `_REASONS` that speaks against it; they stand in the order in which an agent would
come to them. What is used may have a reason to be looked at all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from clustermesh.address import is_ipv4, parse
from clustermesh.why.facts import (
    AddressCase,
    BackendFacts,
    ClusterFacts,
    EndpointFacts,
    Facts,
    FrontendFacts,
    Hop,
    IdentityFacts,
    NodeFacts,
    ServiceCase,
    ServiceFacts,
)
from clustermesh.why.subject import OfAddress, OfService, Subject

_GLOBAL: Final = "service.cilium.io/global"
_ALL_REFUSED: Final = "all that is refused is in `clustermesh node refused`"
_MAP_DIFF: Final = "it is tried again by itself; what is missing is in `clustermesh node map diff`"
_GARBLED: Final = "have it corrected there: which release writes it?"


class Finding(NamedTuple):
    """`of` is a part of the subject; `why` a sentence, also where it is used; `remedy` "" where there is none to do."""

    of: str
    used: bool
    why: str
    remedy: str = ""


class Answer(NamedTuple):
    """`hops` are in the order in which something travels."""

    subject: str
    used: bool
    says: str
    hops: tuple[Hop, ...]
    findings: tuple[Finding, ...]


Reason = tuple[str, str]
"""Why, and what to do."""


class _Case(NamedTuple):
    facts: Facts
    service: ServiceCase
    said: ServiceFacts
    local: ServiceFacts | None
    cluster: ClusterFacts

    @property
    def is_own(self) -> bool:
        return self.said.cluster == self.facts.own


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
    yield from _not_taken_in(f"Service {case.shown}", case.garbled, case.dropped)
    local = next((each for each in case.said if each.cluster == facts.own), None)
    if local is None:
        others = ", ".join(each.cluster for each in case.said)
        if others:
            why = f"cluster {facts.own} has no Service {case.shown}: those of {others} have nowhere to be called"
            yield Finding(
                f"Service {case.shown}", False, why, f'make a Service {case.shown} there, with {_GLOBAL}: "true"'
            )
        elif not case.garbled and not case.dropped:
            yield Finding(f"Service {case.shown}", False, "no cluster has it", "is the name right? NAMESPACE/NAME")
    if case.problem:
        yield Finding(f"Service {case.shown}", False, case.problem, "it is planned again by itself, please report it")
    yield from (_of_frontend(case, frontend) for frontend in case.frontends)
    for said in case.said:
        one = _Case(facts, case, said, local, _cluster(facts, said.cluster))
        yield from (_of_backend(one, backend) for backend in said.backends)
        if not said.backends:
            why = f"cluster {said.cluster} has no ready backend of it{_stale(one.cluster)}"
            yield Finding(
                f"Service {case.shown} of {said.cluster}",
                False,
                why,
                "are its Pods ready, and does its selector match them?",
            )


def _not_taken_in(of: str, garbled: Mapping[str, str], dropped: Mapping[str, str]) -> Iterator[Finding]:
    for cluster, why in garbled.items():
        yield Finding(f"{of} of {cluster}", False, f"cannot be understood: {why}", _GARBLED)
    for cluster, why in dropped.items():
        raise_it = "raise clustermesh-limits in its peer file, or have it say less"
        yield Finding(f"{of} of {cluster}", False, f"there is no room for it: {cluster} {why}", raise_it)


def _cluster(facts: Facts, name: str) -> ClusterFacts:
    return next((each for each in facts.clusters if each.name == name), ClusterFacts(name=name))


def _stale(cluster: ClusterFacts) -> str:
    if cluster.state != "stale":
        return ""
    return f" (as last heard: {cluster.name} is stale{f': {cluster.error}' if cluster.error else ''})"


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
        return Finding(of, bool(at.kernel), why, _MAP_DIFF)
    return Finding(of, True, f"{len(at.wanted)} backends answer")


def _of_backend(one: _Case, backend: BackendFacts) -> Finding:
    of = f"backend {backend.address} of {one.said.cluster}"
    for reason in _REASONS:
        if (found := reason(one, backend)) is not None:
            return Finding(of, False, *found)
    served = [each.at for each in one.service.frontends if _is_served(each, backend, one.said.cluster)]
    if not served:
        return Finding(of, False, "is at no frontend of the service", "see the lines of its frontends")
    return Finding(of, True, f"answers at {', '.join(served)}{_stale(one.cluster)}")


def _is_served(frontend: FrontendFacts, backend: BackendFacts, cluster: str) -> bool:
    there = frontend.wanted if frontend.kernel is None else frontend.kernel
    lost = frontend.left_out or False
    return not lost and any(_host(each) == backend.address and each.endswith(f" {cluster}") for each in there)


def _host(place: str) -> str:
    return place.partition(" ")[0].rpartition(":")[0]


def _nowhere(one: _Case, _backend: BackendFacts) -> Reason | None:
    if one.local is not None:
        return None
    return f"cluster {one.facts.own} has no Service {one.service.shown}", "make one there"


def _withheld(one: _Case, _backend: BackendFacts) -> Reason | None:
    if not one.cluster.withheld:
        return None
    return (
        f"the services of {one.cluster.name} wait for the first WireGuard handshake with its nodes, 10 s at most",
        "see `clustermesh node encrypt status` if it stays so",
    )


def _not_global(one: _Case, _backend: BackendFacts) -> Reason | None:
    if one.is_own or one.local is None or one.local.is_global:
        return None
    return f"Service {one.service.shown} of {one.facts.own} is not global", f'annotate it there with {_GLOBAL}: "true"'


def _unshared(one: _Case, _backend: BackendFacts) -> Reason | None:
    if one.is_own or one.said.shared:
        return None
    return f"{one.said.cluster} does not share it", 'have service.cilium.io/shared: "false" taken away there'


def _too_many(one: _Case, _backend: BackendFacts) -> Reason | None:
    if "(limit)" not in one.said.refused:
        return None
    return f"the service of {one.said.cluster} {one.said.refused}", "raise clustermesh-limits in its peer file"


def _foreign(one: _Case, backend: BackendFacts) -> Reason | None:
    """The address is not its cluster's to name."""
    if one.is_own:
        return None
    if backend.ours:
        return f"a service of {one.facts.own} is called at that address", "one of the two has to be elsewhere"
    if backend.standing is not None and backend.standing.cluster == one.said.cluster:
        return None
    return _homeless(one.said.cluster, backend.nodes, backend.standing)


def _homeless(cluster: str, nodes: Iterable[NodeFacts], standing: NodeFacts | None) -> Reason:
    """Why an address is not `cluster`'s."""
    for node in nodes:
        remedy = "correct it there, or name the prefix with `connect --allow-prefix`, as the reason says"
        return f"{node.shown}, whose it would be, is refused: {node.refused}", f"{remedy}; {_ALL_REFUSED}"
    if standing is not None:
        return f"the address is {standing.shown}'s", "one of the two clusters needs another pod CIDR"
    return (
        f"no Node of {cluster} has that address, or a pod CIDR around it",
        f"does {cluster} publish the Node it runs on?",
    )


def _portless(_one: _Case, backend: BackendFacts) -> Reason | None:
    if not backend.ports or any(not port.startswith("0/") for port in backend.ports.values()):
        return None
    return "all of its ports are 0, where nobody answers", "correct the EndpointSlice"


def _affine(one: _Case, backend: BackendFacts) -> Reason | None:
    local = one.local
    if local is None or local.affinity == "none" or not local.is_global:
        return None
    wanted = {_host(each) for frontend in one.service.frontends for each in frontend.wanted}
    if backend.address in wanted or not wanted:
        return None
    own = {each.address for each in local.backends}
    if local.affinity == "local" and not one.is_own and wanted & own:
        return f"its affinity is local, and {one.facts.own} has ready backends", "it is used once none of them is ready"
    if local.affinity == "remote" and one.is_own and wanted - own:
        return "its affinity is remote, and other clusters have ready backends", "it is used once none of them is ready"
    return None


def _unmatched(one: _Case, backend: BackendFacts) -> Reason | None:
    """Frontends and backends meet by the names of ports, in one family."""
    if one.local is None or not one.local.frontends:
        return ("the service has no address to be called at (headless)", "") if one.local is not None else None
    family = is_ipv4(parse(backend.address))
    asked = {
        (name, port.partition("/")[2])
        for address, ports in one.local.frontends.items()
        if is_ipv4(parse(address)) is family
        for name, port in ports.items()
    }
    if not asked:
        kind = "IPv4" if family else "IPv6"
        return f"the service has no {kind} address", f"give it one (spec.ipFamilies), or {kind} to none of its Pods"
    offered = {(name, port.partition("/")[2]) for name, port in backend.ports.items()}
    if asked & offered:
        return None
    shown = (
        ", ".join(sorted(f"{name or 'nameless'}/{protocol}" for name, protocol in each)) for each in (offered, asked)
    )
    return "its ports are {}, and the service's are {}: ports meet by name".format(*shown), "give them the same names"


def _no_way(one: _Case, backend: BackendFacts) -> Reason | None:
    node = backend.standing
    if node is None or not node.tunnel:
        return None
    why = f"there is no way to {node.shown}: it {node.tunnel}"
    return why, f"see `clustermesh node encrypt status`, and the agent of {node.name}"


def _unshaken(_one: _Case, backend: BackendFacts) -> Reason | None:
    node = backend.standing
    if node is None or node.handshake is None or node.handshake:
        return None
    why = f"WireGuard has never shaken hands with {node.shown}"
    return why, "is UDP 51871 open between the nodes, and does an agent run there?"


_REASONS: Final[tuple[Callable[[_Case, BackendFacts], Reason | None], ...]] = (
    _nowhere,
    _not_global,
    _unshared,
    _too_many,
    _foreign,
    _withheld,
    _portless,
    _unmatched,
    _affine,
    _no_way,
    _unshaken,
)


# -- addresses ---------------------------------------------------------------------------------------------------------


def _of_address(facts: Facts, case: AddressCase) -> Iterator[Finding]:
    yield from _not_taken_in(f"endpoint {case.address}", case.garbled, case.dropped)
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
    cluster = _cluster(facts, endpoint.cluster)
    if endpoint.refused:
        why, remedy = f"is refused: it {endpoint.refused}", _ALL_REFUSED
        if "(not-held)" in endpoint.refused:
            why, remedy = _homeless(endpoint.cluster, endpoint.nodes, endpoint.standing)
        return Finding(of, False, why, remedy)
    if endpoint.standing is not None and endpoint.standing.tunnel:
        return Finding(of, False, f"there is no way to {endpoint.standing.shown}: it {endpoint.standing.tunnel}")
    held = case.kernel is not None and case.kernel.identity == endpoint.identity
    if case.asked_kernel and not held:
        found = "nothing" if case.kernel is None else f"identity {case.kernel.identity} of {case.kernel.prefix}"
        return Finding(of, False, f"the ipcache has {found} there instead of identity {endpoint.identity}", _MAP_DIFF)
    labels = f" ({', '.join(endpoint.labels)})" if endpoint.labels else ", whose labels are not known yet"
    return Finding(of, True, f"has identity {endpoint.identity}{labels}{_stale(cluster)}")


def _of_node(node: NodeFacts, of: str) -> Finding:
    if node.refused:
        return Finding(of, False, f"is refused: {node.refused}", _ALL_REFUSED)
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
        yield Finding(of, False, f"is refused: {identity.refused}", _GARBLED)
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
